"""Every file of the corpus becomes its picture or is refused with its reason, quickly, and in little memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from plateway.instruments import IMAGES, image_matcher
from plateway.simulator import Shot, Simulated
from tests.gateway.corpus import Case, corpus
from tests.gateway.sites import site

ROOT = Path(__file__).resolve().parents[2]
SECONDS, BYTES = 5.0, 300 << 20  # for each file


def test_each_file_has_its_outcome() -> None:
    """A picture, checked by its pixels, or a reason; nothing is raised, slow or large."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.gateway.corpus"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    results = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert results.keys() == {case.name for case in corpus()}
    wrong = [(case, found) for case in corpus() if not is_expected(case, found := results[case.name])]
    assert not wrong


def is_expected(case: Case, found: dict[str, Any]) -> bool:
    """Return whether a file became what it should, in time and memory."""
    if case.reason is not None:
        fine = re.search(case.reason, found.get("reason", "")) is not None
    else:
        fine = "picture" in found and case.picture in {"any", found["picture"]}
    return fine and found["seconds"] <= SECONDS and found["bytes"] <= BYTES


def test_the_gateway_answers_without_errors(tmp_path: Path) -> None:
    """Thumbnail, description and page of each file: a picture, or 415 with the reason, and never 500 or more."""
    with site(tmp_path, objects="memory://", open=True) as one:
        files = {case.name: case.content() for case in corpus()}
        instrument = Simulated(
            "aretha", "imaging event", one.lab.bench / "aretha", kinds=("overview",), images=0, size=64
        )
        shot = Shot(instrument, 1, one.lab.clock, started=one.lab.clock())
        for name, content in files.items():
            shot.write(name, content)
        event = shot.announce(shot.event(img_count=sum(map(image_matcher(IMAGES), files))))
        one.lab.settle()
        one.lab.export()
        with httpx.Client(base_url=one.gateway.url, timeout=60, trust_env=False) as client:
            assert client.get(f"/events/{event.id}").status_code == 200
            for case in corpus():
                image = f"/api/1/events/{event.id}/images/{quote(case.name)}"
                drawn = client.get(f"{image}/thumbnail")
                assert drawn.status_code == (415 if case.reason else 200), (case, drawn.text)
                assert case.picture is None or drawn.content.startswith(b"\x89PNG")
                assert client.get(f"{image}/info").status_code in {200, 415}, case
                assert client.get(f"/events/{event.id}/images/{quote(case.name)}").status_code == 200, case
