"""Examples and tutorials of the documentation run; tables name every setting and command; links have targets."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from plateway import (
    cli,
    events,
    findings,
    pipeline,
    records,
    settings,
    simulator,
)
from plateway.instruments import Instrument
from plateway.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return the code blocks of a page, each with the number of lines before it."""
    text = page.read_text()
    return [(text.count("\n", 0, found.start(2)), found[2]) for found in BLOCK.finditer(text) if found[1] == language]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no settings."""
    for name in [name for name in os.environ if name.startswith(("PLATEWAY_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def site(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with a bucket and one exported event of each of two instruments; the settings name it."""
    (bare / "bucket").mkdir()
    monkeypatch.setenv("PLATEWAY_HOME", str(bare))
    monkeypatch.setenv("PLATEWAY_BUCKET_URL", (bare / "bucket").as_uri())
    monkeypatch.setenv("PLATEWAY_SETTLE_SECONDS", "0")
    dialects: dict[str, simulator.Dialect] = {"prince": "timestep", "aretha": "imaging event"}
    for system, dialect in dialects.items():
        instrument = simulator.Simulated(system, dialect, bare / "bench" / system, images=2, size=32)
        simulator.acquire(instrument, now=datetime.now(UTC))
    with closing(pipeline.open_site(settings.load())) as site:
        site.catalog.upgrade()
        pipeline.register(site)
        exported = pipeline.each(pipeline.export, site, pipeline.due(site, "export"))
        assert [outcome.result for outcome in exported] == ["exported"] * 2
        verified = pipeline.each(pipeline.verify, site, pipeline.due(site, "verify"))
        assert [outcome.result for outcome in verified] == ["verified"] * 2


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_examples_run(page: Path, request: pytest.FixtureRequest) -> None:
    """Every example in Python runs, one after the other; those about buckets on a real server."""
    names: dict[str, Any] = {"__name__": page.stem}
    if page.stem == "buckets":
        names["endpoint"] = request.getfixturevalue("endpoint")
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, page, "exec"), names)


def script(page: Path, address: str) -> str:
    """Join the blocks of a tutorial to one shell script; each Python block runs after all those before it."""
    steps, program = ["set -e"], ""
    for language, code in BLOCK.findall(page.read_text().replace("http://127.0.0.1:8000", address)):
        if language == "sh":
            steps.append(code)
        elif language == "python":
            program += code
            steps.append(f"python - <<'PROGRAM'\n{program}PROGRAM")
    return "\n".join(steps)


@pytest.fixture
def gateway(site: None) -> Iterator[str]:
    """Serve the site's gateway, and return its address."""
    command = [sys.executable, "-m", "plateway", "serve", "--port", "0"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.kill()


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run(page: Path, bare: Path, request: pytest.FixtureRequest) -> None:
    """Every command of a tutorial succeeds, or fails with the exit code that the text gives."""
    address = request.getfixturevalue("gateway") if page.stem == "researcher" else ""
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = ["bash", "-c", script(page, address)]
    done = subprocess.run(command, cwd=bare, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    promised = re.findall(r"^The exit code is (\d)", page.read_text(), re.MULTILINE)
    assert re.findall(r"^exit code (\d)$", done.stdout, re.MULTILINE) == promised


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "json")], ids=lambda page: page.name)
def test_documents_are_json(page: Path) -> None:
    """Every block of JSON can be parsed."""
    for _, text in blocks(page, "json"):
        json.loads(text)


def test_announcements_are_accepted() -> None:
    """The example of each event format is accepted."""
    examples = [text for _, text in blocks(ROOT / "docs" / "events.md", "json")]
    assert len(examples) == 2
    for text in examples:
        system = json.loads(text)["system"]
        assert events.parse(text.encode(), Instrument(system, Path(system))).metadata


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs").glob("*/*.md"))], ids=lambda page: page.stem)
def test_links_have_targets(page: Path) -> None:
    """Every relative link names an existing file, and an existing heading."""
    missing = []
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            missing.append(link)
    assert missing == []


def listed(nav: Any) -> Iterator[str]:
    """Name the pages of a navigation, at any depth."""
    if isinstance(nav, str):
        yield nav
    for one in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from listed(one)


def test_every_page_is_in_the_navigation() -> None:
    """The documentation site lists each page of docs/ once, and otherwise only pages that its hook adds."""
    (nav,) = re.findall(r"^nav:\n(.*)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE | re.DOTALL)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    added = ["index.md", "changelog.md", "contributing.md", "benchmarks.md"]
    assert sorted(listed(yaml.safe_load(nav))) == sorted([*pages, *added])


def headings(page: Path) -> set[str]:
    """Name the headings of a page as links do: lower case, dashes for spaces, no punctuation."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def documented_settings() -> Iterator[tuple[list[str], str, str]]:
    """Read the tables of settings: the names in the first cell, the default, the meaning."""
    for line in (ROOT / "docs" / "settings.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        names = re.findall(r"`((?:PLATEWAY|AWS|AUTH)_\w+)`", cells[0])
        if line.startswith("|") and names:
            yield names, cells[1], cells[2].rstrip(" |")


def known_settings() -> dict[str, set[str]]:
    """Name the variables of each setting."""
    return {
        name: set(getattr(field.validation_alias, "choices", [field.validation_alias or f"PLATEWAY_{name.upper()}"]))
        for name, field in Settings.model_fields.items()
    }


def test_every_setting_has_a_line() -> None:
    """The tables have all settings, by all their names, once, and no other."""
    documented = [set(names) for names, _, meaning in documented_settings() if meaning]
    assert sorted(map(sorted, documented)) == sorted(map(sorted, known_settings().values()))


@pytest.mark.usefixtures("bare")
def test_the_defaults_are_as_documented() -> None:
    """What a line gives as default, read as a setting, is the default; `unset` says that there is none."""
    defaults = settings.load()
    for names, default, _ in documented_settings():
        (field,) = [field for field, known in known_settings().items() if known == set(names)]
        value = getattr(defaults, field)
        if default.startswith("unset: "):
            assert value in {None, ()}, names
        else:
            written = re.fullmatch(r"`([^`]+)`", default)
            assert written is not None, names
            assert getattr(settings.load(**{field: written[1]}), field) == value, names


def commands(group: Any, *words: str) -> Iterator[tuple[str, Any]]:
    """Name every command as it is typed."""
    for name, command in group.commands.items():
        command = getattr(command, "loaded", command)  # noqa: PLW2901
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)
        else:
            yield " ".join(["plateway", *words, name]), command


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    """Each command has a section that names each of its options."""
    sections = re.split(r"^#{2,3} ", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)
    (section,) = [text for text in sections if re.match(rf"`{name}(?: \[?ID\]?…?)?(?: NAME)?`\n", text)]
    options = {opt for param in COMMANDS[name].params for opt in param.opts if opt.startswith("--")} - {"--help"}
    assert {option for option in options if not re.search(rf"`{option}\b", section)} == set()


def test_only_existing_commands_are_documented() -> None:
    """Sections name commands that exist."""
    documented = re.findall(
        r"^### `(plateway [a-z -]+?)(?: \[?ID\]?…?)?(?: NAME)?`$", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE
    )
    assert sorted(documented) == sorted(COMMANDS)


def test_every_fault_is_documented() -> None:
    """The page of the command line has every fault of the simulator."""
    text = (ROOT / "docs" / "cli.md").read_text()
    assert {fault for fault in simulator.FAULTS if f"`{fault}`" not in text} == set()


# ------------------------------------------------------------------------------------------------- tables and the code


NAMED = re.compile(r"`((?:plateway|flows|blocks|deployments|tests|scripts|benchmarks)/[\w/.*-]+)`")


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs" / "decisions").glob("*.md"))], ids=lambda page: page.name
)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Every file that a page names exists."""
    named = set(NAMED.findall(page.read_text())) - {"plateway/_project"}
    assert [path for path in named if not any(ROOT.glob(path.rstrip("/")))] == []


def rows(page: str, heading: str) -> list[list[str]]:
    """Read the cells of the first table below a heading, without its head."""
    section = (ROOT / "docs" / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (table, *_) = re.findall(r"^\|.*(?:\n\|.*)*", section, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()][2:]


def quoted(cell: str) -> list[str]:
    """Read what a cell has in backticks."""
    return re.findall(r"`([^`]+)`", cell)


DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
TRIGGERS = [trigger for one in DEPLOYMENTS for trigger in one.get("triggers", ())]


def flow_of(deployment: dict[str, Any]) -> tuple[str, Any]:
    """Load the flow of a deployment; return its name as Prefect has it, and the flow."""
    path, _, name = deployment["entrypoint"].partition(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    return f"{flow.name}/{deployment['name']}", flow


def started(deployment: dict[str, Any]) -> set[tuple[str, ...]]:
    """List what starts a deployment: schedules and events, each with the parameters that it sets."""
    schedules = {(one["cron"], *one.get("parameters", ())) for one in deployment.get("schedules", ())}
    triggers = deployment.get("triggers", ())
    return schedules | {(event, *one.get("parameters", ())) for one in triggers for event in one["expect"]}


def test_the_deployments_are_those_of_prefect_yaml() -> None:
    """Each deployment has a line with its schedules, triggers and parameters, and their number is right."""
    documented = {
        quoted(name)[0]: ({tuple(quoted(one)) for one in when.split("; ")} - {()}, quoted(parameters))
        for name, _, when, parameters in rows("prefect.md", "Flows and deployments")
    }
    known = {}
    for deployment in DEPLOYMENTS:
        name, flow = flow_of(deployment)
        known[name] = (started(deployment), list(inspect.signature(flow.fn).parameters))
    assert documented == known
    numbers = ("Eight", "Nine", "Ten", "Eleven", "Twelve")
    assert f"{numbers[len(known) - 8]} flows, each deployed" in (ROOT / "docs" / "prefect.md").read_text()


def test_the_queues_are_those_of_provisioning() -> None:
    """Each work queue has a line with its priority and how many runs it takes at once."""
    text = (ROOT / "docs" / "prefect.md").read_text().split("| Queue |")[1].split("\n\n")[0]
    documented: dict[str, tuple[int, int | None]] = {}
    for line in text.splitlines()[2:]:
        names, priority, at_once = (cell.strip() for cell in line.strip("|").split(" | "))
        documented |= {name: (int(priority), None if at_once == "no limit" else int(at_once)) for name in quoted(names)}
    assert documented == importlib.import_module("deployments.provision").QUEUES


def test_the_automations_are_those_that_are_made() -> None:
    """Each automation has a line: those of prefect.yaml and those of provisioning."""
    standing = importlib.import_module("deployments.automations").STANDING
    known = {*(one["name"] for one in TRIGGERS), *(one.name for one in standing)}
    assert {name for name, *_ in rows("prefect.md", "Automations")} == known


def test_the_events_are_those_that_are_sent() -> None:
    """Each event that Plateway sends to Prefect has a line."""
    sent = {f"plateway.imaging-event.{what}" for what in importlib.import_module("flows.reporting").EVENTS.values()}
    sent |= {importlib.import_module("deployments.sensor").HEARTBEAT}
    sent |= {"plateway.imaging-event.registered", *(event for one in TRIGGERS for event in one["expect"])}
    assert {quoted(name)[0] for name, _ in rows("prefect.md", "Events for others")} == sent


def test_every_finding_is_documented() -> None:
    """The page of reconcile has every kind of finding, its repair and whether it is done without being asked for."""
    documented = rows("reconcile.md", "Findings")
    assert sorted(quoted(kind)[0] for kind, *_ in documented) == sorted(findings.Kind)
    assert {quoted(kind)[0] for kind, what, _ in documented if what.endswith("Grave.")} == findings.GRAVE
    (harmless, _), (others, _) = rows("reconcile.md", "Repairs")
    assert set(quoted(harmless)) == findings.HARMLESS
    assert {*quoted(harmless), *quoted(others)} == {*findings.Repair} - {findings.Repair.NONE}


def test_every_table_of_the_catalogue_is_documented() -> None:
    """The page of the catalogue has a line for each of its tables."""
    assert {quoted(name)[0] for name, _ in rows("catalog.md", "Tables")} == set(records.Record.metadata.tables)


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs").glob("*/*.md"))], ids=lambda page: page.stem)
def test_only_settings_that_exist_are_named(page: Path) -> None:
    """No page names a setting that does not exist."""
    known = {*itertools.chain.from_iterable(known_settings().values()), *settings.OTHER_VARIABLES}
    assert set(re.findall(r"\bPLATEWAY_[A-Z_]*[A-Z]\b", page.read_text())) - known == set()
