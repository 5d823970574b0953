"""One Prefect flow per file. What the library logs of each fact belongs into the runs' logs."""

import logging

logging.getLogger("plateway").setLevel(logging.INFO)
