"""Compute positions of marks and bars: horizontal in per cent of the page's width, vertical in pixels.

Templates draw them; the style sheet has the colours.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from plateway.events import Ref
from plateway.ledger import Ledger

MINUTE, HOUR, DAY = 60, 3600, 86_400
STEPS = (
    MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR,
    DAY, 2 * DAY, 7 * DAY, 14 * DAY, 28 * DAY, 91 * DAY, 182 * DAY, 364 * DAY,
)  # fmt: skip
TICKS = 6  # at most, horizontal
LANE = 44  # pixels
MARGIN = 2.5  # per cent left and right of the marks
SETTLED = frozenset({"exported", "archived", "purged"})
COLOURS = 6  # of systems; then they repeat
HIGH = 180  # pixels of a plot of bars
LINES = 4  # at most, above the lowest


class Tick(NamedTuple):
    """A position on a scale."""

    at: float
    label: str


class Mark(NamedTuple):
    """One event in time."""

    x: float
    y: int
    ref: Ref
    state: str
    title: str


@dataclass(frozen=True)
class Timeline:
    """Events in time, a lane for each system."""

    lanes: tuple[Tick, ...]
    ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    height: int
    counts: Mapping[str, int]  # by state
    summary: str


class Bar(NamedTuple):
    """A part of a day's bar."""

    x: float
    width: float
    y: float
    height: float
    colour: str  # its class in the style sheet


class Column(NamedTuple):
    """One day, with the value of each series."""

    x: float
    width: float
    day: date
    title: str
    label: str  # below the column; empty below most
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Bars:
    """Stacked values of each day."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Tick, ...]
    series: Mapping[str, str]  # name and colour
    summary: str
    rows: tuple[tuple[date, tuple[int, ...]], ...]  # the numbers, without days that have none
    height: int = HIGH


def timeline(ledgers: Sequence[Ledger], *, now: datetime) -> Timeline | None:
    """Place events on a timeline, by the time of their images. Returns None without events."""
    if not ledgers:
        return None
    times = [ledger.event.timestamp for ledger in ledgers]
    first, last = min(times), max(times)
    systems = sorted({ledger.event.system for ledger in ledgers})
    lanes = {system: LANE * number for number, system in enumerate(systems)}

    def across(moment: datetime) -> float:
        span = (last - first).total_seconds()
        part = (moment - first).total_seconds() / span if span else 0.5
        return round(MARGIN + part * (100 - 2 * MARGIN), 3)

    marks = [_mark(ledger, now, x=across(ledger.event.timestamp), top=lanes[ledger.event.system]) for ledger in ledgers]
    counts = Counter(mark.state for mark in marks)
    marks.sort(key=lambda mark: mark.state not in SETTLED)  # events that need attention are drawn on top
    told = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return Timeline(
        lanes=tuple(Tick(top, system) for system, top in lanes.items()),
        ticks=tuple(Tick(across(moment), label) for moment, label in ticks(first, last)),
        marks=tuple(marks),
        height=LANE * len(lanes) + 22,
        counts=counts,
        summary=f"{len(marks)} events from {first:%-d %b %Y %H:%M} to {last:%-d %b %Y %H:%M} UTC: {told}",
    )


def ticks(first: datetime, last: datetime) -> list[tuple[datetime, str]]:
    """Choose round times between two, with their labels."""
    span = (last - first).total_seconds()
    step = next((step for step in STEPS if span / step <= TICKS), STEPS[-1] * max(1, round(span / STEPS[-1] / TICKS)))
    begin = -(-int(first.timestamp()) // step) * step
    moments = [datetime.fromtimestamp(at, UTC) for at in range(begin, int(last.timestamp()) + 1, step)]
    if not moments:
        return [(first, f"{first:%-d %b %H:%M}")]
    days = "%b %Y" if step > 14 * DAY else "%-d %b"
    return [
        (moment, f"{moment:{days if step >= DAY or not moment.hour * 60 + moment.minute else '%H:%M'}}")
        for moment in moments
    ]


def bars(
    counts: Iterable[tuple[date, str, int]], *, series: Mapping[str, str], days: int, today: date, what: str
) -> Bars:
    """Stack the values of each series (name and colour) for each of the last days, including today."""
    dates = [today - timedelta(days=number) for number in reversed(range(days))]
    found: dict[date, Counter[str]] = {day: Counter() for day in dates}
    for day, name, count in counts:
        if day in found:
            found[day][name] += count
    step, top = scale(max((one.total() for one in found.values()), default=0))
    slot = 100 / days
    columns = [
        _column(
            day,
            found[day],
            series,
            x=slot * number,
            slot=slot,
            top=top,
            labelled=(days - 1 - number) % max(7, days // 5) == 0,
        )
        for number, day in enumerate(dates)
    ]
    sums = [f"{sum(one[name] for one in found.values()):,} {name}" for name in series]
    return Bars(
        title=what,
        columns=tuple(columns),
        lines=tuple(Tick(HIGH * (1 - count / top), f"{count:,}") for count in range(0, top + 1, step)),
        series=series,
        summary=f"{what} on each of the last {days} days: {', '.join(sums) or 'none'}",
        rows=tuple((day, tuple(found[day][name] for name in series)) for day in reversed(dates) if found[day].total()),
    )


def colours(names: Sequence[str]) -> dict[str, str]:
    """Assign a colour to each series; after `COLOURS` they repeat."""
    return {name: f"c{number % COLOURS}" for number, name in enumerate(names)}


def scale(most: int) -> tuple[int, int]:
    """Choose the step between lines, and the end of the scale."""
    sizes = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    step = next(size for size in sizes if size * LINES >= most)
    return step, max(1, -(-most // step)) * step


def _mark(ledger: Ledger, now: datetime, *, x: float, top: int) -> Mark:
    event, state = ledger.event, ledger.state(now).name
    plate = f" plate {event.plate}" if event.plate is not None else ""
    title = f"{event.timestamp:%-d %b %Y %H:%M} · {event.system} · {event.experiment}{plate} · {state}"
    return Mark(x, top + 30, ledger.ref, state, title)


def _column(
    day: date, counts: Counter[str], series: Mapping[str, str], *, x: float, slot: float, top: int, labelled: bool
) -> Column:
    piled, height, told = [], 0.0, []
    for name, colour in series.items():
        if counts[name]:
            high = HIGH * counts[name] / top
            height += high
            piled.append(Bar(x + slot * 0.14, slot * 0.72, HIGH - height, high, colour))
            told.append(f"{name} {counts[name]:,}")
    title = f"{day:%a %-d %b %Y}: {', '.join(told) or 'none'}"
    return Column(x, slot, day, title, f"{day:%-d %b}" if labelled else "", tuple(piled))
