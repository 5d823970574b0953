"""Access keys of the S3 endpoint, and the locations that it publishes."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

from sqlalchemy import Select, select
from sqlmodel import col

from plateway.catalog.database import Database
from plateway.errors import Conflict, NotFound
from plateway.records import AccessKey, Share

T = TypeVar("T")


class AccessKeys(Database):
    """Who may read at the S3 endpoint, and what is published there."""

    def add_access_key(self, key: AccessKey) -> None:
        """Record a new access key.

        Raises:
            Conflict: its name is taken.
        """
        with self._writing() as session:
            self._take_turn(session)
            if session.scalar(_named(key.name)) is not None:
                raise Conflict(f"a key with name {key.name!r} already exists")
            session.add(AccessKey(**key.model_dump()))

    def access_key(self, access_key_id: str) -> AccessKey | None:
        """Fetch an access key by its id; None if it is unknown."""
        with self._reading() as session:
            return session.get(AccessKey, access_key_id)

    def access_keys(self) -> list[AccessKey]:
        """List all access keys, by name."""
        with self._reading() as session:
            return sorted(session.scalars(select(AccessKey)), key=lambda one: one.name)

    def disable_access_key(self, name: str, *, now: datetime) -> None:
        """Record that a key may not be used any more; a key that is disabled stays as it is.

        Raises:
            NotFound: no key has this name.
        """
        with self._writing() as session:
            key = _required(session.scalar(_named(name).with_for_update()), f"no key with name {name!r} found")
            key.disabled_at = key.disabled_at or now

    def delete_access_key(self, name: str) -> None:
        """Delete a key.

        Raises:
            NotFound: no key has this name.
        """
        with self._writing() as session:
            session.delete(_required(session.scalar(_named(name)), f"no key with name {name!r} found"))

    def shares(self) -> list[Share]:
        """List the published locations, by name."""
        with self._reading() as session:
            return sorted(session.scalars(select(Share)), key=lambda one: one.name)

    def add_share(self, share: Share) -> None:
        """Record a published location.

        Raises:
            Conflict: another location has this name.
        """
        with self._writing() as session:
            self._take_turn(session)
            known = session.get(Share, share.name)
            if known is None:
                session.add(Share(**share.model_dump()))
            elif known.location != share.location:
                raise Conflict(f"{share.name} is {known.location} already: delete it first")

    def delete_share(self, name: str) -> None:
        """Withdraw a published location; its objects stay.

        Raises:
            NotFound: nothing is published under this name.
        """
        with self._writing() as session:
            session.delete(_required(session.get(Share, name), f"nothing is shared as {name!r}"))


def _named(name: str) -> Select[AccessKey]:
    return select(AccessKey).where(col(AccessKey.name) == name)


def _required(row: T | None, problem: str) -> T:
    if row is None:
        raise NotFound(problem)
    return row
