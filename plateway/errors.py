"""What can go wrong, as one tree.

    PlatewayError
    ├── Transient           waiting may help, so it is tried again
    │   ├── Unavailable     a server, disk or network does not answer as it should
    │   │   ├── DiskUnavailable  a disk of this machine is full, read-only or fails
    │   │   └── CatalogUnavailable  the catalogue's database does not answer
    │   ├── Unsettled       the source changed, vanished or cannot be read right now
    │   └── Busy            somebody else is at it
    └── Permanent           waiting does not help
        ├── Rejected        an announcement that cannot be accepted
        ├── NotFound        no such event, object or bucket
        ├── Denied          credentials or permissions
        ├── Conflict        other bytes are already there
        │   └── Taken       where files of a bundle belong; at another key there is room
        ├── Damaged         stored bytes are not the ones recorded
        ├── Refused         a safety rule says no
        └── Misconfigured   a setting is wrong

Messages name the thing and the numbers; never a secret, a signed URL or a server path.
"""

from enum import StrEnum


class PlatewayError(Exception):
    """Anything Plateway raises on purpose."""

    code: str = ""  # what an endpoint answered, like ``NotImplemented``; empty where none answered


class Transient(PlatewayError):
    """Waiting may help."""


class Unavailable(Transient):
    """A server, disk or network does not answer as it should."""


class DiskUnavailable(Unavailable):
    """A disk of this machine is full, read-only or fails; no endpoint is to blame."""


class CatalogUnavailable(Unavailable):
    """The catalogue's database does not answer; neither an event nor an endpoint is to blame."""


class Unsettled(Transient):
    """The source changed, vanished or cannot be read right now."""


class Busy(Transient):
    """Another worker holds the lease."""


class Permanent(PlatewayError):
    """Waiting does not help."""


class Rejected(Permanent):
    """An announcement that cannot be accepted; the message is the exact reason."""


class NotFound(Permanent, KeyError):
    """No such event, object or bucket."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


class Denied(Permanent):
    """Credentials or permissions do not allow it."""


class Conflict(Permanent):
    """Other bytes are already there; nothing was overwritten."""


class Taken(Conflict):
    """Other bytes are at the keys of a bundle's files; another key is free."""


class Damage(StrEnum):
    """What is wrong with a copy."""

    LOST = "lost"  # nothing is there
    CHANGED = "changed"  # other bytes are there, or they cannot be read whole


class Damaged(Permanent):
    """Stored bytes are not the ones recorded; ``damage`` tells modified from missing ones apart."""

    def __init__(self, message: str, *, damage: Damage = Damage.CHANGED) -> None:
        super().__init__(message)
        self.damage = damage


class Refused(Permanent):
    """A safety rule forbids it; ``reasons`` lists why."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class Misconfigured(Permanent):
    """A setting is wrong."""
