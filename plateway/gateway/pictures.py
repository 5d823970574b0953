"""Small pictures of images, and where an image lies in a stitched view.

Knows file formats and nothing else: bytes and names in, PNG and places out. What is too large to be looked at, and what
is no picture at all, is `Rejected`: bytes of strangers are decoded here, so sizes are looked at before anything is
unpacked. TIFF that is plain or deflated is read by tifffile, everything else by Pillow.
"""

from __future__ import annotations

import io
import lzma
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageOps

from plateway.errors import Rejected

Pixels = npt.NDArray[Any]
Levels = tuple[float, float]  # values that become black and white

SUFFIXES = {  # of files that may be pictures, and what they are called over HTTP
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "jp2": "image/jp2",
    "bmp": "image/bmp",
}
STYLE = 1  # another one when the same image becomes another small picture
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of TIFF and BigTIFF
FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF")  # that Pillow may try
DEFLATED, LZMA = frozenset({8, 32946, 50013}), 34925  # compressions of TIFF
PRINTED = frozenset({5, 6, 8})  # CMYK, YCbCr and CIELAB in TIFF
RATIO = 1032  # deflate makes nothing smaller than that
MOST_PIXELS = 1 << 26  # of an image that is looked at
MOST_BYTES = 1 << 27  # of its pixels
MOST_SEGMENTS = 1 << 16  # strips or tiles of a TIFF
LEAST = 512  # pixels along the longer side of what a small picture is made of, where there are so many
SAMPLED = 1 << 16  # of them by which levels are chosen, about
DARK, BRIGHT = 0.5, 99.8  # percentiles that become black and white
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
class Light:
    """Values that are to be stretched over what a screen can show."""

    values: npt.NDArray[np.float64]
    white: bool = False  # the smallest value is white

    @property
    def levels(self) -> Levels | None:
        """Choose what becomes black and white; None: no value is a number."""
        step = math.isqrt(self.values.size // SAMPLED) + 1
        finite = self.values[::step, ::step]
        finite = finite[np.isfinite(finite)]
        dark, bright = np.percentile(finite, [DARK, BRIGHT]) if finite.size else (0.0, 0.0)
        if dark < bright:
            return dark, bright
        finite = self.values[np.isfinite(self.values)]  # a spot on an even ground, perhaps
        return (finite.min(), finite.max()) if finite.size else None


@dataclass(frozen=True)
class Grid:
    """Tiles of one stitched view; rows and columns are counted from 0, from the upper left corner."""

    rows: int
    columns: int
    cells: Mapping[tuple[int, int], str]  # name by row and column; a place without an image is missing


def media(name: str) -> str | None:
    """Say what a file would be over HTTP if it is a picture by its name; None: it is none."""
    return SUFFIXES.get(PurePosixPath(name).suffix[1:].lower())


def thumbnail(content: bytes, *, size: int, levels: Levels | None = None) -> bytes:
    """Make a PNG of at most `size` pixels along either side, of the first page.

    TIFF in grey, and whatever has more than 8 bits, is stretched between its percentiles 0.5 and 99.8, or between the
    `levels` that are given; other pictures keep their colours. Nothing is made larger than it was.

    Raises:
        Rejected: it is no picture that can be read, or has more than 67 million pixels or 128 MiB of them.
    """
    with _door():
        found = _read(content, size)
        image = _stretched(found, levels or found.levels) if isinstance(found, Light) else found
        image.thumbnail((size, size), Image.Resampling.BOX)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    return buffer.getvalue()


def levels(content: bytes) -> Levels | None:
    """Say between which values a picture is stretched; None: its colours are kept as they are.

    Raises:
        Rejected: as `thumbnail`.
    """
    with _door():
        found = _read(content, LEAST)
        return found.levels if isinstance(found, Light) else None


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
    top, left = min(row for row, _, _ in tiles), min(column for _, column, _ in tiles)
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


@contextmanager
def _door() -> Iterator[None]:
    """Let whatever decoders raise in as ours: of bytes that anybody may have written there is no list."""
    try:
        yield
    except Rejected:
        raise
    except Exception as error:
        raise Rejected(f"no picture that can be read ({type(error).__name__})") from error


def _bounded(width: int, height: int, depth: int) -> None:
    """Refuse what is too large: `depth` is the bytes of a pixel."""
    if width * height > MOST_PIXELS or width * height * depth > MOST_BYTES:
        raise Rejected(f"too large for a small picture: {width} x {height} pixels of {depth} bytes")


def _read(content: bytes, size: int) -> Image.Image | Light:
    size = max(size, LEAST)
    return _tiff(content, size) if content[:4] in MAGIC else _other(content, size)


# ---------------------------------------------------------------------------------------------------------------- TIFF


def _tiff(content: bytes, size: int) -> Image.Image | Light:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        _bounded(page.imagewidth, page.imagelength * page.imagedepth, _depth(page))
        if page.compression not in {1, LZMA, *DEFLATED} or page.photometric in PRINTED:
            return _other(content, size, stretch=True)
        _bounded(page.tilewidth or 1, page.tilelength or 1, _depth(page))
        _unpacked(page, content)
        pixels, white = _plane(page), page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            colours = np.moveaxis(page.colormap, 0, -1)[_thinned(pixels, size)]
            return Image.fromarray(np.ascontiguousarray(colours >> 8, dtype=np.uint8))
    return _image(pixels, size, stretch=True, white=white)


def _depth(page: tifffile.TiffPage) -> int:
    return -(-page.bitspersample // 8) * page.samplesperpixel


def _unpacked(page: tifffile.TiffPage, content: bytes) -> None:
    """Refuse a page whose strips or tiles would become more than its pixels may be."""
    spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    packed = sum(count for _, count in spans)
    if len(spans) > MOST_SEGMENTS or packed > len(content):
        raise Rejected(f"too large for a small picture: {len(spans)} parts of {packed} bytes in {len(content)}")
    if page.compression == 1 or (page.compression in DEFLATED and packed * RATIO <= MOST_BYTES):
        return
    left = MOST_BYTES
    for offset, count in spans:
        part = content[offset : offset + count]
        decoder = lzma.LZMADecompressor() if page.compression == LZMA else zlib.decompressobj()
        left -= len(decoder.decompress(part, left + 1))
        if left < 0:
            raise Rejected(f"too large for a small picture: more than {MOST_BYTES} bytes when unpacked")


def _plane(page: tifffile.TiffPage) -> Pixels:
    """Read the pixels as rows, columns and, where there are colours, three of them."""
    pixels, axes = page.asarray(), page.axes
    for axis in [name for name in axes if name not in "YXS"]:
        pixels, axes = pixels.take(0, axes.index(axis)), axes.replace(axis, "")
    if "S" not in axes:
        return pixels
    colours = np.moveaxis(pixels, axes.index("S"), -1)
    return colours[..., :3] if page.photometric == tifffile.PHOTOMETRIC.RGB else colours[..., 0]


# -------------------------------------------------------------------------------------------------------------- others


def _other(content: bytes, size: int, *, stretch: bool = False) -> Image.Image | Light:
    """Read with Pillow; grey is stretched if asked for, and wherever it has more than 8 bits."""
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected(f"too large for a small picture: more than {MOST_PIXELS} pixels") from error
    _bounded(*image.size, len(image.getbands()))
    image.draft(None, (2 * size, 2 * size))  # JPEG can be read smaller
    if image.mode.startswith("I") or image.mode == "F":
        return _image(np.asarray(image), size, stretch=True)
    if image.mode in {"1", "L"}:
        return _image(np.asarray(image.convert("L")), size, stretch=stretch)
    return ImageOps.exif_transpose(
        image.convert("RGBA" if "transparency" in image.info or "A" in image.mode else "RGB")
    )


# -------------------------------------------------------------------------------------------------------------- levels


def _image(pixels: Pixels, size: int, *, stretch: bool, white: bool = False) -> Image.Image | Light:
    """Leave pixels of 8 bits as they are unless grey is to be stretched, and stretch all others."""
    if np.iscomplexobj(pixels):
        pixels = np.abs(pixels)
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif stretch and (pixels.dtype != np.uint8 or pixels.ndim == 2):
        return Light(_averaged(pixels, size), white)
    pixels = pixels.astype(np.uint8, copy=False)
    return Image.fromarray(np.ascontiguousarray(255 - pixels if white else pixels))


def _averaged(pixels: Pixels, size: int) -> npt.NDArray[np.float64]:
    """Join neighbours as long as the longer side keeps `size` of them."""
    height, width, *colours = pixels.shape
    many = max(1, max(height, width) // size)
    down, across = min(many, height), min(many, width)
    rows, columns = height // down, width // across
    whole = pixels[: rows * down, : columns * across]
    with np.errstate(all="ignore"):
        lines = whole.reshape(rows, down, columns * across, *colours).sum(axis=1, dtype=np.float64)
        joined: npt.NDArray[np.float64] = lines.reshape(rows, columns, across, *colours).sum(axis=2) / (down * across)
    return joined


def _thinned(pixels: Pixels, size: int) -> Pixels:
    """Leave out rows and columns of numbers that cannot be averaged, as far as two for each of `size` are left."""
    step = max(1, max(pixels.shape[:2]) // (2 * size))
    return pixels[::step, ::step]


def _stretched(light: Light, between: Levels | None) -> Image.Image:
    """Spread values between two of them over 8 bits; what is no number is black."""
    dark, bright = between or (0.0, 0.0)
    with np.errstate(all="ignore"):
        scale = 255 / (bright - dark) if bright > dark else 0.0
        spread = np.clip((light.values - dark) * scale, 0, 255)
        spread[np.isnan(spread)] = 0
        spread = spread.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(255 - spread if light.white else spread))
