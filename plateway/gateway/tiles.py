"""Render an image at native resolution: tiles at power-of-two levels, the whole picture, and its histogram.

Level 0 has the pixels of the file; each further level has half as many along either side. A level's last columns and
rows are left out where they do not fill a pixel. The bytes are decoded by `decoders` once and rendered many times.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from plateway.errors import Rejected
from plateway.gateway import decoders, pictures
from plateway.gateway.decoders import Decoded, Header
from plateway.gateway.file_metadata import NOTHING, Metadata, read_metadata
from plateway.gateway.pictures import Levels

TILE = 512  # pixels of a tile along either side
MOST_LEVELS = 16
BINS = 128  # of a histogram
COUNTED = 1 << 20  # approximate number of pixels from which a histogram is counted
WHOLE = 1 << 24  # more pixels along a side than any image that is decoded
GAMMA = (0.1, 10.0)
Format = Literal["png", "jpeg"]


@dataclass(frozen=True)
class Rendering:
    """How values become brightness; None: as chosen for the image."""

    low: float | None = None  # becomes black
    high: float | None = None  # becomes white
    gamma: float = 1.0  # brightness is the fraction between black and white to the power of 1 / gamma
    invert: bool = False

    @property
    def is_default(self) -> bool:
        """Whether nothing differs from what is chosen for the image."""
        return self == Rendering()


@dataclass(frozen=True)
class Histogram:
    """Counts of pixel values in bins of equal width."""

    first: float  # lower end of the first bin
    last: float  # upper end of the last bin
    counts: tuple[int, ...]


@dataclass(frozen=True)
class OpenedImage:
    """The decoded pixels of one image."""

    decoded: Decoded
    header: Header
    metadata: Metadata = NOTHING

    @property
    def width(self) -> int:
        """Pixels in a row."""
        return int(self.decoded.pixels.shape[1])

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.decoded.pixels.shape[0])

    @property
    def occupied(self) -> int:
        """Bytes in memory."""
        alpha = self.decoded.alpha
        return int(self.decoded.pixels.nbytes) + (0 if alpha is None else int(alpha.nbytes))

    @cached_property
    def levels(self) -> Levels:
        """The values that become black and white: of the file, or percentiles, or the range of 8 bits."""
        if not self.decoded.stretch:
            return 0.0, 255.0
        averaged = pictures.averaged(self.decoded.pixels, pictures.LEAST)
        dark, bright = self.decoded.levels or pictures.choose_levels(averaged) or (0.0, 0.0)
        return float(dark), float(bright)

    @cached_property
    def histogram(self) -> Histogram:
        """Counts of the finite values of a sample of the pixels; of colours, of their mean."""
        step = max(1, int((self.width * self.height / COUNTED) ** 0.5))
        values = self.decoded.pixels[::step, ::step].astype(np.float64)
        values = values.mean(axis=2) if values.ndim == 3 else values
        finite = values[np.isfinite(values)]
        if not finite.size:
            return Histogram(0.0, 0.0, ())
        first, last = (0.0, 255.0) if not self.decoded.stretch else (float(finite.min()), float(finite.max()))
        with np.errstate(all="ignore"):
            if not np.isfinite(last - first) or last <= first:
                return Histogram(first, last, (int(finite.size),))
            counts, _ = np.histogram(finite, bins=BINS, range=(first, last))
        return Histogram(first, last, tuple(int(one) for one in counts))


def open_image(content: bytes) -> OpenedImage:
    """Decode an image at its full resolution.

    Raises:
        Rejected: as `decoders.decode`.
    """
    decoded = decoders.decode(content, WHOLE)
    return OpenedImage(decoded, decoders.read_header(content), read_metadata(content))


def tile(
    image: OpenedImage, *, level: int, x: int, y: int, rendering: Rendering, shared: Levels | None = None
) -> bytes:
    """Render the tile in column `x` and row `y` of a level, as PNG.

    `shared` levels are used where the rendering has none.

    Raises:
        Rejected: the level has no such tile.
    """
    side = TILE << min(max(level, 0), MOST_LEVELS)
    left, top = x * side, y * side
    if not (0 <= level < MOST_LEVELS and 0 <= left < image.width and 0 <= top < image.height):
        raise Rejected(f"level {level} has no tile in column {x} and row {y}")
    rows, columns = slice(top, top + side), slice(left, left + side)
    return _encode(_render(image, rows, columns, level=level, rendering=rendering, shared=shared), "png")


def whole(image: OpenedImage, *, rendering: Rendering, format_: Format) -> bytes:
    """Render all pixels at their native resolution with 8 bits, as PNG or JPEG."""
    bands = [
        _render(image, slice(top, top + TILE), slice(0, image.width), level=0, rendering=rendering, shared=None)
        for top in range(0, image.height, TILE)
    ]
    return _encode(np.concatenate(bands), format_)


def _render(
    image: OpenedImage, rows: slice, columns: slice, *, level: int, rendering: Rendering, shared: Levels | None
) -> npt.NDArray[np.uint8]:
    """Render a region as 8 bits: grey, RGB, or RGB with alpha."""
    found = image.decoded
    pixels = _halved(found.pixels[rows, columns], level)
    plain = rendering.low is None and rendering.high is None and rendering.gamma == 1
    if found.stretch or not plain:
        dark, bright = shared if shared and found.stretch and found.levels is None else image.levels
        low = dark if rendering.low is None else rendering.low
        high = bright if rendering.high is None else rendering.high
        pixels = _brightness(pixels, low, high, rendering.gamma)
    eight = pixels.astype(np.uint8)
    if found.white != rendering.invert:
        eight = 255 - eight
    if found.alpha is None:
        return eight
    alpha = _halved(found.alpha[rows, columns], level).astype(np.uint8)
    colours = eight if eight.ndim == 3 else np.stack([eight] * 3, axis=-1)
    return np.dstack([colours, alpha])


def _halved(pixels: npt.NDArray[Any], level: int) -> npt.NDArray[Any]:
    """Average squares of 2 to the power of `level` pixels."""
    if not level:
        return pixels
    height, width, *colours = pixels.shape
    down, across = min(1 << level, height), min(1 << level, width)
    rows, columns = height // down, width // across
    cut = pixels[: rows * down, : columns * across]
    with np.errstate(all="ignore"):
        lines = cut.reshape(rows, down, columns * across, *colours).sum(axis=1, dtype=np.float64)
        joined: npt.NDArray[Any] = lines.reshape(rows, columns, across, *colours).sum(axis=2) / (down * across)
    return joined


def _brightness(values: npt.NDArray[Any], low: float, high: float, gamma: float) -> npt.NDArray[np.float64]:
    """Map values between two levels to 0 … 255; values that are not finite become black, except infinity."""
    with np.errstate(all="ignore"):
        fraction = (values.astype(np.float64) - low) / (high - low) if high > low else (values > high) * 1.0
        fraction = np.clip(fraction, 0, 1)
        fraction[np.isnan(fraction)] = 0
        spread: npt.NDArray[np.float64] = 255 * (fraction if gamma == 1 else fraction ** (1 / gamma))
    return spread


def _encode(pixels: npt.NDArray[np.uint8], format_: Format) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    if format_ == "jpeg":
        image.convert("RGB" if image.mode != "L" else "L").save(buffer, "JPEG", quality=92)
    else:
        image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
