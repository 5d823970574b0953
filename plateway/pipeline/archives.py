"""Write what is not on tape yet to the archive, for sites without an archiver of their own."""

from __future__ import annotations

from datetime import date, datetime

from plateway.pipeline.line import Line, Outcome


def archive(
    line: Line, *, before: date | None = None, dry_run: bool = False, now: datetime | None = None
) -> list[Outcome]:
    """Write the verified exports of past days to the archive, one tar for each kind, experiment and day (UTC).

    Only days before ``before``, and before today. A tar counts when it was read back; its manifest then comes in by
    the same door as anybody's. What arrives late goes into ``<date>.2.tar``, ``<date>.3.tar``. May be repeated: what a
    run that was cut off has written is found and told, not written again. A dry run says what would go where.

    Raises:
        Misconfigured: there is no archive.
    """
    raise NotImplementedError
