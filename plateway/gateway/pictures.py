"""Make thumbnails, and compute the position of an image in a stitched view.

Input is bytes and names, output is PNG and positions. Files that are too large or not a picture are `Rejected`. The
bytes are not trusted, so sizes are checked before anything is decompressed. tifffile reads uncompressed and deflated
TIFF, Pillow everything else.
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

SUFFIXES = {  # suffix and media type of picture files
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "jp2": "image/jp2",
    "bmp": "image/bmp",
}
STYLE = 1  # increase it when the same image gets another thumbnail
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of TIFF and BigTIFF
FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF")  # that Pillow may decode
DEFLATED, LZMA = frozenset({8, 32946, 50013}), 34925  # compressions of TIFF
PRINTED = frozenset({5, 6, 8})  # CMYK, YCbCr and CIELAB in TIFF
RATIO = 1032  # largest compression ratio of deflate
MOST_PIXELS = 1 << 26  # of an image that is decoded
MOST_BYTES = 1 << 27  # of its pixels
MOST_SEGMENTS = 1 << 16  # strips or tiles of a TIFF
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
class GreyValues:
    """Grey values that are to be stretched to 8 bits."""

    values: npt.NDArray[np.float64]
    white: bool = False  # the smallest value is white

    @property
    def levels(self) -> Levels | None:
        """Choose the values for black and white; None: no value is finite."""
        step = math.isqrt(self.values.size // SAMPLED) + 1
        finite = self.values[::step, ::step]
        finite = finite[np.isfinite(finite)]
        dark, bright = np.percentile(finite, [DARK, BRIGHT]) if finite.size else (0.0, 0.0)
        if dark < bright:
            return dark, bright
        finite = self.values[np.isfinite(self.values)]  # for example one spot on a uniform background
        return (finite.min(), finite.max()) if finite.size else None


@dataclass(frozen=True)
class Grid:
    """Tiles of one stitched view; rows and columns are counted from 0, from the upper left corner."""

    rows: int
    columns: int
    cells: Mapping[tuple[int, int], str]  # name by row and column; empty cells are missing


def media(name: str) -> str | None:
    """Return the media type of a picture by its name, or None if it is not a picture."""
    return SUFFIXES.get(PurePosixPath(name).suffix[1:].lower())


def thumbnail(content: bytes, *, size: int, levels: Levels | None = None) -> bytes:
    """Make a PNG of at most `size` pixels along either side, of the first page.

    TIFF in grey, and whatever has more than 8 bits, is stretched between its percentiles 0.5 and 99.8, or between the
    given `levels`; other pictures keep their colours. Nothing is enlarged.

    Raises:
        Rejected: it is not a picture that can be decoded, or has more than 67 million pixels or 128 MiB of them.
    """
    with _translate_errors():
        found = _read(content, size)
        image = _stretched(found, levels or found.levels) if isinstance(found, GreyValues) else found
        image.thumbnail((size, size), Image.Resampling.BOX)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    return buffer.getvalue()


def levels(content: bytes) -> Levels | None:
    """Return the values between which a picture is stretched; None: its colours are kept.

    Raises:
        Rejected: as `thumbnail`.
    """
    with _translate_errors():
        found = _read(content, LEAST)
        return found.levels if isinstance(found, GreyValues) else None


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


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate every exception of a decoder to ours: for untrusted bytes there is no complete list of them."""
    try:
        yield
    except Rejected:
        raise
    except Exception as error:
        raise Rejected(f"not a picture that can be decoded ({type(error).__name__})") from error


def _check_size(width: int, height: int, depth: int) -> None:
    """Refuse a picture that is too large; `depth` is bytes per pixel."""
    if width * height > MOST_PIXELS or width * height * depth > MOST_BYTES:
        raise Rejected(f"too large for a thumbnail: {width} x {height} pixels of {depth} bytes")


def _read(content: bytes, size: int) -> Image.Image | GreyValues:
    size = max(size, LEAST)
    return _tiff(content, size) if content[:4] in MAGIC else _other(content, size)


# ---------------------------------------------------------------------------------------------------------------- TIFF


def _tiff(content: bytes, size: int) -> Image.Image | GreyValues:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        _check_size(page.imagewidth, page.imagelength * page.imagedepth, _depth(page))
        if page.compression not in {1, LZMA, *DEFLATED} or page.photometric in PRINTED:
            return _other(content, size, stretch=True)
        _check_size(page.tilewidth or 1, page.tilelength or 1, _depth(page))
        _check_decompressed_size(page, content)
        pixels, white = _plane(page), page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            colours = np.moveaxis(page.colormap, 0, -1)[_thinned(pixels, size)]
            return Image.fromarray(np.ascontiguousarray(colours >> 8, dtype=np.uint8))
    return _image(pixels, size, stretch=True, white=white)


def _depth(page: tifffile.TiffPage) -> int:
    return -(-page.bitspersample // 8) * page.samplesperpixel


def _check_decompressed_size(page: tifffile.TiffPage, content: bytes) -> None:
    """Refuse a page whose strips or tiles would decompress to too many bytes."""
    spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    packed = sum(count for _, count in spans)
    if len(spans) > MOST_SEGMENTS or packed > len(content):
        raise Rejected(f"too large for a thumbnail: {len(spans)} parts of {packed} bytes in {len(content)}")
    if page.compression == 1 or (page.compression in DEFLATED and packed * RATIO <= MOST_BYTES):
        return
    left = MOST_BYTES
    for offset, count in spans:
        part = content[offset : offset + count]
        decoder = lzma.LZMADecompressor() if page.compression == LZMA else zlib.decompressobj()
        left -= len(decoder.decompress(part, left + 1))
        if left < 0:
            raise Rejected(f"too large for a thumbnail: more than {MOST_BYTES} bytes when unpacked")


def _plane(page: tifffile.TiffPage) -> Pixels:
    """Read the pixels as rows, columns and, for colour, three channels."""
    pixels, axes = page.asarray(), page.axes
    for axis in [name for name in axes if name not in "YXS"]:
        pixels, axes = pixels.take(0, axes.index(axis)), axes.replace(axis, "")
    if "S" not in axes:
        return pixels
    colours = np.moveaxis(pixels, axes.index("S"), -1)
    return colours[..., :3] if page.photometric == tifffile.PHOTOMETRIC.RGB else colours[..., 0]


# -------------------------------------------------------------------------------------------------------------- others


def _other(content: bytes, size: int, *, stretch: bool = False) -> Image.Image | GreyValues:
    """Read with Pillow; grey is stretched with `stretch`, and if it has more than 8 bits."""
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected(f"too large for a thumbnail: more than {MOST_PIXELS} pixels") from error
    _check_size(*image.size, len(image.getbands()))
    image.draft(None, (2 * size, 2 * size))  # JPEG can be decoded at a smaller size
    if image.mode.startswith("I") or image.mode == "F":
        return _image(np.asarray(image), size, stretch=True)
    if image.mode in {"1", "L"}:
        return _image(np.asarray(image.convert("L")), size, stretch=stretch)
    return ImageOps.exif_transpose(
        image.convert("RGBA" if "transparency" in image.info or "A" in image.mode else "RGB")
    )


# -------------------------------------------------------------------------------------------------------------- levels


def _image(pixels: Pixels, size: int, *, stretch: bool, white: bool = False) -> Image.Image | GreyValues:
    """Keep pixels of 8 bits unless grey is to be stretched; stretch all others."""
    if np.iscomplexobj(pixels):
        pixels = np.abs(pixels)
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif stretch and (pixels.dtype != np.uint8 or pixels.ndim == 2):
        return GreyValues(_averaged(pixels, size), white)
    pixels = pixels.astype(np.uint8, copy=False)
    return Image.fromarray(np.ascontiguousarray(255 - pixels if white else pixels))


def _averaged(pixels: Pixels, size: int) -> npt.NDArray[np.float64]:
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


def _thinned(pixels: Pixels, size: int) -> Pixels:
    """Skip rows and columns of values that cannot be averaged, while two for each of `size` remain."""
    step = max(1, max(pixels.shape[:2]) // (2 * size))
    return pixels[::step, ::step]


def _stretched(light: GreyValues, between: Levels | None) -> Image.Image:
    """Stretch values between two levels to 8 bits; values that are not finite become black."""
    dark, bright = between or (0.0, 0.0)
    with np.errstate(all="ignore"):
        scale = 255 / (bright - dark) if bright > dark else 0.0
        spread = np.clip((light.values - dark) * scale, 0, 255)
        spread[np.isnan(spread)] = 0
        spread = spread.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(255 - spread if light.white else spread))
