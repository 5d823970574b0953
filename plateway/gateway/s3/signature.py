"""AWS Signature Version 4, as S3 has it: what a client signed, in headers or in a presigned link, and the comparison.

The path is percent-encoded once, the payload is what ``x-amz-content-sha256`` says. A client may sign for any region.
Source: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API Reference. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote_to_bytes

from plateway.gateway.s3.errors import S3Error

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW = timedelta(minutes=15)
LONGEST = timedelta(days=7)  # of a presigned link
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256().hexdigest()
STAMP = "%Y%m%dT%H%M%SZ"
STAMPED = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
CREDENTIAL = re.compile(r"([^/\s]+)/(\d{8})/([^/\s]*)/([^/\s]+)/aws4_request", re.ASCII)
FIELD = re.compile(r"\s*(Credential|SignedHeaders|Signature)\s*=\s*([^,\s]*)\s*", re.ASCII)
NAME = re.compile(r"[!-:<-~]+", re.ASCII)  # of a header
HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
SECONDS = re.compile(r"\d{1,7}", re.ASCII)

Query = Sequence[tuple[bytes, bytes]]
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Asked:
    """A request, as far as its signature covers it."""

    method: str
    path: bytes  # as sent
    query: Query  # decoded
    headers: Headers  # lowercase names

    def header(self, name: bytes) -> str | None:
        """Return the first header of a name."""
        return next((value.decode("latin-1") for each, value in self.headers if each == name), None)


@dataclass(frozen=True)
class Claim:
    """What a request says about its signature; nothing of it is proven."""

    access_key_id: str
    day: str  # YYYYMMDD
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    moment: datetime  # when it was signed
    payload: str  # SHA-256 of the body, hex, or UNSIGNED-PAYLOAD
    lasts: timedelta | None  # of a presigned link

    @property
    def scope(self) -> str:
        """What the signing key is good for."""
        return f"{self.day}/{self.region}/{self.service}/aws4_request"


def parse_query(raw: bytes) -> Query:
    """Split and decode a query string."""
    pairs = (one.partition(b"=") for one in raw.split(b"&") if one)
    return [(_decode(name), _decode(value)) for name, _, value in pairs]


def parse_claim(asked: Asked) -> Claim | None:
    """Read the signature of a request; None if it has none.

    Raises:
        S3Error: it is of another kind, or incomplete.
    """
    header, query = asked.header(b"authorization"), dict(asked.query)
    if header is not None and b"X-Amz-Signature" in query:
        raise S3Error("InvalidArgument", "Only one of header and query may have a signature.")
    if header is not None:
        return _parse_header(asked, header)
    if b"X-Amz-Algorithm" in query or b"X-Amz-Signature" in query:
        return _parse_link({name.decode("latin-1"): value.decode("latin-1") for name, value in asked.query}, asked)
    if b"AWSAccessKeyId" in query:
        raise _other_kind()
    return None


def check_time(claim: Claim, now: datetime) -> None:
    """Check when a request was signed.

    Raises:
        S3Error: too long ago, or in the future.
    """
    if claim.lasts is None and abs(now - claim.moment) > SKEW:
        raise S3Error("RequestTimeTooSkewed", "The clocks of client and server differ by more than 15 minutes.")
    if claim.lasts is not None and claim.moment - now > SKEW:
        raise S3Error("AccessDenied", "This link is not valid yet.")
    if claim.lasts is not None and now >= claim.moment + claim.lasts:
        raise S3Error("AccessDenied", "Request has expired")


def check_signature(claim: Claim, asked: Asked, secret: str) -> None:
    """Compare the signature with the one that this secret makes.

    Of the path, S3 signs the canonical encoding; clients that send another one may have signed that.

    Raises:
        S3Error: they differ.
    """
    paths = {quote(unquote_to_bytes(asked.path), safe="/-_.~").encode(): None, asked.path: None}
    made = [sign(claim, replace(asked, path=path), secret) for path in paths]
    if not any(hmac.compare_digest(one, claim.signature) for one in made):
        raise S3Error("SignatureDoesNotMatch", "The signature differs from the one that the secret of this key makes.")


def sign(claim: Claim, asked: Asked, secret: str) -> str:
    """Compute the signature of a request, as hex."""
    digest = hashlib.sha256(canonical_request(claim, asked)).hexdigest()
    text = f"{ALGORITHM}\n{claim.moment:{STAMP}}\n{claim.scope}\n{digest}"
    key = f"AWS4{secret}".encode()
    for part in (*claim.scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()


def canonical_request(claim: Claim, asked: Asked) -> bytes:
    """Write a request in the form that is hashed and signed, with its path as it is."""
    pairs = sorted((_encode(name), _encode(value)) for name, value in asked.query if name != b"X-Amz-Signature")
    lines = [
        asked.method.encode(),
        asked.path,
        "&".join(f"{name}={value}" for name, value in pairs).encode(),
        *(name.encode() + b":" + _join_values(asked.headers, name.encode()) for name in claim.signed_headers),
        b"",
        ";".join(claim.signed_headers).encode(),
        claim.payload.encode(),
    ]
    return b"\n".join(lines)


def _parse_header(asked: Asked, header: str) -> Claim:
    algorithm, _, rest = header.strip().partition(" ")
    if algorithm != ALGORITHM:
        raise _other_kind()
    matches = [FIELD.fullmatch(part) for part in rest.split(",")]
    fields = {match[1]: match[2] for match in matches if match}
    if len(matches) != 3 or len(fields) != 3:
        raise S3Error("AuthorizationHeaderMalformed", "It has Credential, SignedHeaders and Signature.")
    payload = asked.header(b"x-amz-content-sha256")
    if payload is None:
        raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    stamp, date = asked.header(b"x-amz-date"), asked.header(b"date")
    moment = _parse_stamp(stamp) if stamp is not None else _parse_date(date)
    if moment is None:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    return _make_claim("AuthorizationHeaderMalformed", fields, moment=moment, payload=payload.strip(), lasts=None)


def _parse_link(query: Mapping[str, str], asked: Asked) -> Claim:
    code = "AuthorizationQueryParametersError"
    names = {"Credential": "X-Amz-Credential", "SignedHeaders": "X-Amz-SignedHeaders", "Signature": "X-Amz-Signature"}
    wanted = (*names.values(), "X-Amz-Date", "X-Amz-Expires")
    if query.get("X-Amz-Algorithm") != ALGORITHM or any(name not in query for name in wanted):
        raise S3Error(code, f"A link has X-Amz-Algorithm={ALGORITHM}, {', '.join(wanted)}.")
    moment = _parse_stamp(query["X-Amz-Date"])
    if moment is None:
        raise S3Error(code, "X-Amz-Date is a time like 20261130T120000Z.")
    lasts = timedelta(seconds=int(query["X-Amz-Expires"]) if SECONDS.fullmatch(query["X-Amz-Expires"]) else 0)
    if not timedelta(0) < lasts <= LONGEST:
        raise S3Error(code, f"X-Amz-Expires is from 1 to {LONGEST.total_seconds():.0f} seconds.")
    payload = query.get("X-Amz-Content-Sha256") or asked.header(b"x-amz-content-sha256") or UNSIGNED
    fields = {name: query[spelt] for name, spelt in names.items()}
    return _make_claim(code, fields, moment=moment, payload=payload, lasts=lasts)


def _make_claim(
    code: str, fields: Mapping[str, str], *, moment: datetime, payload: str, lasts: timedelta | None
) -> Claim:
    found = CREDENTIAL.fullmatch(fields["Credential"])
    if found is None or found[4] != "s3":
        raise S3Error(code, "The credential is <key id>/<YYYYMMDD>/<region>/s3/aws4_request.")
    if found[2] != f"{moment:%Y%m%d}":
        raise S3Error(code, "The day in the credential is not that of the date.")
    names = tuple(fields["SignedHeaders"].split(";"))
    if "host" not in names or list(names) != sorted(set(names)) or not all(map(NAME.fullmatch, names)):
        raise S3Error(code, "SignedHeaders are names in lower case, sorted, and host is one of them.")
    if not HEX.fullmatch(fields["Signature"]):
        raise S3Error(code, "The signature has 64 hexadecimal digits.")
    key, day, region, service = found.groups()
    return Claim(key, day, region, service, names, fields["Signature"], moment, payload, lasts)


def _other_kind() -> S3Error:
    advice = "for links of boto3: Config(signature_version='s3v4')"
    return S3Error("InvalidRequest", f"This kind of signature is not supported. Please use {ALGORITHM}; {advice}.")


def _parse_stamp(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, STAMP).replace(tzinfo=UTC) if STAMPED.fullmatch(text) else None
    except ValueError:
        return None


def _parse_date(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if text else None
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found and found.astimezone(UTC)


def _join_values(headers: Headers, name: bytes) -> bytes:
    return b",".join(b" ".join(value.split()) for each, value in headers if each == name)


def _decode(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def _encode(text: bytes) -> str:
    return quote(text, safe="-_.~")
