"""Log records of every kind of process: their level, and text or JSON lines."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plateway import log_records, settings
from plateway.errors import Misconfigured

ROOT = Path(__file__).resolve().parent.parent
SERVICE = """
import logging
from plateway import log_records, settings
log_records.configure_service(settings.load_logs())
"""
RUN = """
import logging
from prefect.logging.configuration import setup_logging
setup_logging()
import flows
"""  # as `prefect flow-run execute` imports it
WORKER = """
import logging
from prefect.logging.configuration import setup_logging
from plateway import log_records, settings
setup_logging()
log_records.adjust_handlers(settings.load_logs())
setup_logging()  # Prefect's command does it again
"""
WRITE = """
logging.getLogger("plateway.export").debug("e0: details")
logging.getLogger("plateway.export").info("e1: exported")
logging.getLogger("plateway.export").warning("e2: waits\\nfor \\x1b[1m images")
logging.getLogger("botocore").info("signature")
"""


def written(tmp_path: Path, code: str, **variables: str) -> list[str]:
    """Return what a process with these settings writes to standard error."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PLATEWAY_")}
    env |= {"PREFECT_HOME": str(tmp_path), "PLATEWAY_ENV_FILE": "", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", code + WRITE]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=60).stderr.splitlines()


@pytest.mark.parametrize("code", [SERVICE, RUN, WORKER], ids=["service", "run", "worker"])
def test_every_process_writes_json_lines(tmp_path: Path, code: str) -> None:
    """One object a line, with time, level, logger and message, whatever characters a name has."""
    lines = [json.loads(line) for line in written(tmp_path, code, PLATEWAY_LOG_FORMAT="json")]
    assert [(one["level"], one["logger"], one["message"]) for one in lines] == [
        ("INFO", "plateway.export", "e1: exported"),
        ("WARNING", "plateway.export", "e2: waits\nfor \x1b[1m images"),
    ]
    assert all(one["time"].endswith("+00:00") for one in lines)


@pytest.mark.parametrize(("code", "level"), [(SERVICE, "debug"), (SERVICE, "ERROR"), (WORKER, "WARNING")])
def test_the_level_is_ours(tmp_path: Path, code: str, level: str) -> None:
    """A level in upper or lower case decides what is written; debugging shows no lines of libraries."""
    found = "\n".join(written(tmp_path, code, PLATEWAY_LOG_LEVEL=level))
    assert [f"e{number}:" in found for number in range(3)] == {
        "debug": [True, True, True],
        "WARNING": [False, False, True],
        "ERROR": [False, False, False],
    }[level]
    assert "signature" not in found
    assert "\x1b[1m images" not in found or code is WORKER  # Prefect's own format


def test_a_record_names_its_run_and_its_exception() -> None:
    """A JSON line has the names that Prefect adds to records of a run, and the traceback, in one line."""
    try:
        raise ValueError("no\nimage")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, "failed: %s", ("x",), info)
    record.flow_run_name = "export-1"
    line = log_records.JsonFormatter().format(record)
    found = json.loads(line)
    assert "\n" not in line
    assert (found["flow_run_name"], found["message"]) == ("export-1", "failed: x")
    assert "ValueError: no\nimage" in found["exception"]


def test_a_command_reports_its_error_as_a_record(tmp_path: Path) -> None:
    """With JSON, the error that ends a command and the warnings before it are lines of JSON."""
    env = {**os.environ, "PLATEWAY_LOG_FORMAT": "json", "PLATEWAY_HOME": str(tmp_path), "PLATEWAY_SETTEL": "1"}
    command = [sys.executable, "-m", "plateway", "show", "0000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=tmp_path, timeout=60)
    warning, error = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, warning["level"], error["level"]) == (1, "WARNING", "ERROR")
    assert "no such event" in error["message"]


@pytest.mark.parametrize("name", ["PLATEWAY_LOG_LEVEL", "PLATEWAY_LOG_FORMAT"])
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As for every other setting."""
    monkeypatch.setenv(name, "loud")
    with pytest.raises(Misconfigured, match=name):
        settings.load_logs()
