"""The how-to pages are true: what they tell to type is typed, on the real S3 server, and what they promise is there.

The endpoint is as awkward as those that the pages are for: not AWS, plain HTTP, a bucket with capitals and an
underscore, and proxies in the environment that answer nobody. Only address and key are put in the place of examples.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
import s3fs  # type: ignore[import-untyped]  # ships no types
from pydicom.dataset import FileMetaDataset

from plateway import simulator
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.local import seaweed
from plateway.store import Store, open_store
from tests.gateway.test_read_only import DICOM, PROXIES, UID, make
from tests.lab import Clock, Lab
from tests.test_docs import LINK, ROOT, blocks, headings, prose

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
START = "README"  # it finds where an image lies, which the others read
CLIENTS = ("aws", "s4cmd", "s5cmd", "rclone")  # programs with a page of their own
NOT_RUN = {"r", "ci"}  # test_ci.py runs the commands of the second
BUCKET = "extraction_5_CT"
FOLDERS = ("images", "images/ct_012", "images/ct_012/20260504", "plates", UID, f"{UID}/{UID}")
ID = "2f1c5d0e-8a4b-4c3d-9e2f-1a2b3c4d5e6f"


@dataclass(frozen=True)
class Desk:
    """Where the pages are followed: an export of four images and one slice of a scan, and the slice as an object."""

    work: Path
    env: Mapping[str, str]
    endpoint: Endpoint
    store: Store
    images: Mapping[str, bytes]

    @property
    def keys(self) -> list[str]:
        return sorted(one.key for one in self.store.list())

    def said(self, text: str) -> str:
        """Put the real address and key in the place of the page's."""
        host = urlsplit(self.endpoint.url or "")
        secret = self.endpoint.secret_access_key
        assert secret is not None
        given = {
            "s3.example.org:7070": host.netloc,
            "s3.example.org": str(host.hostname),
            "YOUR-KEY": str(self.endpoint.access_key_id),
            "YOUR-SECRET": secret.get_secret_value(),
        }
        for word, value in given.items():
            text = text.replace(word, value)
        return text


def slice_of_a_scan() -> bytes:
    """Make a DICOM file of 64 x 64 pixels."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = pydicom.uid.CTImageStorage, UID, "CT"
    data.Rows = data.Columns = 64
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelData = 15, np.arange(64 * 64, dtype="<u2").tobytes()
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def images() -> dict[str, bytes]:
    """Draw four pictures of one plate; the slice lies beside them."""
    drawn = (simulator.draw(7, age=0.2 * n, view=simulator.View(-1, -1, 64), size=64) for n in range(1, 5))
    pictures = {f"Img_r01_c0{n}.tif": simulator.tiff(one) for n, one in enumerate(drawn, start=1)}
    return {**pictures, "slice.dcm": slice_of_a_scan()}


def announce(bench: Path, files: Mapping[str, bytes]) -> None:
    """Write one event as an instrument would."""
    (bench / "aretha" / "events").mkdir(parents=True)
    (bench / "aretha" / "012").mkdir()
    for name, content in files.items():
        (bench / "aretha" / "012" / name).write_bytes(content)
    said = {
        "ref_id": ID,
        "experiment_id": "ct_012",
        "timestamp": "2026-05-04T05:06:07Z",
        "type": "stitch",
        "system": "aretha",
        "local_path": "012",
        "img_count": len(files),
        "metadata": {},
    }
    (bench / "aretha" / "events" / "012.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def desk(server: seaweed.Server, endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A bucket with an export in it, an empty directory to work in, and nothing set but what is in the way."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("desk")
    make(server, BUCKET, *FOLDERS)
    store, files = open_store(f"s3://{BUCKET}", replace(endpoint, bypass_proxy=True)), images()
    store.put(DICOM, [files["slice.dcm"]], size=len(files["slice.dcm"]), part_size=8 << 20, metadata={})
    with closing(Catalog(f"sqlite:///{home}/catalogue.db", clock=(clock := Clock()))) as catalog:
        catalog.upgrade()
        lab = Lab(home, store, clock, catalog)
        announce(lab.bench, files)
        lab.settle()
        assert {one.result for one in lab.export()} == {"exported", "verified"}
    (work / "plate.tif").write_bytes(files["Img_r01_c01.tif"])
    env = {
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
        "HOME": str(work),
        **PROXIES,
    }
    found = Desk(work, env, endpoint, store, files)
    ours = {"ID": ID, "PLATEWAY_HOME": str(home), "PLATEWAY_BUCKET_URL": f"s3://{BUCKET}", "PLATEWAY_BYPASS_PROXY": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        follow(replace(found, env={**env, **ours, **credentials(endpoint)}), START)
    yield found
    s3fs.S3FileSystem.clear_instance_cache()


def credentials(endpoint: Endpoint) -> dict[str, str]:
    """Return the endpoint in the words of its variables."""
    assert endpoint.secret_access_key is not None
    return {
        "AWS_ENDPOINT_URL": str(endpoint.url),
        "AWS_ACCESS_KEY_ID": str(endpoint.access_key_id),
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_access_key.get_secret_value(),
    }


def follow(desk: Desk, name: str) -> str:
    """Do what a page says, first all for the shell, then all for Python; what the shell printed comes back."""
    page = ROOT / "docs" / "how-to" / f"{name}.md"
    script = desk.said("\n".join(text for _, text in blocks(page, "sh")))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=desk.env,
        cwd=desk.work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    names: dict[str, Any] = {"__name__": name}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + desk.said(code), page, "exec"), names)
    return done.stdout


@pytest.fixture
def here(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The desk, with its environment and directory for what runs in this process."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "NO_PROXY", "no_proxy"))]:
        monkeypatch.delenv(name)
    for name, value in desk.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(desk.work)
    return desk


@pytest.mark.parametrize("name", [page.stem for page in PAGES if page.stem not in {START} | NOT_RUN])
def test_a_page_does_what_it_says(name: str, here: Desk) -> None:
    """Nothing fails; images that were fetched are those of the bench; what was put is listed, and deleted again."""
    for program in (name, "curl") if name in CLIENTS else ():
        if not shutil.which(program, path=here.env["PATH"]):
            pytest.skip(f"no {program} here; scripts/install brings the clients, and curl is the system's")
    before = here.keys
    printed = follow(here, name)
    if name in CLIENTS:
        assert "plates/plate.tif" in printed
        assert hashlib.sha256(here.images["Img_r01_c01.tif"]).hexdigest() in printed
    fetched = sorted(here.work.glob(f"{name}-*"))
    assert {path.read_bytes() for path in fetched} <= {here.images["Img_r01_c01.tif"]}
    assert fetched or name not in CLIENTS
    assert here.keys == before
    if name == "s4cmd":  # in a bucket of its own
        assert "s3://dev-anna-s4/\n" in printed
        there = open_store("s3://dev-anna-s4", replace(here.endpoint, bypass_proxy=True))
        assert [one.key for one in there.list() if one.size] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that is there, and a heading that is in it."""
    for link in LINK.findall(prose(page)):
        path, _, heading = link.partition("#")
        if "://" not in link:
            assert (target := page.parent / path if path else page).exists(), link
            assert not heading or heading in headings(target), link


def test_pages_that_are_not_run_say_so() -> None:
    """Whoever reads them knows."""
    for name in NOT_RUN - {"ci"}:
        assert "not run" in (ROOT / "docs" / "how-to" / f"{name}.md").read_text()
