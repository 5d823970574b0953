"""The XML documents of S3 (http://s3.amazonaws.com/doc/2006-03-01/)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from urllib.parse import quote

from plateway.gateway.s3.listing import Object, Page

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
OWNER = "<Owner><ID>plateway</ID><DisplayName>plateway</DisplayName></Owner>"
SPECIAL = re.compile('[&<>"\x00-\x1f\x7f\ufffe\uffff]')

Encode = Callable[[str], str]


def escape(text: str) -> str:
    """Escape text; characters that XML 1.0 cannot have become references, as S3 writes them."""
    return SPECIAL.sub(lambda one: f"&#x{ord(one[0]):x};", text)


def url(text: str) -> str:
    """Percent-encode a key, for clients that ask for ``encoding-type=url``."""
    return quote(text, safe="/")


def format_error(code: str, message: str, *, resource: str, request_id: str) -> str:
    """Describe an error."""
    fields = {"Code": code, "Message": message, "Resource": resource, "RequestId": request_id}
    return f"{HEAD}<Error>{_join(fields)}</Error>"


def format_buckets(buckets: Iterable[tuple[str, datetime]]) -> str:
    """List buckets, with the time since when there are."""
    listed = "".join(f"<Bucket>{_join({'Name': name, 'CreationDate': _time(at)})}</Bucket>" for name, at in buckets)
    return f"{HEAD}<ListAllMyBucketsResult{NAMESPACE}>{OWNER}<Buckets>{listed}</Buckets></ListAllMyBucketsResult>"


def format_location(region: str) -> str:
    """Name the region of a bucket; us-east-1 has an empty one."""
    text = "" if region == "us-east-1" else escape(region)
    return f"{HEAD}<LocationConstraint{NAMESPACE}>{text}</LocationConstraint>"


def format_listing(fields: Mapping[str, str | int | None], page: Page, *, encode: Encode) -> str:
    """List a page of keys; fields that are None are left out."""
    known = {name: str(value) for name, value in fields.items() if value is not None}
    items = "".join(_item(one, encode) for one in page.items)
    return f"{HEAD}<ListBucketResult{NAMESPACE}>{_join(known)}{items}</ListBucketResult>"


def _item(item: Object | str, encode: Encode) -> str:
    if isinstance(item, str):
        return f"<CommonPrefixes>{_join({'Prefix': encode(item)})}</CommonPrefixes>"
    fields = {"Key": encode(item.key), "LastModified": _time(item.modified)}
    fields |= {"ETag": f'"{item.etag}"'} if item.etag else {}
    return f"<Contents>{_join({**fields, 'Size': str(item.size), 'StorageClass': 'STANDARD'})}</Contents>"


def _join(fields: Mapping[str, str]) -> str:
    return "".join(f"<{name}>{escape(text)}</{name}>" for name, text in fields.items())


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat(timespec="milliseconds") + "Z"
