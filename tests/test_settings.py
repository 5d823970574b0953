"""What a site can set: the rules that connect settings."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from plateway import settings


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
