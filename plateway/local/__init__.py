"""One machine: Prefect, S3, sensor, worker and gateway, started, watched and stopped together."""
