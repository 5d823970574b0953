"""Plateway moves imaging events from lab instruments to S3 and tape, and frees the bench only with proof."""

__version__ = "0.1.0"
