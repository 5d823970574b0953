"""Which site this is, and what identified each of its disks, directories and buckets when it was first used."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import func, select

from plateway.catalog.database import Database
from plateway.errors import Refused
from plateway.records import Event, KnownPlace, Site


class PlaceRecords(Database):
    """The site and its places."""

    def site(self, *, now: datetime) -> UUID:
        """Return the id of the site, made the first time."""
        with self._reading() as session:
            known: Site | None = session.scalar(select(Site))
        if known is not None:
            return known.id
        with self._writing() as session:
            self._take_turn(session)
            known = session.scalar(select(Site))
            if known is None:
                known = Site(id=uuid4(), created_at=now)
                session.add(known)
            return known.id

    def site_created(self) -> datetime | None:
        """Return when the site was first used; None: never yet."""
        with self._reading() as session:
            known: Site | None = session.scalar(select(Site))
            return known.created_at if known else None

    def take_site(self, id: UUID, *, now: datetime) -> None:  # noqa: A002 - it is the id of the site
        """Adopt the id of a site whose catalogue was lost, in an empty catalogue.

        Raises:
            Refused: the catalogue has events, and another id.
        """
        with self._writing() as session:
            self._take_turn(session)
            known = session.scalar(select(Site))
            if known is not None and known.id == id:
                return
            if session.scalar(select(func.count()).select_from(Event)):
                raise Refused(
                    f"the catalogue has events of site {known.id if known else 'none'}: it cannot become {id}"
                )
            if known is not None:
                session.delete(known)
                session.flush()
            session.add(Site(id=id, created_at=now))

    def places(self) -> list[KnownPlace]:
        """List the places that were ever used, by name."""
        with self._reading() as session:
            return list(session.scalars(select(KnownPlace).order_by(KnownPlace.name)))

    def place(self, name: str) -> KnownPlace | None:
        """Return what identified a place when it was first used."""
        with self._reading() as session:
            return session.get(KnownPlace, name)

    def record_place(self, name: str, *, identity: str, marked: bool, now: datetime) -> None:
        """Record what identifies a place from now on."""
        with self._writing() as session:
            self._take_turn(session)
            session.merge(KnownPlace(name=name, identity=identity, marked=marked, recorded_at=now))
