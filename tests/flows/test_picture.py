"""The picture of the last days: what it shows is what was counted."""

from __future__ import annotations

import base64
from datetime import date, timedelta
from xml.etree import ElementTree as ET

import pytest

from flows import chart
from plateway.wire import DayReport

SVG = "{http://www.w3.org/2000/svg}"


def told(*counts: tuple[int, int, int, int]) -> list[DayReport]:
    """Days from 1 May on, with events, exports, archived and waiting."""
    return [
        DayReport(day=date(2026, 5, 1) + timedelta(at), events=one[0], exports=one[1], archived=one[2], waiting=one[3])
        for at, one in enumerate(counts)
    ]


def drawn(days: list[DayReport]) -> ET.Element:
    """Parse the picture out of its markdown."""
    start, _, rest = chart.days(days).partition("](data:image/svg+xml;base64,")
    assert start.startswith("![")
    return ET.fromstring(base64.b64decode(rest.removesuffix(")")))


def test_bars_are_as_high_as_their_counts() -> None:
    """A bar for each count that is not zero, in one scale."""
    bars = [one for one in drawn(told((100, 50, 0, 7), (25, 25, 25, 0))).iter(f"{SVG}rect") if len(one)]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights == pytest.approx([190, 95, 47.5, 47.5, 47.5], abs=0.2)
    assert [bar[0].text for bar in bars][:2] == ["01 May: 100 events", "01 May: 50 exports"]


@pytest.mark.parametrize(
    ("most", "step", "top"),
    [(0, 1, 1), (1, 1, 1), (5, 1, 5), (6, 2, 6), (417, 100, 500), (900, 200, 1000), (10**6, 2 * 10**5, 10**6)],
)
def test_scales_are_round(most: int, step: int, top: int) -> None:
    """At most five round steps, and the highest count fits."""
    assert chart.scale(most) == (step, top)


@pytest.mark.parametrize("days", [told(), told((0, 0, 0, 0)), told(*[(1, 1, 1, 1)] * 400)])
def test_any_number_of_days_can_be_drawn(days: list[DayReport]) -> None:
    """Also none, and none with anything in it."""
    assert drawn(days).tag == f"{SVG}svg"


def test_it_says_in_words_what_it_shows() -> None:
    """For those who cannot see it."""
    assert (
        chart.summary(told((3, 2, 1, 5), (3, 2, 1, 4))) == "Last 2 days: 6 events, 4 exports, 2 archived; 4 waiting now"
    )
