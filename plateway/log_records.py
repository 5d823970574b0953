"""How every process writes its log records: from which level on, and as text or as JSON lines.

`PLATEWAY_LOG_LEVEL` and `PLATEWAY_LOG_FORMAT` decide it for commands, for services (gateway, bridges), and for
processes whose log Prefect configures (worker, sensor, provisioning, flow runs). Log records go to standard error.
"""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any

from plateway.names import PlainFormatter
from plateway.settings import LogSettings

LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"
RUN_FIELDS = ("flow_name", "flow_run_name", "flow_run_id", "task_run_name", "task_run_id")  # that Prefect adds


class JsonFormatter(logging.Formatter):
    """Write a record as one line of JSON in ASCII: time (UTC), level, logger, message; if any, run and exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: str(value) for name in RUN_FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def make_formatter(known: LogSettings, text: str = LINE) -> logging.Formatter:
    """Return the formatter of these settings; ``text`` is the format of text lines."""
    return JsonFormatter() if known.log_format == "json" else PlainFormatter(text)


def configure_command(known: LogSettings) -> None:
    """Write records of a command from WARNING on, its own from the set level on; as text only their messages."""
    handler = logging.StreamHandler()
    handler.setFormatter(make_formatter(known, "%(message)s"))
    logging.lastResort = handler
    if known.log_level is not None:
        logging.getLogger("plateway").setLevel(known.log_level)


def service_config(known: LogSettings) -> dict[str, Any]:
    """Return the configuration (of `logging.config`) of a service: its own records from INFO or the set level on.

    Libraries stay at WARNING or above: their debug lines have addresses and signatures.
    """
    level = known.log_level or "INFO"
    others = "ERROR" if level == "ERROR" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": make_formatter, "known": known}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": others, "handlers": ["stderr"]},
        "loggers": {
            "plateway": {"level": level},
            "httpx": {"level": others},  # its lines have the whole address
            "pika": {"level": "CRITICAL"},
        },
    }


def configure_service(known: LogSettings) -> None:
    """Write the records of this process as `service_config` has it."""
    logging.config.dictConfig(service_config(known))


def adjust_handlers(known: LogSettings) -> None:
    """Make the handlers that another library has installed write at this level and in this format.

    As text they keep that library's format. Only handlers that write to a stream change; those that send records
    to Prefect's API get all from INFO on.
    """
    names = ["", *logging.root.manager.loggerDict]
    handlers = {handler for name in names for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            if known.log_level is not None:
                handler.setLevel(known.log_level)
            if known.log_format == "json":
                handler.setFormatter(JsonFormatter())
    for name in ("plateway", "prefect.plateway"):  # Prefect's get_logger puts its name before ours
        logging.getLogger(name).setLevel("DEBUG" if known.log_level == "DEBUG" else "INFO")
    logging.getLogger("httpx").setLevel(logging.WARNING)
