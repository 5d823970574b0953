"""The product as a user meets it: one `plateway demo` on real servers, and everything one may do to it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from plateway import pipeline, settings, simulator
from plateway.local import bringup
from plateway.local.seaweed import PLAIN
from plateway.settings import RUNTIME
from tests.local.test_modes import open_to_others
from tests.soak import SOAK

PLATEWAY = [sys.executable, "-m", "plateway"]
PATIENCE = 240.0  # seconds for anything; machines may be busy
LOOK = 0.25

pytestmark = pytest.mark.timeout(900)


@dataclass
class Site:
    """A site with images that are long due to be purged, and variables and a `.env` that describe it."""

    root: Path
    variables: Mapping[str, str]
    before: Mapping[str, bytes]

    @classmethod
    def make(cls, root: Path) -> "Site":
        for system in ("prince", "aretha"):
            one = simulator.Simulated(
                system=system, dialect="timestep", root=root / "bench" / system, images=2, size=32
            )
            simulator.acquire(one, now=datetime(2026, 1, 1, tzinfo=UTC), number=1)
        for name in ("bucket", "tape", "inbox", "staging"):
            (root / name).mkdir()
        (root / "bucket" / "export.tar").write_bytes(b"a site's own")
        (root / "inbox" / "manifest.json").write_text("{}")
        (root / "buckets.toml").write_text(f'[other]\nurl = "file://{root}/other"\nsystems = ["prince", "aretha"]\n')
        variables = {
            "PLATEWAY_SOURCE_ROOT": f"{root}/bench",
            "PLATEWAY_STAGING_ROOT": f"{root}/staging",
            "PLATEWAY_BUCKET_URL": f"file://{root}/bucket",
            "PLATEWAY_OBJECTS_URL": f"file://{root}/bucket",
            "PLATEWAY_BUCKETS_FILE": f"{root}/buckets.toml",
            "PLATEWAY_DATABASE_URL": f"sqlite:///{root}/catalogue.db",
            "PLATEWAY_PREFECT_DATABASE_URL": f"sqlite+aiosqlite:///{root}/prefect.db",
            "PLATEWAY_ARCHIVE_INBOX": f"{root}/inbox",
            "PLATEWAY_ARCHIVE_TARGET": f"{root}/tape",
            "PLATEWAY_ARCHIVE_URL": "http://127.0.0.1:9/manifests",
            "PLATEWAY_AMQP_URL": "amqp://127.0.0.1:9",
            "PLATEWAY_REDIS_URL": "redis://127.0.0.1:9",
            "PLATEWAY_PURGE_SYSTEMS": "prince,aretha",
            "PLATEWAY_PURGE_REQUIRES": "bucket+archive",
            "PLATEWAY_RAW_LIFESPAN": "30d",
            "PLATEWAY_TOKENS_FILE": f"{root}/tokens.json",
            "PLATEWAY_ACCESS_LOG": f"{root}/access.log",
            "PLATEWAY_WORK_POOL": "the-site",
            "PLATEWAY_SERVE_HOST": "0.0.0.0",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{root}/prefect.db",
            "PREFECT_LOCAL_STORAGE_PATH": f"{root}/storage",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ACCESS_KEY_ID": "the-site",
            "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-site",
            "AWS_SESSION_TOKEN": "the-session",
            "AWS_PROFILE": "the-site",
        }
        here = cls(root, variables, {})
        here.before = here.files()
        return here

    def files(self) -> dict[str, bytes]:
        """Read every file, and name every directory."""
        found = sorted(self.root.rglob("*"))
        return {str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else b"" for path in found}


@dataclass
class Demo:
    """A running demo and what it told when its show was over."""

    home: Path
    process: subprocess.Popen[str]
    told: dict[str, Any]
    site: "Site"

    @property
    def env(self) -> dict[str, str]:
        api = json.loads((self.home / RUNTIME).read_text())["prefect_api_url"]
        auth = bringup.read_auth(self.home)
        return {
            **clean(),
            "PLATEWAY_HOME": str(self.home),
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": auth,
        }

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in another terminal."""
        return subprocess.run(
            [*PLATEWAY, *words], env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def status(self) -> dict[str, dict[str, Any]]:
        """Read the catalogue, which is quicker than a command."""
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(clean()):
                patch.delenv(name)
            site = pipeline.open_site(settings.load(home=self.home))
        try:
            found = [pipeline.status(site, ledger).model_dump(mode="json") for ledger in site.catalog.ledgers()]
        finally:
            site.close()
        return {one["id"]: one for one in found}

    def parts(self) -> dict[str, int]:
        """Find the processes of the parts by what they run."""
        found: dict[str, int] = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # ended, or waiting to be buried
                words = " ".join(process.cmdline())
                found |= {name: process.pid for name, sign in SIGNS.items() if sign in words}
        return found


SIGNS = {
    "prefect": "create_app",
    "s3": "weed",
    "worker": "deployments.worker",
    "sensor": "deployments.sensor",
    "gateway": "plateway serve",
}


def clean() -> dict[str, str]:
    """Return an environment in which nobody has set anything of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PLATEWAY_", "PREFECT_", "AWS_"))}


def until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE:.0f} s"
        time.sleep(LOOK)


def start(home: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    with (home.parent / f"{words[0]}.err").open("a") as messages:
        return subprocess.Popen(
            [*PLATEWAY, *words, "--home", str(home)],
            cwd=home.parent if env else None,
            env=env or clean(),
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            start_new_session=True,
            umask=0,
        )


def document(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Read one JSON document from standard output, which stays open."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    assert text, "it ended without a word"
    told: dict[str, Any] = json.loads(text)
    return told


def stop(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGINT)
    return process.wait(60)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    home, site = folder / "home", Site.make(folder / "site")
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in site.variables.items()))
    process = start(home, "demo", "--events", "4", "--json", env={**clean(), **site.variables})
    try:
        told = document(process)
    except AssertionError as error:
        raise AssertionError((home.parent / "demo.err").read_text()) from error
    try:
        yield Demo(home, process, told, site)
    finally:
        if process.poll() is None:
            stop(process)
        assert process.stdout is not None
        process.stdout.close()


def test_the_show_ends_well(demo: Demo) -> None:
    """All four events are verified; the damaged one was refused and kept, two are freed, the last one came back."""
    told = demo.told
    assert len(told["events"]) == 4
    (refused,) = told["refused"]
    assert "is not the object that was verified" in refused["reasons"][0]
    states = {one["id"]: {"purged"} for one in told["events"]}
    states[refused["id"]] = {"changed", "exported"}  # the next discovery may have come by
    states[told["events"][-1]["id"]] = {"archived"}
    for one in told["events"]:
        assert one["raw_present"] == (states[one["id"]] != {"purged"})
        assert one["state"] in states[one["id"]]
        assert one["seconds"] > 0
        assert len(one["sha256"]) == 64
    assert {one["system"] for one in told["events"]} == {"prince", "aretha"}
    assert httpx.get(told["prefect_ui"], trust_env=False, verify=PLAIN, timeout=30).status_code == 200


def test_the_home_is_private(demo: Demo) -> None:
    """All that the parts of `up` write is for its owner only, whatever the umask."""
    assert {"s3", "prefect", "logs", "bench", "gateway"} <= {path.name for path in demo.home.iterdir()}
    open_ = [name for name in open_to_others(demo.home) if not name.endswith(".vif")]  # SeaweedFS sets their modes
    assert open_ == []


def test_a_site_around_the_demo_stays_as_it_is(demo: Demo) -> None:
    """Whatever environment and `.env` name, nothing of the site was read into the demo, written or removed."""
    assert demo.site.files() == demo.site.before
    events = {one["id"] for one in demo.told["events"]}
    assert set(demo.status()) == events
    assert {path.name for path in (demo.home / "bench").iterdir() if path.is_dir()} == {"prince", "aretha"}
    assert (demo.home / "catalogue.db").stat().st_size > 0
    assert demo.told["gateway"].startswith("http://127.0.0.1:")


def test_the_last_event_came_back_from_tape(demo: Demo) -> None:
    """It is on tape with proof, in a tar that is not ours, and was restored from there to a directory and the bench."""
    archived, last = demo.told["archived"], demo.told["events"][-1]
    assert archived["id"] == last["id"]
    assert archived["evidence"] == "checksum"
    assert archived["restored"] is True
    assert archived["files"] > 0
    assert (demo.home / "tape" / archived["path"]).exists()
    (location,) = json.loads(demo.call("show", last["id"], "--json").stdout)["ledger"]["archives"]
    assert location["path"] == archived["path"]
    assert [file.suffix for file in (demo.home / "inbox" / "accepted").iterdir()] == [".json"]
    assert len(list((demo.home / "restored" / last["id"]).rglob("*.tif*"))) == archived["files"]


def test_other_terminals_see_the_same(demo: Demo) -> None:
    """`status` and `show` find the embedded catalogue and bucket without any setting but the home."""
    status = {one["id"]: one for one in json.loads(demo.call("status", "--json").stdout)["events"]}
    assert set(status) == {one["id"] for one in demo.told["events"]}
    shown = json.loads(demo.call("show", demo.told["events"][1]["id"], "--json").stdout)
    assert shown["ledger"]["purges"][0]["gone_at"]
    assert shown["manifest"]


def test_the_gateway_tells_of_the_same(demo: Demo) -> None:
    """Exports, the ledger and an image come over HTTP, and a pipeline fetches the bundle by its link, without a key."""
    with gateway(demo) as http:
        assert http.get("/ready").json()["status"] == "ready"
        assert http.get("/api/1/exports").status_code == 401
        assert http.get(demo.call("token", "link").stdout.split()[-1]).status_code == 303
        exports = http.get("/api/1/exports").json()
        last = demo.told["events"][-1]
        found = {one["ref_id"]: one for one in exports["data"]}
        assert set(found) <= {one["id"] for one in demo.told["events"]} and last["id"] in found
        bundle = (
            httpx.get(found[last["id"]]["url"], trust_env=False, verify=PLAIN, timeout=60).raise_for_status().content
        )
        assert hashlib.sha256(bundle).hexdigest() == last["sha256"]
        assert http.get(f"/api/1/events/{last['id']}").json()["state"] == "archived"
        (image, *_) = http.get(f"/api/1/events/{last['id']}/images").json()["images"]
        assert hashlib.sha256(http.get(image["url"]).content).hexdigest() == image["sha256"]
        assert last["id"] in http.get("/").text


def test_objects_have_a_bucket_of_their_own(demo: Demo) -> None:
    """A token made in another terminal stores and reads an object at once."""
    secret = demo.call("token", "add", "e2e", "--ttl", "1", "--scope", "write", "--scope", "read").stdout.split()[-1]
    with gateway(demo) as http:
        assert http.put("/objects/a/b", content=b"1").status_code == 401
        http.headers["Authorization"] = f"Bearer {secret}"
        assert http.put("/objects/a/b", content=b"1").status_code == 200
        assert (http.get("/objects/a/b").content, http.get("/objects").json()["keys"]) == (b"1", ["a/b"])


def test_a_killed_gateway_is_started_again(demo: Demo) -> None:
    """After kill -9 it answers again, at the same address."""
    before = demo.parts()["gateway"]
    os.kill(before, signal.SIGKILL)
    with gateway(demo) as http:
        until(lambda: demo.parts().get("gateway", before) != before and answers(http), "the restart of the gateway")


def gateway(demo: Demo) -> httpx.Client:
    """Send a request to the address that other terminals find."""
    url = json.loads((demo.home / RUNTIME).read_text())["gateway"]
    assert url == demo.told["gateway"]
    return httpx.Client(base_url=url, trust_env=False, verify=PLAIN, timeout=60)


def answers(http: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return http.get("/ready").is_success
    return False


def test_the_damaged_event_is_mended(demo: Demo) -> None:
    """The raw images are there, so the next discovery sends it again, to the same key with the same bytes."""
    (refused,) = demo.told["refused"]
    before = next(one for one in demo.told["events"] if one["id"] == refused["id"])
    until(lambda: demo.status()[refused["id"]]["evidence"] is not None, "the repair")
    after = demo.status()[refused["id"]]
    assert (after["state"], after["key"], after["sha256"]) == ("exported", before["key"], before["sha256"])


def test_a_new_event_goes_its_way(demo: Demo) -> None:
    """What is announced later is sensed, exported and verified as well."""
    ids = announced(demo, "--events", "2", "--rate", "10")
    until(lambda: all(demo.status().get(id_, {}).get("verified_at") for id_ in ids), "the export")


def test_manual_export_through_prefect(demo: Demo) -> None:
    """`prefect deployment run export/plateway` with ids and force sends again what is verified already."""
    event = next(id_ for id_, one in demo.status().items() if one["raw_present"])
    sent = json.loads(demo.call("show", event, "--json").stdout)["ledger"]["export"]["uploaded_at"]
    command = [sys.executable, "-m", "prefect", "deployment", "run", "export/plateway", "--watch"]
    parameters = ["--param", f'event_ids=["{event}"]', "--param", "force=true"]
    done = subprocess.run(
        command + parameters, env=demo.env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads(demo.call("show", event, "--json").stdout)
    assert again["ledger"]["export"]["uploaded_at"] > sent
    assert again["evidence"] == "etag"


def test_credentials_are_those_of_the_block(demo: Demo) -> None:
    """What an operator types into the block holds from the next run on: a wrong secret, and the right one again."""
    (event,) = announced(demo, "--events", "1", secret="wrong")
    until(lambda: "denied" in " ".join(demo.status().get(event, {}).get("reasons", [])), "the refusal")
    assert demo.status()[event]["state"] == "waiting"
    with prefect(demo) as api:
        change_secret(api, json.loads((demo.home / RUNTIME).read_text())["settings"]["secret_access_key"])
    command = [sys.executable, "-m", "prefect", "deployment", "run", "export/plateway", "--watch"]
    done = subprocess.run(
        [*command, "--param", f'event_ids=["{event}"]'],
        env=demo.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert demo.status()[event]["verified_at"]


def prefect(demo: Demo) -> httpx.Client:
    auth = bringup.basic(demo.env)
    return httpx.Client(base_url=demo.env["PREFECT_API_URL"], auth=auth, trust_env=False, verify=PLAIN, timeout=60)


def change_secret(api: httpx.Client, secret: str) -> None:
    """Edit the credentials block, as its page in the UI does."""
    block = api.get("/block_types/slug/aws-credentials/block_documents/name/plateway").raise_for_status().json()
    change = {"data": {"aws_secret_access_key": secret}, "merge_existing_data": True}
    for _ in range(50):  # on SQLite the server answers 503 when two transactions meet
        if (answer := api.patch(f"/block_documents/{block['id']}", json=change)).status_code != 503:
            break
        time.sleep(0.2)
    answer.raise_for_status()


def announced(demo: Demo, *words: str, secret: str | None = None) -> list[str]:
    """Simulate; with a secret, after the block got that one."""
    if secret is not None:
        with prefect(demo) as api:
            change_secret(api, secret)
    told = json.loads(demo.call("simulate", *words, "--json").stdout)
    return [one["id"] for one in told["events"]]


def test_runs_show_the_facts(demo: Demo) -> None:
    """What the library notes of each event is in the log of the run that did it."""
    with prefect(demo) as api:
        told = api.post("/logs/filter", json={"limit": 200, "sort": "TIMESTAMP_DESC"}).raise_for_status().json()
    facts = [one["message"] for one in told if one["name"].startswith("plateway.")]
    assert any("verify verified" in fact for fact in facts)


def test_no_secret_is_told(demo: Demo) -> None:
    """Neither logs nor Prefect's database nor what the commands print hold the key of the S3 server."""
    secret = json.loads((demo.home / RUNTIME).read_text())["settings"]["secret_access_key"]
    assert len(secret) > 15
    for log in (demo.home / "logs").iterdir():
        assert secret not in log.read_text(errors="replace"), log.name
    assert secret not in demo.call("config", "show", "--json").stdout
    with prefect(demo) as api:
        for what in ["flow_runs/filter", "task_runs/filter", "artifacts/filter", "logs/filter", "deployments/filter"]:
            assert secret not in api.post(f"/{what}", json={}).raise_for_status().text, what


def test_a_second_start_on_the_same_home_is_refused(demo: Demo) -> None:
    """It says so and exits 1; the first goes on."""
    for command in ["up", "demo"]:
        second = demo.call(command, "--home", str(demo.home))
        assert second.returncode == 1
        assert str(demo.process.pid) in second.stdout + second.stderr
    assert demo.process.poll() is None


@pytest.mark.parametrize("part", ["worker", "s3", *(["sensor"] if SOAK else [])])
def test_a_killed_part_is_started_again(demo: Demo, part: str) -> None:
    """Whatever dies is back, and events still go their way."""
    before = demo.parts()[part]
    os.kill(before, signal.SIGKILL)
    until(lambda: demo.parts().get(part, before) != before, f"the restart of {part}")
    (event,) = announced(demo, "--events", "1")
    until(lambda: bool(demo.status().get(event, {}).get("verified_at")), "the export")


def test_a_killed_demo_is_taken_over_and_stopped_cleanly(demo: Demo) -> None:
    """After kill -9 of everything's parent, `up` on the same home finds all events, carries on, and stops on Ctrl-C."""
    known = set(demo.status())
    children = psutil.Process(demo.process.pid).children(recursive=True)
    demo.process.kill()
    demo.process.wait(30)
    known |= set(announced(demo, "--events", "1"))
    again = start(demo.home, "up")
    try:
        until(lambda: all(demo.status().get(id_, {}).get("verified_at") for id_ in known), "the take-over")
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        parts = psutil.Process(again.pid).children(recursive=True)
        refused = httpx.get(settings.load(home=demo.home).s3_gateway or "", timeout=60, trust_env=False, verify=PLAIN)
        assert "<Code>AccessDenied</Code>" in refused.text  # the S3 endpoint for reading runs, too
    finally:
        code = stop(again)
        assert again.stdout is not None
        again.stdout.close()
    assert code == 0
    assert not [part for part in parts if part.is_running() and part.status() != psutil.STATUS_ZOMBIE]
