"""What Prefect finds of ours under its entry point group: the resident worker type and the block types."""

from blocks.bucket import Bucket
from blocks.instrument import Instrument
from deployments.worker import ResidentWorker

__all__ = ["Bucket", "Instrument", "ResidentWorker"]
