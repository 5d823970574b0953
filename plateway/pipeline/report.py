"""The daily report: where the events of each system are, which are stuck, and when the instruments' disks are full."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

from plateway import bench, folder, wire
from plateway.bench import EVENTS
from plateway.errors import PlatewayError
from plateway.ledger import Ledger, SystemFigures
from plateway.pipeline.context import Site

DAYS = 30  # that the report looks back
DAY = 86_400.0  # seconds
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
OVERDUE = timedelta(minutes=10)  # age of a message that is reported
NAMED = 5  # stuck events that an alert names


def report(site: Site, *, now: datetime | None = None, stuck_after: timedelta | None = None) -> wire.Report:
    """Return the figures of the site, and what needs attention.

    ``stuck_after`` takes precedence over each system's own limit.
    """
    now = now or site.catalog.now()
    figures = {one.system: one for one in site.catalog.figures(now=now)}
    stuck = _stuck(site, figures, now=now, after=stuck_after)
    disks = _disks(site, figures)
    return wire.Report(
        at=now,
        systems=[_told(figures[system]) for system in sorted(figures)],
        days=days(site, now=now),
        stuck=stuck,
        disks=disks,
        alerts=[
            *_harm(site, now),
            *alerts(stuck, disks, now=now),
            *_overdue_messages(site, now),
            *_weak_proof(site, figures),
        ],
    )


def days(site: Site, *, now: datetime | None = None) -> list[wire.DayReport]:
    """Return what was announced, exported and archived on each of the last 30 days, oldest first."""
    history = site.catalog.history(days=DAYS, now=now or site.catalog.now())
    return [
        wire.DayReport(day=day.day, events=day.events, exports=day.exports, archived=day.archived, waiting=day.waiting)
        for day in history
    ]


def forecast(systems: Sequence[str], *, free: int | None, rate: int, safe: int) -> wire.DiskReport:
    """Forecast when a disk will be full, from its free bytes and those written in the last 24 hours.

    ``free`` is None for a missing disk. Without a rate there is no forecast.
    """
    seconds = free / rate * DAY if free is not None and rate > 0 else None
    if free is None:
        state = "the disk is not there"
    elif free == 0:
        state = "the disk is full"
    elif seconds is None:
        state = f"{spoken_size(free)} free, nothing written in a day"
    else:
        state = f"{spoken_time(seconds)} left"
    return wire.DiskReport(
        systems=list(systems),
        free=free,
        rate=rate,
        seconds_left=seconds,
        safe_to_purge=safe,
        alert=free is None or free == 0 or (seconds is not None and seconds < DAY),
        text=f"{', '.join(systems)}: {state}, {spoken_size(safe)} safe to purge",
    )


def alerts(stuck: Sequence[wire.StuckEvent], disks: Iterable[wire.DiskReport], *, now: datetime) -> list[wire.Alert]:
    """List what needs attention: disks first, then the systems with stuck events."""
    found = [wire.Alert(about=[f"disk {' '.join(disk.systems)}"], text=disk.text) for disk in disks if disk.alert]
    for system in sorted({one.system for one in stuck}):
        ours = sorted((one for one in stuck if one.system == system), key=lambda one: one.since)
        named = [f"{one.id} {'; '.join(one.reasons) or one.state}" for one in ours[:NAMED]]
        more = [f"{len(ours) - NAMED:,} more"] if len(ours) > NAMED else []
        oldest = spoken_time((now - ours[0].since).total_seconds())
        text = f"{system}: {len(ours):,} stuck, the oldest for {oldest}: {' · '.join(named + more)}"
        found.append(wire.Alert(about=[str(one.id) for one in ours], text=text))
    return found


def _harm(site: Site, now: datetime) -> list[wire.Alert]:
    """Report events whose copy is lost or changed, by system: these come first."""
    found: dict[str, list[Ledger]] = {}
    for ledger in site.catalog.harmed(now=now):
        found.setdefault(ledger.event.system, []).append(ledger)
    told = []
    for system, ledgers in sorted(found.items()):
        named = [f"{one.ref} {'; '.join(one.state(now).reasons)}" for one in ledgers[:NAMED]]
        more = [f"{len(ledgers) - NAMED:,} more"] if len(ledgers) > NAMED else []
        text = f"{system}: {len(ledgers):,} lost or changed: {' · '.join(named + more)}"
        told.append(wire.Alert(about=[str(one.ref) for one in ledgers], text=text))
    return told


def _overdue_messages(site: Site, now: datetime) -> list[wire.Alert]:
    """Report targets that have not got messages for long."""
    return [
        wire.Alert(
            about=[f"outbox {one.target.name}"],
            text=f"{one.pending:,} messages to {one.target.name} are pending, the oldest for "
            f"{spoken_time(one.age(now).total_seconds())}: {one.target.error or 'is plateway bridge out running?'}",
        )
        for one in site.catalog.backlogs()
        if one.age(now) > OVERDUE
    ]


def _weak_proof(site: Site, systems: Iterable[str]) -> list[wire.Alert]:
    """Report systems that are purged without reading the copies."""
    weak = [one for one in sorted(systems) if (policy := site.instrument(one).policy).purge and policy.proof == "head"]
    text = "purged on a HEAD request, which is weaker than reading the copy (PLATEWAY_PURGE_PROOF=head)"
    return [wire.Alert(about=[f"proof {' '.join(weak)}"], text=f"{', '.join(weak)}: {text}")] if weak else []


def spoken_time(seconds: float) -> str:
    """Format a duration in the largest unit of which there are at least two: ``14 h``."""
    for unit, size in (("days", DAY), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"


def spoken_size(size: int) -> str:
    """Format bytes in decimal units: ``310 GB``."""
    power = next((power for power in range(len(UNITS)) if size < 999.5 * 1000**power), len(UNITS) - 1)
    amount = size / 1000**power
    return f"{amount:.{int(power > 0 and amount < 9.95)}f} {UNITS[power]}"


def _told(figures: SystemFigures) -> wire.SystemReport:
    known = asdict(figures)
    return wire.SystemReport(**{name: known[name] for name in wire.SystemReport.model_fields})


def _stuck(site: Site, systems: Iterable[str], *, now: datetime, after: timedelta | None) -> list[wire.StuckEvent]:
    limits = {system: after or site.instrument(system).stuck_after for system in systems}
    if not limits:
        return []
    return [
        _held_up(ledger, now)
        for ledger in site.catalog.stuck(before=now - min(limits.values()))
        if now - ledger.event.first_seen >= limits[ledger.event.system]
    ]


def _held_up(ledger: Ledger, now: datetime) -> wire.StuckEvent:
    stands = ledger.state(now)
    return wire.StuckEvent(
        id=ledger.event.id,
        revision=ledger.event.revision,
        system=ledger.event.system,
        state=stands.name,
        since=ledger.event.first_seen,
        reasons=list(stands.reasons),
    )


def _disks(site: Site, figures: dict[str, SystemFigures]) -> list[wire.DiskReport]:
    """Forecast each disk once; systems that share one fill it together."""
    shared: dict[int | str, list[str]] = {}
    for system in sorted(figures.keys() | set(_listed(site.root))):
        device = _device(site.instrument(system).root)
        if device is not None or not _retired(figures.get(system)):
            shared.setdefault(system if device is None else device, []).append(system)
    return [
        forecast(
            systems,
            free=folder.free(site.instrument(systems[0]).root) if isinstance(disk, int) else None,
            rate=sum(figures[one].bytes_last_day for one in systems if one in figures),
            safe=sum(figures[one].safe_to_purge for one in systems if one in figures),
        )
        for disk, systems in shared.items()
    ]


def _listed(root: Path) -> list[str]:
    """List the systems on the bench; none if it is missing; each of its disks is then reported."""
    with suppress(PlatewayError):
        return bench.list_systems(root)
    return []


def _device(root: Path) -> int | None:
    """Return the device of a disk; None if it shows no event directory, so is not mounted."""
    try:
        with folder.translate_errors(root.name):
            return root.stat().st_dev if folder.exists(root, EVENTS) else None
    except PlatewayError:
        return None


def _retired(figures: SystemFigures | None) -> bool:
    """Return whether no event of a system is left on its disk; then a missing disk is fine."""
    return figures is not None and figures.events == figures.purged
