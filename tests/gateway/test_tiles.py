"""Tiles at native resolution: together they are the picture, at every level, and limits and gamma count as said."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from plateway.errors import Rejected
from plateway.gateway import tiles
from plateway.gateway.tiles import Rendering


def opened(pixels: npt.NDArray[Any], **said: Any) -> tiles.OpenedImage:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **said)
    return tiles.open_image(buffer.getvalue())


def decoded(content: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)))


RAMP = (np.arange(1100 * 1300, dtype=np.uint32).reshape(1100, 1300) * 65535 // (1100 * 1300)).astype(np.uint16)


@pytest.mark.parametrize("level", [0, 1, 2, 5])
def test_tiles_make_up_the_picture(level: int) -> None:
    """Side by side the tiles of a level are the picture, made smaller by averages of whole squares."""
    image, how = opened(RAMP), Rendering(low=0, high=65535)
    rows, columns = (-(-(side >> level) // tiles.TILE) for side in RAMP.shape)
    found = np.vstack(
        [
            np.hstack([decoded(tiles.tile(image, level=level, x=x, y=y, rendering=how)) for x in range(columns)])
            for y in range(rows)
        ]
    )
    side = 1 << level
    height, width = (length // side for length in RAMP.shape)
    cut = RAMP[: height * side, : width * side].reshape(height, side, width, side)
    assert np.array_equal(found, (255 * (cut.mean(axis=(1, 3)) / 65535)).astype(np.uint8))


@pytest.mark.parametrize("place", [(0, 3, 0), (0, 0, 3), (1, 2, 0), (16, 0, 0), (-1, 0, 0), (0, -1, 0)])
def test_there_is_no_tile_outside(place: tuple[int, int, int]) -> None:
    """A tile beyond the edge, or of a level that does not exist, is refused."""
    level, x, y = place
    with pytest.raises(Rejected):
        tiles.tile(opened(RAMP), level=level, x=x, y=y, rendering=Rendering())


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_the_whole_picture_is_as_shown(form: tiles.Format) -> None:
    """PNG exactly, JPEG nearly: as many pixels as the file has, between the limits, inverted if asked for."""
    how = Rendering(low=1000, high=30000, gamma=0.5, invert=True)
    found = decoded(tiles.whole(opened(RAMP), rendering=how, format_=form))
    wanted = 255 - (255 * np.clip((RAMP.astype(float) - 1000) / 29000, 0, 1) ** 2).astype(np.uint8)
    assert np.abs(found.astype(int) - wanted).max() <= (0 if form == "png" else 12)


def test_odd_pixels_are_drawn() -> None:
    """NaN is black, white-is-zero inverted, colours keep theirs, transparency stays, equal limits make two values."""
    holes = np.where(np.arange(64 * 64).reshape(64, 64) % 7 == 0, np.nan, 5.0).astype(np.float32)
    assert set(
        np.unique(decoded(tiles.tile(opened(holes), level=0, x=0, y=0, rendering=Rendering(low=0, high=5))))
    ) == {
        0,
        255,
    }
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    white = opened(grey, photometric="miniswhite")
    assert np.array_equal(decoded(tiles.whole(white, rendering=Rendering(low=0, high=255), format_="png")), 255 - grey)
    colours = np.random.default_rng(1).integers(0, 255, (30, 20, 4)).astype(np.uint8)
    image = opened(colours, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(decoded(tiles.whole(image, rendering=Rendering(), format_="png")), colours)
    assert decoded(tiles.whole(image, rendering=Rendering(), format_="jpeg")).shape == (30, 20, 3)
    flat = tiles.tile(opened(RAMP), level=0, x=0, y=0, rendering=Rendering(low=9, high=9))
    assert set(np.unique(decoded(flat))) <= {0, 255}


def test_an_image_is_described() -> None:
    """Its histogram counts finite values; header and levels are the file's."""
    image = opened(RAMP, compression="zlib")
    assert (image.width, image.height) == (1300, 1100)
    header = image.header
    assert (header.format, header.bits, header.compression) == ("TIFF", 16, "adobe_deflate")
    assert header.photometric == "grey, 0 is black"
    assert image.histogram.first == 0
    assert len(image.histogram.counts) == tiles.BINS
    assert 0 < image.levels[0] < image.levels[1] < 65535
    nothing = opened(np.full((20, 20), np.nan, np.float32))
    assert nothing.histogram.counts == ()
