"""What a site can set: the rules that connect settings."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from plateway import instruments, settings
from plateway.errors import Misconfigured
from plateway.findings import limit


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
    with pytest.raises(Misconfigured, match=name):
        settings.load(**{name: value})
