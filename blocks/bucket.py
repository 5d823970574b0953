"""Where exports go, as an operator sees it in the Prefect UI: a bucket and the credentials for it."""

from __future__ import annotations

from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]  # ships no types
from httpx import HTTPError
from prefect.blocks.core import Block
from prefect.settings import PREFECT_API_URL
from prefect_aws import AwsCredentials, MinIOCredentials
from pydantic import Field, HttpUrl, SecretStr

from plateway.endpoint import Bucket as Declaration
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured, NotFound, Unavailable
from plateway.store import Store, filesystem, open_store


class Bucket(Block):
    """The bucket that receives the exports. What is changed here holds from the next run on."""

    _block_type_name = "Plateway Bucket"
    _block_type_slug = "plateway-bucket"
    _logo_url = HttpUrl(
        "https://cdn.sanity.io/images/3ugk85nk/production/d74b16fe84ce626345adf235a47008fea2869a60-225x225.png"
    )
    _description = "The bucket that receives the exports, with its credentials. Changes hold from the next run on."
    _code_example = """
        ```python
        from blocks.bucket import Bucket

        store = Bucket.load("plateway").store()
        for stat in store.list("images/"):
            print(stat.key, stat.size)
        ```
    """

    url: str = Field("s3://plateway-raw", title="URL", description="s3://bucket[/prefix], or file://… on one machine")
    endpoint: str | None = Field(None, description="Where S3 is, if not AWS: http://host:port")
    endpoint_name: str | None = Field(None, description="What the catalogue calls it, if its address may change")
    credentials: AwsCredentials | MinIOCredentials = Field(default_factory=AwsCredentials, description="Who asks")
    read_only: bool = Field(False, description="Refuse everything that would change the bucket")
    bypass_proxy: bool = Field(False, description="Reach the endpoint directly although HTTP_PROXY is set")

    def store(self) -> Store:
        """Open the bucket for the library."""
        return open_store(self.url, self.value().endpoint)

    def filesystem(self) -> tuple[AbstractFileSystem, str]:
        """Open the bucket for a notebook: an fsspec filesystem, and the path of the bucket in it."""
        return filesystem(self.url, self.value().endpoint)

    def value(self, systems: tuple[str, ...] = ()) -> Declaration:
        """Return what was typed as the library takes it."""
        key, secret, token = keys(self.credentials)
        who = Endpoint(
            url=self.endpoint or self.credentials.aws_client_parameters.endpoint_url,
            name=self.endpoint_name or None,
            access_key_id=key,
            secret_access_key=SecretStr(secret) if secret else None,
            session_token=SecretStr(token) if token else None,
            region=self.credentials.region_name or "us-east-1",
            read_only=self.read_only,
            bypass_proxy=self.bypass_proxy,
        )
        return Declaration(url=self.url, endpoint=who, systems=systems)

    @classmethod
    def of(cls, known: Declaration) -> Bucket:
        """Fill the block from what the settings say."""
        who = known.endpoint
        credentials = AwsCredentials(
            aws_access_key_id=who.access_key_id,
            aws_secret_access_key=who.secret_access_key,
            aws_session_token=who.session_token and who.session_token.get_secret_value(),
            region_name=who.region,
        )
        return cls(
            url=known.url,
            endpoint=who.url,
            endpoint_name=who.name,
            credentials=credentials,
            read_only=who.read_only,
            bypass_proxy=who.bypass_proxy,
        )


def keys(who: AwsCredentials | MinIOCredentials) -> tuple[str | None, str | None, str | None]:
    """Return key, secret and token; where none was typed, what boto3 finds (profile, role, environment), or nothing."""
    if isinstance(who, MinIOCredentials):
        return who.minio_root_user, who.minio_root_password.get_secret_value(), None
    if who.aws_secret_access_key is not None and who.assume_role_arn is None:
        return who.aws_access_key_id, who.aws_secret_access_key.get_secret_value(), who.aws_session_token
    found = who.get_boto3_session().get_credentials()
    return tuple(found.get_frozen_credentials()) if found else (None, None, None)


def load(name: str) -> Endpoint:
    """Read the endpoint and the credentials of a Bucket block from Prefect, outside of a flow.

    Raises:
        NotFound: there is no such block. Misconfigured: nobody says where Prefect is. Unavailable: it does not answer.
    """
    if not PREFECT_API_URL.value():  # or Prefect would start a server of its own, which knows no blocks
        raise Misconfigured(f"PREFECT_API_URL is not set, where the Bucket block {name!r} would be")
    try:
        block: Bucket = Bucket.load(name)  # type: ignore[assignment]  # no async client here
        return block.value().endpoint
    except ValueError as error:
        raise NotFound(f"there is no Bucket block {name!r} in Prefect") from error
    except HTTPError as error:
        raise Unavailable(f"Bucket block {name!r}: Prefect does not answer ({type(error).__name__})") from None
