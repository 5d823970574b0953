"""What the instruments' disks show, for the comparison with the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plateway import folder
from plateway.bench import EVENTS, TRASH, list_systems
from plateway.errors import PlatewayError
from plateway.events import Ref
from plateway.instruments import Instrument
from plateway.ledger import Account, Ledger
from plateway.outcome import Outcome, Result
from plateway.pipeline.context import Site
from plateway.pipeline.places import check_bench
from plateway.pipeline.recover import UNKNOWN


class BenchView:
    """The disks of the instruments. A disk that shows nothing at all is left out, and reported once."""

    def __init__(self, site: Site, systems: Sequence[str] | None) -> None:
        self._site, self._only = site, systems
        self._instruments: dict[str, Instrument | None] = {}  # None: unknown
        self.silent: dict[str, str] = {}  # why, by system
        going = site.catalog.going("raw")
        self._aside = {ledger.event.system for ledger, purge in going if purge.trashed_at is not None}

    def unread(self) -> Iterator[Outcome]:
        """Report the disks that cannot be read."""
        for system, reason in sorted(self.silent.items()):
            yield Outcome(None, system, "reconcile", Result.LATER, reasons=(reason,))

    def systems(self) -> Iterator[Instrument]:
        """List every system whose disk can be read."""
        try:
            there = list_systems(self._site.root)
        except PlatewayError:
            there = []  # each known system reports it
        for name in sorted({*there, *self._site.catalog.systems()}):
            if (instrument := self.instrument(name)) is not None:
                yield instrument

    def instrument(self, system: str) -> Instrument | None:
        """Return a system if it was asked for and its disk shows that it is mounted; else None."""
        if self._only is not None and system not in self._only:
            return None
        if system not in self._instruments:
            instrument = self._site.instrument(system)
            silence = self._silence(instrument)
            if silence is not None:
                self.silent[system] = silence
            self._instruments[system] = None if silence is not None else instrument
        return self._instruments[system]

    def _silence(self, instrument: Instrument) -> str | None:
        """Return why nothing can be concluded from a disk: an empty one is no sign that it is the instrument's."""
        name = instrument.name
        try:
            if not folder.exists(instrument.root, EVENTS):
                return f"{name} shows no {EVENTS} directory at all: is its disk mounted?"
            check_bench(self._site, instrument)
            if name in self._aside and not folder.exists(instrument.root, TRASH):
                return f"{name} shows no trash at all: is its disk mounted?"
        except PlatewayError as error:
            return f"{name} cannot be read: {error}"
        return None

    def inspect(self, account: Account) -> Account:
        """Return the account with what the disk shows of its images."""
        if account.raw != "here" or not (account.sealed or account.export_bucket):
            return account
        instrument = self.instrument(account.system)
        if instrument is None or account.path.startswith(f"{UNKNOWN}/"):
            return account._replace(raw="unknown")
        try:
            if folder.exists(instrument.root, account.path):
                return account
            strayed = folder.exists(instrument.root, _trash_path(account.ref))
        except PlatewayError:  # a disk that fails, or a link in the way
            return account._replace(raw="unknown")
        return account._replace(raw="strayed" if strayed else "missing")

    def inspect_again(self, account: Account, ledger: Ledger) -> Account:
        """Inspect the disk again; images being purged, or purged with another event's, are not missing."""
        if account.raw == "here" and ledger.purge("raw") is not None:
            return account._replace(raw="aside")  # intended, not recorded yet: the purge repairs that
        account = self.inspect(account)
        if account.raw not in {"missing", "strayed"}:
            return account
        self._instruments.pop(account.system, None)  # so that a disk unmounted just now is noticed
        if self.instrument(account.system) is None or self._purged_with_another(ledger):
            return account._replace(raw="unknown")
        return account

    def _purged_with_another(self, ledger: Ledger) -> bool:
        path = f"{ledger.event.path}/"
        return any(
            other.purge("raw") is not None and path.startswith(f"{other.event.path}/")
            for other in self._site.catalog.siblings(ledger.event)
        )


def _trash_path(ref: Ref) -> str:
    return f"{TRASH}/{ref}/images"
