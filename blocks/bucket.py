"""A bucket with its credentials, as an operator edits it in the Prefect UI."""

from __future__ import annotations

from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]  # ships no types
from httpx import HTTPError
from prefect.blocks.core import Block
from prefect.settings import PREFECT_API_URL
from prefect_aws import AwsCredentials, MinIOCredentials
from pydantic import Field, SecretStr

from plateway.endpoint import Bucket as Declaration
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured, NotFound, Unavailable
from plateway.store import Store, filesystem, open_store


class Bucket(Block):
    """The bucket that receives the exports. Changes apply to the next run."""

    _block_type_name = "Plateway Bucket"
    _block_type_slug = "plateway-bucket"
    _description = "The bucket that receives the exports, with its credentials. Changes apply to the next run."
    _code_example = """
        ```python
        from blocks.bucket import Bucket

        store = Bucket.load("plateway").store()
        for stat in store.list("images/"):
            print(stat.key, stat.size)
        ```
    """

    url: str = Field("s3://plateway-raw", title="URL", description="s3://bucket[/prefix], or file://… on one machine")
    endpoint: str | None = Field(None, description="Address of S3, if not AWS: http://host:port")
    endpoint_name: str | None = Field(None, description="Its name in the catalogue, if its address may change")
    credentials: AwsCredentials | MinIOCredentials = Field(default_factory=AwsCredentials, description="The key for S3")
    read_only: bool = Field(False, description="Refuse everything that would change the bucket")
    bypass_proxy: bool = Field(False, description="Reach the endpoint directly although HTTP_PROXY is set")

    def store(self) -> Store:
        """Open the bucket for the library."""
        return open_store(self.url, self.value().endpoint)

    def filesystem(self) -> tuple[AbstractFileSystem, str]:
        """Open the bucket for a notebook: an fsspec filesystem, and the path of the bucket in it."""
        return filesystem(self.url, self.value().endpoint)

    def value(self, systems: tuple[str, ...] = ()) -> Declaration:
        """Return the bucket as the library's declaration of one."""
        key, secret, token = keys(self.credentials)
        endpoint = Endpoint(
            url=self.endpoint or self.credentials.aws_client_parameters.endpoint_url,
            name=self.endpoint_name or None,
            access_key_id=key,
            secret_access_key=SecretStr(secret) if secret else None,
            session_token=SecretStr(token) if token else None,
            region=self.credentials.region_name or "us-east-1",
            read_only=self.read_only,
            bypass_proxy=self.bypass_proxy,
        )
        return Declaration(url=self.url, endpoint=endpoint, systems=systems)

    @classmethod
    def of(cls, known: Declaration) -> Bucket:
        """Create the block from the settings."""
        endpoint = known.endpoint
        credentials = AwsCredentials(
            aws_access_key_id=endpoint.access_key_id,
            aws_secret_access_key=endpoint.secret_access_key,
            aws_session_token=endpoint.session_token and endpoint.session_token.get_secret_value(),
            region_name=endpoint.region,
        )
        return cls(
            url=known.url,
            endpoint=endpoint.url,
            endpoint_name=endpoint.name,
            credentials=credentials,
            read_only=endpoint.read_only,
            bypass_proxy=endpoint.bypass_proxy,
        )


def keys(typed: AwsCredentials | MinIOCredentials) -> tuple[str | None, str | None, str | None]:
    """Return key, secret and token; without any in the block those that boto3 finds (profile, role, environment)."""
    if isinstance(typed, MinIOCredentials):
        return typed.minio_root_user, typed.minio_root_password.get_secret_value(), None
    if typed.aws_secret_access_key is not None and typed.assume_role_arn is None:
        return typed.aws_access_key_id, typed.aws_secret_access_key.get_secret_value(), typed.aws_session_token
    found = typed.get_boto3_session().get_credentials()
    return tuple(found.get_frozen_credentials()) if found else (None, None, None)


def require_api(name: str) -> None:
    """Raise unless the Prefect server with a Bucket block is named: Prefect would start one of its own, without blocks.

    Raises:
        Misconfigured: PREFECT_API_URL is not set.
    """
    if not PREFECT_API_URL.value():
        raise Misconfigured(f"PREFECT_API_URL is not set: cannot read the Bucket block {name!r}")


def load(name: str) -> Endpoint:
    """Read the endpoint and the credentials of a Bucket block from Prefect, outside of a flow.

    Raises:
        NotFound: there is no such block.
        Misconfigured: PREFECT_API_URL is not set.
        Unavailable: Prefect does not answer.
    """
    require_api(name)
    try:
        block: Bucket = Bucket.load(name)  # type: ignore[assignment]  # no async client here
        return block.value().endpoint
    except ValueError as error:
        raise NotFound(f"there is no Bucket block {name!r} in Prefect") from error
    except HTTPError as error:
        raise Unavailable(f"Bucket block {name!r}: Prefect does not answer ({type(error).__name__})") from None
