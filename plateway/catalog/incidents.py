"""The history of an event that outlives what it is about: damage, refusals, failures and repairs, only ever added."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from plateway.catalog.database import Database
from plateway.catalog.predicates import INCIDENT
from plateway.catalog.rows import add_incident, own
from plateway.events import Ref
from plateway.outcome import Incidence
from plateway.records import Incident


class Incidents(Database):
    """What went wrong with an event, and what was done about it."""

    def record_request(self, ref: Ref, verb: str, reason: str, *, actor: str, at: datetime) -> None:
        """Append to an event's history that a person asked for something, and why.

        Raises:
            NotFound: nothing announced the event.
        """
        with self._writing() as session:
            own(session, ref)
            add_incident(session, ref, Incidence.REQUEST, verb, reason, at=at, actor=actor)

    def record_incident(self, ref: Ref, kind: Incidence, verb: str, reason: str, *, at: datetime) -> None:
        """Append to an event's history; an entry equal to the last of that kind and verb only increases its count.

        Raises:
            NotFound: nothing announced the event.
        """
        mine = (INCIDENT.event_id == ref.id, INCIDENT.revision == ref.revision)
        query = select(INCIDENT.reason).where(*mine, INCIDENT.kind == kind, INCIDENT.verb == verb)
        with self._reading() as session:
            if session.scalar(query.order_by(INCIDENT.id.desc()).limit(1)) == reason:
                return
        with self._writing() as session:
            own(session, ref)
            self._append(session, ref, kind, verb, reason, at=at)

    def incidents(self, ref: Ref) -> list[Incident]:
        """List an event's history, oldest first."""
        query = select(Incident).where(INCIDENT.event_id == ref.id, INCIDENT.revision == ref.revision)
        with self._reading() as session:
            return list(session.scalars(query.order_by(INCIDENT.at, INCIDENT.id)))
