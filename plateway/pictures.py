"""Small pictures of images, and where an image lies in a stitched view.

Knows file formats and nothing else: bytes and names in, PNG and places out. What is too large to be looked at, and what
is no picture at all, is `Rejected`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plateway.errors import Rejected

SUFFIXES = {  # of files that may be pictures, and what they are called over HTTP
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "jp2": "image/jp2",
    "bmp": "image/bmp",
}
MOST_PLACES = 10_000  # of a grid, empty ones among them
ROW, COLUMN = r"(?:rows?|r)", r"(?:columns?|cols?|col|c)"
GAP, NUMBER = r"[ _.-]?", r"(\d{1,4})(?!\d)"
BEGIN = r"(?<![A-Za-z])"
PLACES = (  # how names tell where an image lies; True: the column comes first
    (re.compile(rf"{BEGIN}{ROW}{GAP}{NUMBER}[ _.,-]*{COLUMN}{GAP}{NUMBER}", re.IGNORECASE), False),
    (re.compile(rf"{BEGIN}{COLUMN}{GAP}{NUMBER}[ _.,-]*{ROW}{GAP}{NUMBER}", re.IGNORECASE), True),
    (re.compile(rf"{BEGIN}y{GAP}{NUMBER}[ _.,-]*x{GAP}{NUMBER}", re.IGNORECASE), False),
    (re.compile(rf"{BEGIN}x{GAP}{NUMBER}[ _.,-]*y{GAP}{NUMBER}", re.IGNORECASE), True),
)


@dataclass(frozen=True)
class Grid:
    """Tiles of one stitched view; rows and columns are counted from 0, from the upper left corner."""

    rows: int
    columns: int
    cells: Mapping[tuple[int, int], str]  # name by row and column; a place without an image is missing


def media(name: str) -> str | None:
    """Say what a file would be over HTTP if it is a picture by its name; None: it is none."""
    return SUFFIXES.get(name.rpartition("/")[2].rpartition(".")[2].lower())


def thumbnail(content: bytes, *, size: int) -> bytes:
    """Make a PNG of at most `size` pixels along either side, of the first page.

    Raises:
        Rejected: it is no picture that can be read, or too large.
    """
    raise Rejected("not yet")


def grid(names: Iterable[str]) -> Grid | None:
    """Arrange images whose names tell row and column, such as ``Img_r10_c15.tif``, ``row2-col3.png``, ``x1_y2.tif``.

    Names that are otherwise alike belong together; of several such sets the largest one is taken, the first of equals.
    None: fewer than two images tell their place, two tell the same one, or nearly all places would be empty.
    """
    sets: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for name in names:
        if media(name) and (told := _place(name)):
            alike, row, column = told
            sets[alike].append((row, column, name))
    tiles = max(sets.values(), key=len, default=[])
    if len(tiles) < 2:
        return None
    top, left = (min(tile[axis] for tile in tiles) for axis in (0, 1))
    cells = {(row - top, column - left): name for row, column, name in tiles}
    rows, columns = (1 + max(place[axis] for place in cells) for axis in (0, 1))
    if len(cells) < len(tiles) or rows * columns > min(MOST_PLACES, 100 * len(tiles)):
        return None
    return Grid(rows, columns, cells)


def _place(name: str) -> tuple[str, int, int] | None:
    """Read row and column out of a name, and say what is left of it."""
    folder, slash, last = name.rpartition("/")
    for pattern, column_first in PLACES:
        if found := pattern.search(last):
            row, column = (int(found[2]), int(found[1])) if column_first else (int(found[1]), int(found[2]))
            return f"{folder}{slash}{last[: found.start()]}\0{last[found.end() :]}", row, column
    return None
