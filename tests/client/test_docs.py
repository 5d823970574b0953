"""The page of the clients is true: its examples run, one after the other, against a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plateway.client import Plateway, RestStore
from tests.client.conftest import Laboratory
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "client.md"
EXAMPLE = "https://plateway.example.org"


def test_examples_run(laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example does what the page says."""
    monkeypatch.chdir(tmp_path)
    secret = laboratory.site.gateway.token("docs")
    Path("token.txt").write_text(f"{secret}\n")
    names: dict[str, Any] = {"__name__": "client"}
    try:
        for line, code in blocks(PAGE, "py"):
            exec(compile("\n" * line + code.replace(EXAMPLE, laboratory.url), PAGE, "exec"), names)
    finally:
        names["lab"].close()
    assert len(names["growth"]) == len(laboratory.stitches) and set(names["held"]) == set(names["images"])


def test_nothing_is_told_that_is_not_there() -> None:
    """The tables have every method of the clients."""
    text = PAGE.read_text()
    methods = {name for one in (Plateway, RestStore) for name in vars(one) if not name.startswith("_")}
    assert {name for name in methods - {"close", "create"} if f"`{name}(" not in text} == set()
