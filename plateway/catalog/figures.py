"""Counts of events, for people."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import func, select

from plateway.catalog.conditions import EVENT, EXPORT, LEASE, standing, tied
from plateway.catalog.database import Database
from plateway.records import Event, Export, Lease


class Figures(Database):
    """How many events stand where."""

    def counts(self, now: datetime) -> dict[str, int]:
        """Count the events in each state."""
        query = (
            select(standing(now), func.count())
            .select_from(Event)
            .outerjoin(Export, tied(EXPORT, EVENT))
            .outerjoin(Lease, tied(LEASE, EVENT))
            .group_by(sa.literal_column("1"))
        )
        with self._reading() as session:
            return dict(sorted((name, count) for name, count in session.execute(query)))
