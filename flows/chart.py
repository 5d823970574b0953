"""Draw what artifacts show: a picture of the last days, as an SVG that the Prefect UI renders in markdown."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from datetime import date
from html import escape
from typing import NamedTuple

from plateway.wire import DayReport


class Series(NamedTuple):
    """What is drawn of each day."""

    name: str
    colour: str


BARS = (Series("events", "#8b9db5"), Series("exports", "#2f81f7"), Series("archived", "#2da44e"))
LINE = Series("waiting", "#e3873b")
WIDTH, HEIGHT = 860, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 40, 30
STEPS = (1, 2, 5)  # between the lines, times a power of ten
INK, GRID = "#57606a", "#d8dee4"


def days(told: Sequence[DayReport]) -> str:
    """Write the picture as markdown; it stays readable on dark and light pages."""
    image = base64.b64encode(svg(told).encode()).decode()
    return f"![{summary(told)}](data:image/svg+xml;base64,{image})"


def summary(told: Sequence[DayReport]) -> str:
    """Describe the chart in words, for readers who cannot see it."""
    sums = {series.name: sum(getattr(day, series.name) for day in told) for series in BARS}
    counts = ", ".join(f"{count:,} {name}" for name, count in sums.items())
    return f"Last {len(told)} days: {counts}; {told[-1].waiting if told else 0:,} waiting now"


def svg(told: Sequence[DayReport]) -> str:
    """Draw a group of bars for each day, and a line for what was waiting at its end."""
    step, top = scale(max((getattr(day, series.name) for day in told for series in (*BARS, LINE)), default=0))
    slot = (WIDTH - LEFT - RIGHT) / max(len(told), 1)
    wide = min(max(slot * 0.8 / len(BARS), 1.0), 24.0)
    bars = [
        bar(series, day, left=LEFT + slot * (at + 0.5) + wide * (number - len(BARS) / 2), wide=wide, top=top)
        for at, day in enumerate(told)
        for number, series in enumerate(BARS)
    ]
    points = " ".join(f"{LEFT + slot * (at + 0.5):.1f},{height(day.waiting, top):.1f}" for at, day in enumerate(told))
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="system-ui,sans-serif" font-size="12">',
            f"<title>{escape(summary(told))}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
            *legend(),
            *grid(step, top),
            *bars,
            f'<polyline points="{points}" fill="none" stroke="{LINE.colour}" stroke-width="2"/>',
            *dates([day.day for day in told], slot),
            "</svg>",
        ]
    )


def scale(most: int) -> tuple[int, int]:
    """Choose the round step between lines and the end of the scale, at most five steps up."""
    step = next(size * 10**power for power in itertools.count() for size in STEPS if size * 10**power * 5 >= most)
    return step, max(1, -(-most // step)) * step


def height(count: int, top: int) -> float:
    """Turn a count into a height on the page."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - count / top)


def bar(series: Series, day: DayReport, *, left: float, wide: float, top: int) -> str:
    """Draw one bar; nothing for nothing."""
    count: int = getattr(day, series.name)
    if not count:
        return ""
    high = height(count, top)
    title = f"<title>{day.day:%d %b}: {count:,} {series.name}</title>"
    size = f'width="{wide:.1f}" height="{HEIGHT - BOTTOM - high:.1f}"'
    return f'<rect x="{left:.1f}" y="{high:.1f}" {size} fill="{series.colour}">{title}</rect>'


def legend() -> list[str]:
    """Draw the legend."""
    entries = [
        f'<rect x="{LEFT + 110 * at}" y="14" width="11" height="11" rx="2" fill="{series.colour}"/>'
        f'<text x="{LEFT + 110 * at + 17}" y="24" fill="{INK}">{series.name}</text>'
        for at, series in enumerate((*BARS, LINE))
    ]
    return [*entries, f'<text x="{WIDTH - RIGHT}" y="24" text-anchor="end" fill="{INK}">per day, UTC</text>']


def grid(step: int, top: int) -> list[str]:
    """Draw the scale."""
    return [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height(count, top):.1f}" y2="{height(count, top):.1f}" '
        f'stroke="{GRID}"/><text x="{LEFT - 8}" y="{height(count, top) + 4:.1f}" text-anchor="end" '
        f'fill="{INK}">{count:,}</text>'
        for count in range(0, top + 1, step)
    ]


def dates(shown: Sequence[date], slot: float) -> list[str]:
    """Write every fifth date below the bars, counted from today."""
    return [
        f'<text x="{LEFT + slot * (at + 0.5):.1f}" y="{HEIGHT - 10}" text-anchor="middle" '
        f'fill="{INK}">{day:%d %b}</text>'
        for at, day in enumerate(shown)
        if (len(shown) - 1 - at) % 5 == 0
    ]
