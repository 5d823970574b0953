"""Everything that one machine runs: kept running, stopped in order, taken over."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from plateway import endpoint, settings
from plateway.cli.console import PlainConsole
from plateway.errors import Busy, Unavailable
from plateway.local import bringup, seaweed
from plateway.local.supervisor import (
    HOME,
    LOCK,
    RECORD,
    Part,
    Step,
    Supervisor,
    claim,
    members,
    take_over,
)
from tests.local.stand_in import stand_in


def until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextmanager
def running(home: Path, how: str = "") -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """An `up` in a process of its own, and its part."""
    command = [sys.executable, "-m", "tests.local.stand_in", str(home), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, psutil.Process(int(process.stdout.readline()))
        finally:
            process.kill()


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, be it that nobody has taken note."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_parts_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    """A part starts when those before it are ready, and stops before them; meanwhile it is said what is not ready."""
    lines: list[str] = []
    pending: list[str] = []
    parts: list[Part | Step] = [
        stand_in(tmp_path, "last", after=("step",)),
        Step("step", "Step", lambda: "done here", after=("first",)),
        stand_in(tmp_path, "first"),
    ]
    with Supervisor(tmp_path, parts, lines.append, progress=pending.append) as supervisor:
        assert supervisor.alive() == {"first": True, "last": True}
    assert (tmp_path / "book").read_text().splitlines() == [
        "started first",
        "started last",
        "stopped last",
        "stopped first",
    ]
    assert [line.split()[1] for line in lines[:3]] == ["First", "Step", "Last"]
    assert re.search(r"stopped in [\d.]+ s: last [\d.]+ s, first [\d.]+ s", lines[3])
    assert re.fullmatch(r"starting (Last, First, Step|Last, Step|Last) … \d+ s", pending[0])


def test_a_killed_part_is_started_again_and_said(tmp_path: Path) -> None:
    """A part that dies comes back as another process, after a pause, and a line says so."""
    lines: list[str] = []
    with Supervisor(tmp_path, [stand_in(tmp_path, "one")], lines.append) as supervisor:
        before = supervisor.pids()["one"]
        os.kill(before, signal.SIGKILL)
        until(lambda: supervisor.pids().get("one", before) != before and supervisor.alive()["one"])
    assert any("ended with -9, restarting in 0.5 s" in line for line in lines)


def test_a_part_that_never_starts_ends_the_attempt(tmp_path: Path) -> None:
    """After three tries it says which part, and what did start is stopped again."""
    broken = replace(stand_in(tmp_path, "broken"), command=[sys.executable, "-c", "raise SystemExit(7)"])
    with (
        pytest.raises(Unavailable, match=r"Broken ended with 7 while starting, 3 times: see logs/broken\.log"),
        Supervisor(tmp_path, [stand_in(tmp_path, "one"), broken], lambda site: None),
    ):
        pass
    assert "stopped one" in (tmp_path / "book").read_text()


def test_a_deaf_part_is_killed(tmp_path: Path) -> None:
    """A part that does not end when asked is killed after its time."""
    with Supervisor(tmp_path, [stand_in(tmp_path, "one", deaf=True)], lambda site: None) as supervisor:
        process = psutil.Process(supervisor.pids()["one"])
    assert gone(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_everything(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a terminal that goes away end parts in their own way, and leave no record."""
    with running(tmp_path) as (up, part):
        up.send_signal(number)
        up.wait(30)
        assert gone(part)
    assert (tmp_path / "book").read_text().splitlines()[-1] == "stopped one"
    assert not (tmp_path / RECORD).exists()


def test_a_second_start_says_who_is_running(tmp_path: Path) -> None:
    """The home is taken while one runs, and free as soon as it is gone, however it went."""
    with running(tmp_path) as (up, _):
        with pytest.raises(Busy, match=f"already running on this home: process {up.pid}"), claim(tmp_path):
            pass
        up.kill()
        up.wait()
        with claim(tmp_path):
            assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_up_on_a_taken_home_exits_with_1(tmp_path: Path) -> None:
    """`up` tells the process that holds the home and returns 1."""
    told = io.StringIO()
    with claim(tmp_path):
        assert bringup.up(settings.load(home=tmp_path), Console(file=told)) == 1
    assert f"process {os.getpid()}" in told.getvalue()


def test_parts_do_not_inherit_the_lock(tmp_path: Path) -> None:
    """A part that outlives its supervisor does not hold the home."""
    with claim(tmp_path), Supervisor(tmp_path, [stand_in(tmp_path, "one")], lambda site: None) as supervisor:
        files = [each.path for each in psutil.Process(supervisor.pids()["one"]).open_files()]
        assert str(tmp_path / LOCK) not in files


def test_parts_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    """SIGKILL of the supervisor asks its parts to end (Linux)."""
    with running(tmp_path) as (up, part):
        up.kill()
        until(lambda: gone(part))
    assert (tmp_path / "book").read_text().splitlines()[-1] == "stopped one"


def test_what_a_killed_start_left_is_taken_over(tmp_path: Path) -> None:
    """A part that survived its supervisor is ended by the next start, which then runs its own."""
    with running(tmp_path, "deaf") as (up, part):
        up.kill()
        up.wait()
        assert not gone(part)
        with running(tmp_path) as (_, other):
            assert gone(part)
            assert other.pid != part.pid


def test_what_a_part_started_is_taken_over_as_well(tmp_path: Path) -> None:
    """Processes of a session whose leader is gone end with it; those of other homes stay."""
    script = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, HOME: str(tmp_path)},
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        orphan = psutil.Process(int(leader.stdout.readline()))
        created = psutil.Process(leader.pid).create_time()
    assert members(leader.pid, created, tmp_path / "other") == []
    (tmp_path / RECORD).write_text(json.dumps([{"pid": leader.pid, "created": created}]))
    assert take_over(tmp_path) == 1
    assert gone(orphan)
    assert not (tmp_path / RECORD).exists()


def test_a_stranger_with_a_recorded_number_lives_on(tmp_path: Path) -> None:
    """A process that got the number of an ended part is not ours to end."""
    stranger = subprocess.Popen(["sleep", "60"], env={**os.environ, HOME: str(tmp_path)}, start_new_session=True)
    with stranger:
        created = psutil.Process(stranger.pid).create_time()
        (tmp_path / RECORD).write_text(json.dumps([{"pid": stranger.pid, "created": created - 60}]))
        assert take_over(tmp_path) == 0
        assert stranger.poll() is None
        stranger.kill()


def test_the_embedded_server_runs_under_the_supervisor(tmp_path: Path) -> None:
    """A real S3 server comes back after SIGKILL, and its key is neither said nor in arguments or logs."""
    told = io.StringIO()
    console = Console(file=told, width=200)
    s3 = bringup.Embedded(tmp_path / "s3", seaweed.ports(), seaweed.Identity("plateway"))
    s3.data.mkdir()
    s3 = replace(s3, admin=seaweed.enroll(s3.data / seaweed.CONFIG))
    with Supervisor(tmp_path, [bringup.storage(s3)], console.print) as supervisor:
        before = supervisor.pids()["s3"]
        os.kill(before, signal.SIGKILL)
        until(lambda: supervisor.pids().get("s3", before) != before and supervisor.alive()["s3"])
        seaweed.create(s3.url, "raw", s3.admin)
        seen = " ".join(word for each in psutil.process_iter() for word in _words(each))
    assert s3.url in told.getvalue()
    for text in (told.getvalue(), seen, (tmp_path / "logs" / "s3.log").read_text()):
        assert s3.admin.secret_access_key not in text


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_runtime_tells_other_terminals(tmp_path: Path) -> None:
    """The runtime file has mode 0600, and the settings read the embedded endpoint and key from it."""
    s3 = bringup.Embedded(tmp_path / "s3", {"s3": 12345}, seaweed.Identity("plateway"))
    told = bringup.resolve(settings.load(home=tmp_path), s3)
    bringup.write_runtime(told, s3, 4200)
    file = tmp_path / settings.RUNTIME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    read = settings.load(home=tmp_path)
    assert (read.endpoint_url, read.access_key_id) == ("http://127.0.0.1:12345", s3.admin.access_key_id)
    named = settings.load(home=tmp_path, endpoint_url="http://127.0.0.1:12345")  # as somebody copied it
    for known in (read, named):
        assert endpoint.endpoint_identity(known.bucket_url, known.endpoint) == "embedded"  # whatever its port
    assert read.secret_access_key == told.secret_access_key
    shown = json.loads(file.read_text())
    assert (shown["prefect_ui"], shown["s3_endpoint"]) == ("http://127.0.0.1:4200", s3.url)
    assert shown["gateway"] == "http://127.0.0.1:8000"
    assert read.prefect_ui == "http://127.0.0.1:4200"


def test_a_configured_endpoint_needs_no_server(tmp_path: Path) -> None:
    """With an endpoint of the site, or a bucket that is not S3, no server and no key of ours come into it."""
    site = settings.load(home=tmp_path, endpoint_url="https://s3.example.org", access_key_id="site")
    assert bringup._prepare_storage(site, tmp_path, seaweed.ports()) is None
    memory = settings.load(home=tmp_path, bucket_url="memory://")
    assert bringup._prepare_storage(memory, tmp_path, seaweed.ports()) is None
    bringup.write_runtime(bringup.resolve(site, None), None, 4200)
    assert json.loads((tmp_path / settings.RUNTIME).read_text())["settings"] == {}


def test_the_last_runtime_is_no_configuration(tmp_path: Path) -> None:
    """An endpoint that only the runtime file of an earlier start names is served by us again, with the same key."""
    first = bringup._prepare_storage(settings.load(home=tmp_path), tmp_path, seaweed.ports())
    assert first is not None
    bringup.write_runtime(bringup.resolve(settings.load(home=tmp_path), first), first, 4200)
    second = bringup._prepare_storage(settings.load(home=tmp_path), tmp_path, seaweed.ports())
    assert second is not None
    assert second.admin == first.admin


def test_parts_see_the_settings_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags and the embedded key go before what the environment says, and each setting survives the way."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    monkeypatch.setenv("PLATEWAY_PURGE_SYSTEMS", "aretha")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.chdir(tmp_path)
    s3 = bringup.Embedded(tmp_path / "s3", {"s3": 12345}, seaweed.Identity("plateway"))
    given = settings.load(home=Path("home"), settle_seconds="90s", purge_systems="prince", poll=True)
    told = bringup.resolve(given, s3)
    env = bringup.environment(told, "http://127.0.0.1:4200/api")
    script = "from plateway import settings; print(settings.load().model_dump_json())"
    seen = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert json.loads(seen.stdout) == json.loads(told.model_dump_json())
    assert env["AWS_SECRET_ACCESS_KEY"] == s3.admin.secret_access_key
    assert env["NO_PROXY"].startswith("example.org,127.0.0.1")
    assert s3.admin.secret_access_key not in repr(bringup.RunningParts(told, env, "", "", "", "", s3.url, None))  # type: ignore[arg-type]  # not needed here


def test_archive_places_hold_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts run elsewhere: an inbox or archive that is a path becomes an absolute one, other URLs stay."""
    monkeypatch.chdir(tmp_path)
    given = settings.load(home=Path("home"), archive_inbox="inbox", archive_target="sftp://tape.example.org/dlm")
    told = bringup.resolve(given, None)
    assert told.archive_inbox == str(tmp_path / "inbox")
    assert told.archive_target == "sftp://tape.example.org/dlm"


def test_bridges_run_where_their_servers_are_named(tmp_path: Path) -> None:
    """A message server in the settings gets its bridge, with the URL in its environment and not in its arguments."""
    urls = {"amqp_url": "amqp://dlm:s3cret@mq.example.org", "redis_url": "redis://:s3cret@redis.example.org"}
    told = settings.load(home=tmp_path, bucket_url="memory://", **urls)
    env = bringup.environment(told, "http://127.0.0.1:4200/api")
    bridges = [part for part in bringup.plan(told, None, env) if isinstance(part, Part) and "bridge" in part.command]
    assert [part.command[-2:] for part in bridges] == [["bridge", "amqp"], ["bridge", "redis"]]
    assert bridges[0].environment["PLATEWAY_AMQP_URL"] == urls["amqp_url"]
    out = settings.load(home=tmp_path, bucket_url="memory://", outbox_webhook_url="http://hooks.example.org/?s3cret")
    env = bringup.environment(out, "http://127.0.0.1:4200/api")
    (part,) = [part for part in bringup.plan(out, None, env) if isinstance(part, Part) and "bridge" in part.command]
    assert part.command[-2:] == ["bridge", "out"]
    assert part.environment["PLATEWAY_OUTBOX_WEBHOOK_URL"] == "http://hooks.example.org/?s3cret"
    none = settings.load(home=tmp_path, bucket_url="memory://")
    assert not [part for part in bringup.plan(none, None, env) if part.name in {"amqp", "redis", "out"}]


def test_the_gateway_runs_without_prefect(tmp_path: Path) -> None:
    """It waits for catalogue and buckets only; beside our S3 server it has a bucket for objects of its own."""
    s3 = bringup.Embedded(tmp_path / "s3", seaweed.ports(), seaweed.Identity("plateway"))
    told = bringup.resolve(settings.load(home=tmp_path, serve_port=8123), s3)
    assert told.objects_url == bringup.OBJECTS
    env = bringup.environment(told, "http://127.0.0.1:4200/api")
    parts = {part.name: part for part in bringup.plan(told, s3, env)}
    gateway = parts["gateway"]
    assert isinstance(gateway, Part)
    assert (set(gateway.after), gateway.where) == ({"bucket", "catalogue"}, "http://127.0.0.1:8123")
    assert gateway.environment["PLATEWAY_SERVE_PORT"] == "8123"
    assert gateway.environment["PLATEWAY_OBJECTS_URL"] == bringup.OBJECTS
    own = bringup.resolve(settings.load(home=tmp_path, objects_url="s3://mine/x"), s3)
    assert own.objects_url == "s3://mine/x"
    elsewhere = settings.load(home=tmp_path, bucket_url="memory://", serve_host="0.0.0.0", serve_port=8123)
    assert bringup.resolve(elsewhere, None).objects_url is None
    addresses = bringup.write_runtime(elsewhere.model_copy(update={"s3_port": 7070}), None, 4200)
    assert (addresses["gateway"], addresses["s3_gateway"]) == ("http://127.0.0.1:8123", "http://127.0.0.1:7070")
    assert settings.load(home=tmp_path).s3_gateway == "http://127.0.0.1:7070"


def test_ports_are_kept(tmp_path: Path) -> None:
    """A second start takes the ports of the first, so that addresses in blocks and bookmarks hold."""
    known = settings.load(home=tmp_path)
    first = bringup._choose_ports(tmp_path, known)
    assert bringup._choose_ports(tmp_path, known) == first
    drawn = {first[name]["http"] for name in ("prefect", "gateway", "gateway-s3")}
    assert len({*drawn, *first["s3"].values()}) == len(first["s3"]) + 3
    named = bringup._choose_ports(tmp_path, settings.load(home=tmp_path, serve_port=8123, s3_port=7070))
    assert (named["gateway"], named["gateway-s3"]) == ({"http": 8123}, {"http": 7070})


def test_prefect_knows_the_settings_it_is_given(tmp_path: Path) -> None:
    """Every PREFECT_ variable of ours is one that this version of Prefect reads."""
    env = bringup.environment(settings.load(home=tmp_path), "http://127.0.0.1:4200/api")
    script = (
        "import prefect.settings as s; print(s.get_current_settings().to_environment_variables(exclude_unset=True))"
    )
    seen = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    for name in env.keys() - os.environ.keys():
        assert not name.startswith("PREFECT_") or name in seen.stdout, name


def test_nothing_answers_where_nothing_is() -> None:
    """A server that is not there is not ready, and asking raises nothing."""
    nowhere = f"http://127.0.0.1:{seaweed.ports()['s3']}"
    assert not seaweed.ready(nowhere)
    assert not bringup._probe_url(f"{nowhere}/api/health")
    assert not bringup._probe_worker(f"{nowhere}/api/work_pools/resident/workers/filter", time.time())
    with pytest.raises(httpx.TransportError):
        httpx.get(nowhere, trust_env=False)


def test_lines_are_plain_without_a_terminal() -> None:
    """A log file or a journal gets no markup, and nothing of a terminal's colours."""
    file = io.StringIO()
    bringup._print_line(PlainConsole(file=file), "[green]✓[/] catalogue      [dim]0.1 s[/]")
    assert file.getvalue() == "✓ catalogue      0.1 s\n"
