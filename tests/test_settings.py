"""What a site can set: the rules that connect settings."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from plateway import instruments, pipeline, settings
from plateway.endpoint import AWS, Endpoint, endpoint_identity
from plateway.errors import Misconfigured
from plateway.findings import limit
from plateway.gateway.opening import parts


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PLATEWAY_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_nobody_expects_exports_on_tape_where_there_is_none() -> None:
    """Only a site that names an archive, or a door for its manifests, is told what it lacks."""
    assert settings.load().on_tape_within is None
    for named in ({"archive_inbox": "inbox"}, {"archive_target": "tape"}, {"amqp_url": "amqp://rabbit/"}):
        assert settings.load(**named).on_tape_within == timedelta(days=7)


SHARES = [1, 1.0, 0.5, 0.001]
NO_SHARES: list[Any] = [0, 0.0, -1, -0.1, 1.001, 10, 100, float("nan"), float("inf"), "0.5", True, None]


@pytest.mark.parametrize("value", SHARES)
def test_a_share_is_above_nothing_and_at_most_all(value: float) -> None:
    """Of a batch's fraction."""
    assert instruments.bounded_fraction(value) == value
    assert replace(instruments.Policy(), fraction=value).fraction == value


@pytest.mark.parametrize("value", NO_SHARES)
def test_no_policy_has_a_fraction_that_is_no_share(value: Any) -> None:
    """However it is made: ten percent written as 10 would switch the rule off that stops and asks."""
    with pytest.raises(Misconfigured):
        instruments.bounded_fraction(value)
    with pytest.raises(Misconfigured):
        replace(instruments.Policy(purge=True), fraction=value)
    with pytest.raises(Misconfigured):
        limit(1000, value)


@pytest.mark.parametrize("value", ["0", "-1", "10", "nan", "ten"])
@pytest.mark.parametrize("name", ["purge_fraction", "reconcile_fraction"])
def test_settings_have_the_same_bounds(name: str, value: str) -> None:
    """They are told when they are read, not when something is deleted."""
    with pytest.raises(Misconfigured, match=name.upper()):
        settings.load(**{name: value})


# ---------------------------------------------------------------------------------------------------- several buckets


def written(home: Path, text: str, **flags: Any) -> settings.Settings:
    """Write buckets.toml, and load settings of a site with an endpoint and a key of its own."""
    (home / "buckets.toml").write_text(text)
    ours = {"endpoint_url": "http://s3.example", "access_key_id": "OURS", "secret_access_key": "hush"}
    return settings.load(home=home, **ours, **flags)


def test_a_table_says_what_differs(tmp_path: Path) -> None:
    """What a table leaves out is as for the site's own bucket; a key is taken whole, a name goes with its address."""
    text = """
        [dev]
        url = "s3://dev"
        systems = ["aretha", "nina"]
        [haven]
        url = "s3://extraction_5_CT"
        endpoint_url = "http://haven.example:7070"
        access_key_id = "READER"
        secret_access_key = "hush"
        read_only = true
        """
    known = written(tmp_path, text, endpoint_name="surf", session_token="of ours")
    dev, haven = (known.buckets[name].endpoint for name in ("dev", "haven"))
    assert (dev.url, dev.name, dev.access_key_id) == ("http://s3.example", "surf", "OURS")
    assert dev.session_token == SecretStr("of ours")
    assert (haven.name, haven.session_token, haven.read_only) == (None, None, True)
    assert "hush" not in repr(haven)
    assert [known.instrument(name).bucket for name in ("aretha", "nina", "prince")] == ["dev", "dev", None]


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It holds keys."""
    table = "[dev]\nurl = 's3://dev'"
    for mode, warned in ((0o600, False), (0o640, True)):
        (tmp_path / "buckets.toml").touch()
        (tmp_path / "buckets.toml").chmod(mode)
        caplog.clear()
        assert written(tmp_path, table).buckets.keys() == {"dev"}
        assert ("chmod 600" in caplog.text) is warned


WRONG = {
    "no table": ('dev = "s3://dev"', "dev is no table"),
    "no url": ("[dev]\nregion = 'x'", r"\[dev\] url: Field required"),
    "unknown field": ("[dev]\nurl = 's3://d'\nsecret_key = 'hush'", r"\[dev\] secret_key: Extra inputs"),
    "wrong kind": ("[dev]\nurl = 's3://d'\nsecret_access_key = 5", r"\[dev\] secret_access_key: "),
    "not a name": ("[Dev_1]\nurl = 's3://d'", "lower case letters"),
    "the site's own": ("[plateway]\nurl = 's3://d'", "PLATEWAY_BUCKET_URL"),
    "two for one": ("[a]\nurl='s3://a'\nsystems=['x']\n[b]\nurl='s3://b'\nsystems=['x']", r"\[a\] or to \[b\]"),
    "no TOML": ("[dev", "buckets.toml: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_named(tmp_path: Path, name: str) -> None:
    """Table and field are told, values are not."""
    text, match = WRONG[name]
    with pytest.raises(Misconfigured, match=match) as caught:
        _ = written(tmp_path, text).buckets
    assert "hush" not in str(caught.value)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    """Only the default one need not exist."""
    assert settings.load(home=tmp_path).buckets == {}
    with pytest.raises(Misconfigured, match=r"elsewhere\.toml: no such file"):
        _ = settings.load(home=tmp_path, buckets_file=tmp_path / "elsewhere.toml").buckets


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("HTTP://S3.Example:80/", "http://s3.example"),
        ("https://s3.example:443", "https://s3.example"),
        ("http://user:pass@s3.example", "http://s3.example"),
        ("http://s3.example:8080/gate/", "http://s3.example:8080/gate"),
        ("https://s3.eu-west-1.amazonaws.com", AWS),
        (None, AWS),
    ],
)
def test_an_endpoint_is_known_by_its_address(address: str | None, same: str) -> None:
    """However an address is written it is the same one; a name goes before it."""
    assert endpoint_identity("s3://raw", Endpoint(url=address)) == same
    assert endpoint_identity("s3://raw", Endpoint(url=address, name="surf")) == "surf"
    assert endpoint_identity("memory://raw", Endpoint(url=address, name="surf")) == "memory:"


def test_buckets_do_not_share_objects(tmp_path: Path) -> None:
    """What two systems send would be told as dark objects; but another view of a bucket may have a name."""
    for url in ("s3://plateway-raw", "s3://plateway-raw/dev"):
        with pytest.raises(Misconfigured, match="buckets plateway and dev share objects"):
            pipeline.open_site(written(tmp_path, f'[dev]\nurl = "{url}"\nsystems = ["aretha"]'))
        with closing(pipeline.open_site(written(tmp_path, f'[dev]\nurl = "{url}"'))) as site:
            site.catalog.upgrade()
            assert [one.store for one in site.every_bucket()] == [site.store]
    table = '[dev]\nurl = "s3://plateway-raw"\nendpoint_url = "http://b"\nsystems = ["aretha"]'
    with closing(pipeline.open_site(written(tmp_path, table))) as site:
        assert [one.endpoint for one in site.each_bucket()] == ["http://s3.example", "http://b"]


def test_objects_have_a_place_of_their_own(tmp_path: Path) -> None:
    """No token of the gateway reaches any bucket that exports go to."""
    known = written(tmp_path, '[dev]\nurl = "s3://dev"', objects_url="s3://dev/objects")
    with pytest.raises(Misconfigured, match="apart from the bucket dev"):
        parts(known)


# ------------------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "PLATEWAY_SETTLE_SECONDS",
            "abc",
            "PLATEWAY_SETTLE_SECONDS='abc' is not a duration such as 90s, 10m, 8h or 2d",
        ),
        ("PLATEWAY_EXPORT_WORKERS", "many", "PLATEWAY_EXPORT_WORKERS='many': Input should be a valid integer"),
        ("PLATEWAY_EXPORT_WORKERS", "0", "PLATEWAY_EXPORT_WORKERS='0': Input should be greater than or equal to 1"),
        ("PLATEWAY_PURGE_PROOF", "trust", "PLATEWAY_PURGE_PROOF='trust': Input should be 'read' or 'head'"),
    ],
)
def test_a_wrong_setting_is_told_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """The name of the variable, its value, and what it should be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as caught:
        settings.load()
    assert str(caught.value).startswith(told)


def test_an_unknown_variable_is_reported_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment or in .env; values are not repeated, and what others call theirs is left alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PLATEWAY_BUKET_URL=s3://hush\nOTHER=1\n")
    monkeypatch.setenv("PLATEWAY_SETLE_SECONDS", "hush")
    monkeypatch.setenv("PLATEWAY_XYZZY", "1")
    monkeypatch.setenv("PLATEWAY_SETTLE_SECONDS", "3s")
    found = settings.unknown_variables()
    assert found[:2] == [
        "PLATEWAY_BUKET_URL is no setting; did you mean PLATEWAY_BUCKET_URL?",
        "PLATEWAY_SETLE_SECONDS is no setting; did you mean PLATEWAY_SETTLE_SECONDS?",
    ]
    assert found[2].startswith("PLATEWAY_XYZZY is no setting")
    assert "hush" not in str(found)
