"""Make thumbnails, and compute the position of an image in a stitched view.

Input is bytes and names, output is PNG and positions. The bytes are decoded by `decoders`.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from plateway.gateway import decoders
from plateway.gateway.decoders import Decoded

Pixels = npt.NDArray[Any]
Levels = tuple[float, float]  # values that become black and white
KindLevels = Mapping[str, Levels]  # by sample type

SUFFIXES = {  # suffix and media type of picture files
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "jp2": "image/jp2",
    "bmp": "image/bmp",
    "dcm": "application/dicom",
    "npy": "application/octet-stream",
}
STYLE = 2  # increase it when the same image gets another thumbnail
LEAST = 512  # smallest longer side, in pixels, of the data from which a thumbnail is made
SAMPLED = 1 << 16  # approximate number of pixels from which levels are chosen
DARK, BRIGHT = 0.5, 99.8  # percentiles that become black and white
MOST_PLACES = 10_000  # cells of a grid, including empty ones
ROW, COLUMN = r"(?:rows?|r)", r"(?:columns?|cols?|col|c)"
GAP, NUMBER = r"[ _.-]?", r"(\d{1,4})(?!\d)"
BEGIN = r"(?<![A-Za-z])"
PLACES = (  # patterns of row and column in names; True: the column comes first
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
    cells: Mapping[tuple[int, int], str]  # name by row and column; empty cells are missing


def media(name: str) -> str | None:
    """Return the media type of a picture by its name, or None if it is not a picture."""
    return SUFFIXES.get(PurePosixPath(name).suffix[1:].lower())


def thumbnail(content: bytes, *, size: int, levels: KindLevels | None = None) -> bytes:
    """Make a PNG of at most `size` pixels along either side, of the first page, upright.

    TIFF in grey, and whatever has more than 8 bits, is stretched between its percentiles 0.5 and 99.8, or between the
    given `levels` of its sample type; other pictures keep their colours. Nothing is enlarged.

    Raises:
        Rejected: it is not a picture that can be decoded, or has more than 67 million pixels or 128 MiB of them.
    """
    found = decoders.decode(content, max(size, LEAST))
    image = _drawn(found, size, (levels or {}).get(found.kind))
    image.thumbnail((size, size), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def levels(content: bytes) -> tuple[str, Levels] | None:
    """Return the sample type of a picture and the values between which it is stretched; None: its colours are kept.

    Raises:
        Rejected: as `thumbnail`.
    """
    found = decoders.decode(content, LEAST)
    between = choose_levels(averaged(found.pixels, LEAST)) if found.stretch and found.levels is None else None
    return between and (found.kind, between)


def grid(names: Iterable[str]) -> Grid | None:
    """Arrange images whose names have row and column, such as ``Img_r10_c15.tif``, ``row2-col3.png``, ``x1_y2.tif``.

    Names that are equal apart from the numbers form a set; the largest set is used, the first of equal ones. Returns
    None if fewer than two images have a position, two have the same one, or nearly all cells would be empty.
    """
    sets: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for name in names:
        if media(name) and (told := _place(name)):
            alike, row, column = told
            sets[alike].append((row, column, name))
    tiles = max(sets.values(), key=len, default=[])
    if len(tiles) < 2:
        return None
    top, left = min(row for row, _, _ in tiles), min(column for _, column, _ in tiles)
    cells = {(row - top, column - left): name for row, column, name in tiles}
    rows, columns = (1 + max(place[axis] for place in cells) for axis in (0, 1))
    if len(cells) < len(tiles) or rows * columns > min(MOST_PLACES, 100 * len(tiles)):
        return None
    return Grid(rows, columns, cells)


def _place(name: str) -> tuple[str, int, int] | None:
    """Parse row and column in a name, and return the rest of it with them."""
    folder, slash, last = name.rpartition("/")
    for pattern, column_first in PLACES:
        if found := pattern.search(last):
            row, column = (int(found[2]), int(found[1])) if column_first else (int(found[1]), int(found[2]))
            return f"{folder}{slash}{last[: found.start()]}\0{last[found.end() :]}", row, column
    return None


def _drawn(found: Decoded, size: int, shared: Levels | None) -> Image.Image:
    """Turn decoded pixels into 8 bits, with their alpha channel."""
    if found.stretch:
        values = averaged(found.pixels, max(size, LEAST))
        pixels = _stretched(values, found.levels or shared or choose_levels(values))
    else:
        pixels = found.pixels
    image = Image.fromarray(np.ascontiguousarray(255 - pixels if found.white else pixels))
    if found.alpha is not None:
        alpha = Image.fromarray(np.ascontiguousarray(found.alpha)).resize(image.size, Image.Resampling.BOX)
        image = image.convert("RGB")
        image.putalpha(alpha)
    return image


def choose_levels(values: npt.NDArray[np.float64]) -> Levels | None:
    """Choose the values for black and white; None: no value is finite."""
    step = math.isqrt(values.size // SAMPLED) + 1
    finite = values[::step, ::step]
    finite = finite[np.isfinite(finite)]
    dark, bright = np.percentile(finite, [DARK, BRIGHT]) if finite.size else (0.0, 0.0)
    if dark < bright:
        return dark, bright
    finite = values[np.isfinite(values)]  # for example one spot on a uniform background
    return (finite.min(), finite.max()) if finite.size else None


def averaged(pixels: Pixels, size: int) -> npt.NDArray[np.float64]:
    """Average neighbouring pixels while the longer side keeps at least `size`."""
    height, width, *colours = pixels.shape
    many = max(1, max(height, width) // size)
    down, across = min(many, height), min(many, width)
    rows, columns = height // down, width // across
    whole = pixels[: rows * down, : columns * across]
    with np.errstate(all="ignore"):
        lines = whole.reshape(rows, down, columns * across, *colours).sum(axis=1, dtype=np.float64)
        joined: npt.NDArray[np.float64] = lines.reshape(rows, columns, across, *colours).sum(axis=2) / (down * across)
    return joined


def _stretched(values: npt.NDArray[np.float64], between: Levels | None) -> npt.NDArray[np.uint8]:
    """Stretch values between two levels to 8 bits; values that are not finite become black."""
    dark, bright = between or (0.0, 0.0)
    with np.errstate(all="ignore"):
        scale = 255 / (bright - dark) if bright > dark else 0.0
        spread = np.clip((values - dark) * scale, 0, 255)
        spread[np.isnan(spread)] = 0
        return spread.astype(np.uint8)
