"""Read from addresses, without a catalogue: an object, one image out of a bundle, everything below a prefix.

What a store says of its objects, and what a bundle says of itself, is all there is to prove with; nothing is written to
any bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from plateway.buckets import Address
from plateway.bundle import Tail
from plateway.pipeline.line import Outcome
from plateway.store import Objects, Stat


def find(store: Objects, where: Address) -> Iterator[Stat]:
    """List the object of that name and what is in the folder of that name, never what merely begins alike."""
    raise NotImplementedError


def account(store: Objects, key: str) -> Tail | None:
    """Read the manifest of a bundle from its end; None where the object is none.

    Raises:
        Damaged: it is labelled as one of Plateway's bundles, and does not end as one.
    """
    raise NotImplementedError


def cat(store: Objects, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Read an object, or a part of it; a whole one is followed by `Damaged` if what came was wrong.

    Raises:
        NotFound: there is no such object. Damaged: it ends before the part begins.
    """
    raise NotImplementedError


def image(store: Objects, key: str, name: str) -> Iterator[bytes]:
    """Read one image out of a bundle with two ranged reads, compared as `copies.cat` does.

    Raises:
        NotFound: there is no such object or image. Damaged: it is no bundle, or the image is other than it says.
    """
    raise NotImplementedError


def plan(store: Objects, where: Address, found: Sequence[Stat], *, to: Path) -> Iterator[Outcome]:
    """Say what `restore` would write below a directory; nothing is written."""
    raise NotImplementedError


def restore(
    store: Objects, where: Address, found: Sequence[Stat], *, to: Path, beat: Callable[[int], None] | None = None
) -> Iterator[Outcome]:
    """Bring objects into a directory: bundles unpacked and proven by their manifest, others copied and compared.

    May be repeated: what is there and right is kept, other bytes in its place are a failure of that object alone.
    ``beat`` hears of the bytes that are there so far.

    Raises:
        Busy: somebody else writes into the directory. Unavailable: it cannot be written.
    """
    raise NotImplementedError
