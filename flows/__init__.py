"""One Prefect flow per file. What the library logs of each fact belongs into the runs' logs."""

import logging

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from plateway import log_records, settings


def forward_logs(library: logging.Logger) -> None:
    """Send the library's records to the log of the run; the worker needs no PREFECT_LOGGING_EXTRA_LOGGERS."""
    library.setLevel(logging.INFO)
    if not any(isinstance(handler, APILogHandler) for handler in library.handlers):
        handler = APILogHandler()
        handler.addFilter(lambda _: bool(FlowRunContext.get() or TaskRunContext.get()))
        library.addHandler(handler)


forward_logs(logging.getLogger("plateway"))
log_records.adjust_handlers(settings.load_logs())  # of runs in processes of their own
