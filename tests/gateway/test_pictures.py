"""Small pictures of whatever cameras write, and the places that names tell of."""

from __future__ import annotations

import io
import lzma
import re
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from plateway import simulator
from plateway.errors import Rejected
from plateway.gateway import decoders, pictures
from plateway.gateway.pictures import Grid, grid, thumbnail

Pixels = npt.NDArray[Any]
SLOPE = np.linspace(0, 1, 300 * 400).reshape(300, 400)  # dark at the top, bright at the bottom
BLOT = np.where(np.hypot(*np.mgrid[-15:15:300j, -20:20:400j]) < 5, 1.0, 0.0)


def tiff(pixels: Pixels, **how: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **{"metadata": None, **how})
    return buffer.getvalue()


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def small(content: bytes, size: int = 80) -> Pixels:
    """Make the picture and open it, with another program than made it as far as there is one."""
    png = thumbnail(content, size=size)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB") if image.mode != "L" else image).astype(int)


def slopes(content: bytes) -> bool:
    """Return whether the picture goes from black at its top to white at its bottom."""
    picture = small(content)
    assert picture.shape[:2] == (60, 80)
    rows = picture.reshape(60, -1).mean(axis=1)
    return bool(rows[0] < 12 and rows[-1] > 243 and (np.diff(rows) > 0).mean() > 0.9)


# --------------------------------------------------------------------------------------------------------------- depths


TYPES = [f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)]
TYPES += ["float16", "float32", "float64", "complex64"]
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"tile": (64, 64)},
    {"compression": "zlib", "predictor": None},
    {"compression": "zlib", "tile": (32, 64)},
    {"compression": "lzma", "rowsperstrip": 17},
    {"byteorder": ">"},
    {"bigtiff": True},
]


@pytest.mark.parametrize("kind", TYPES)
def test_grey_of_any_depth_is_stretched(kind: str) -> None:
    """Whatever numbers a camera writes and however the file is laid out: the darkest is black, the brightest white."""
    for how in LAYOUTS if kind == "uint16" else LAYOUTS[:3]:
        assert slopes(tiff((SLOPE * 100).astype(kind), photometric="minisblack", **how)), how


def test_a_few_hot_pixels_do_not_hide_the_rest() -> None:
    """Percentiles, not extremes: 12 bits of light in 16 bits with a defect look as they should."""
    light = (SLOPE * 900 + 100).astype(np.uint16)
    light[::31, ::47] = 65535
    assert small(tiff(light)).max() > 250
    assert np.median(small(tiff(light))) > 100


def test_what_is_no_number_is_black() -> None:
    """NaN and infinity neither fail nor spoil the rest; nor do numbers at the end of what there is."""
    odd = SLOPE.astype(np.float32).copy()
    odd[100:200, 100:200] = np.nan
    odd[:, :10], odd[:, -10:] = -np.inf, np.inf
    picture = small(tiff(odd))
    assert picture[25:35, 25:35].max() == 0
    assert picture[-1, 40] > 243
    for light in (np.full((9, 9), np.nan), np.full((9, 9), 7.0), BLOT * 1.7e308, -BLOT * 1.7e308):
        assert small(tiff(light)).shape


def test_one_bit_and_white_first_are_read() -> None:
    """Ink on paper: in one file 1 is white, in the other the smallest is."""
    assert slopes(tiff(((1 - SLOPE) * 1000).astype(np.uint16), photometric="miniswhite"))
    picture = small(tiff(BLOT.astype(bool), photometric="minisblack"))
    assert (picture[30, 40], picture[0, 0]) == (255, 0)


# -------------------------------------------------------------------------------------------------------------- colours


def colours() -> Pixels:
    """Red to the left, green in the middle, blue to the right."""
    return np.repeat(np.repeat(np.eye(3, dtype=np.uint8)[None] * 200, 300, axis=0), 120, axis=1)


def striped(content: bytes) -> bool:
    picture = small(content)
    return all(
        picture[30, column].argmax() == channel and picture[30, column].max() > 150
        for channel, column in enumerate((12, 40, 68))
    )


def test_colours_stay_what_they_are() -> None:
    """Eight bits or sixteen, in pixels or planes, with or without transparency, by palette, in tiles."""
    rgb = colours()
    clear = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    palette = np.zeros((3, 256), np.uint16)
    palette[:, :3] = np.eye(3) * 51200
    for content in (
        tiff(rgb, photometric="rgb"),
        tiff(rgb, photometric="rgb", tile=(64, 64), compression="zlib"),
        tiff(rgb.astype(np.uint16) * 257, photometric="rgb"),
        tiff(np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate"),
        tiff(clear, photometric="rgb", extrasamples=["unassalpha"]),
        tiff(rgb.argmax(axis=2).astype(np.uint8), photometric="palette", colormap=palette),
    ):
        assert striped(content)
    assert small(tiff(rgb, photometric="rgb")).max() == 200


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG2000", {}),
    ("BMP", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("TIFF", {"compression": "packbits"}),
]


@pytest.mark.parametrize(("kind", "how"), FORMATS, ids=str)
def test_what_people_bring_is_read(kind: str, how: dict[str, Any]) -> None:
    """PNG, JPEG, JPEG 2000, BMP, and TIFF as other programs compress it."""
    image = Image.fromarray(colours())
    assert striped(saved(image, kind, **how))
    assert small(saved(image.convert("L"), kind, **how)).ndim == 2
    if kind in {"PNG", "JPEG2000", "TIFF"} and how != {"compression": "jpeg"}:
        assert slopes(saved(Image.fromarray((SLOPE * 60000).astype(np.uint16)), kind, **how))


def test_transparency_and_turning_are_kept() -> None:
    """A PNG may be clear in places; a JPEG may lie on its side."""
    clear = np.dstack([colours(), np.zeros((300, 360), np.uint8)])
    png = thumbnail(saved(Image.fromarray(clear), "PNG"), size=80)
    assert Image.open(io.BytesIO(png)).getpixel((5, 5))[3:] == (0,)  # type: ignore[index]
    turned = Image.Exif()
    turned[0x0112] = 6
    assert small(saved(Image.fromarray(colours()), "JPEG", exif=turned)).shape[:2] == (80, 67)


CORNERS = np.zeros((60, 80), np.uint8)
CORNERS[:20, :20] = 250  # one bright corner says how a picture lies
TURNED = {  # by orientation: is it upright, and where the bright corner of the file is shown
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("top", "left"),
    6: ("top", "right"),
    7: ("bottom", "right"),
    8: ("bottom", "left"),
}


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def oriented(codec: str, mode: str, orientation: int) -> bytes:
    """Write the corner picture in a mode: grey, colour, or colour that is clear in its dark part."""
    pixels = {"grey": CORNERS, "colour": np.dstack([CORNERS] * 3), "clear": np.dstack([CORNERS] * 4)}[mode]
    if codec.startswith("tiff"):
        how: dict[str, Any] = {"photometric": "minisblack" if mode == "grey" else "rgb"}
        how |= {"extrasamples": ["unassalpha"]} if mode == "clear" else {}
        how |= {"compression": "lzw"} if codec == "tiff lzw" else {}
        return tiff(pixels, extratags=[(274, 3, 1, orientation, True)], **how)
    image = Image.fromarray(pixels)
    if codec == "tiff jpeg":
        return saved(image, "TIFF", compression="jpeg", tiffinfo={274: orientation})
    return saved(image, codec, exif=exif(orientation), **({"quality": 95} if codec == "JPEG" else {}))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("mode", ["grey", "colour", "clear"])
@pytest.mark.parametrize("codec", ["tiff", "tiff lzw", "PNG", "JPEG"])
def test_every_codec_turns_pictures_upright_and_keeps_what_is_clear(codec: str, mode: str, orientation: int) -> None:
    """Orientation, transparency and scale are the same for all: one way for every format."""
    if (codec, mode) == ("JPEG", "clear"):
        pytest.skip("JPEG has no alpha channel")
    with Image.open(io.BytesIO(thumbnail(oriented(codec, mode, orientation), size=40))) as image:
        assert image.size == ((40, 30) if orientation < 5 else (30, 40))
        picture = np.asarray(image.convert("RGBA")).astype(int)
    down, across = TURNED[orientation]
    row, column = (3 if down == "top" else -4), (3 if across == "left" else -4)
    assert picture[row, column, 0] > 200
    assert picture[-row - 1, -column - 1, 0] < 50
    assert (picture[-row - 1, -column - 1, 3] == 0) == (mode == "clear")


@pytest.mark.parametrize("how", ["2 bits", "4 bits", "12 bits", "predictor 3", "lzw", "zstd", "one bit by palette"])
def test_odd_depths_and_predictors(how: str) -> None:
    """What cameras and libraries write besides 8 and 16 bits."""
    bits = {"2 bits": 2, "4 bits": 4, "12 bits": 12}.get(how)
    if bits:
        values = np.rint(SLOPE * (2**bits - 1)).astype(np.uint16)
        packed = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(300, 400, 2), axis=2)[:, :, 16 - bits :]
        content = bomb(
            1,
            np.packbits(packed.reshape(300, -1), axis=1).tobytes(),
            t256=400,
            t257=300,
            t258=bits,
            t278=300,
        )
        rows = small(content).mean(axis=1)
        assert rows[0] < 60 and rows[-1] > 195 and rows[30] == pytest.approx(128, abs=45)
    elif how == "one bit by palette":
        colours_of_both = (65535, 0, 0, 0, 0, 65535)  # red, then blue, channel by channel
        content = tiff(BLOT > 0, photometric="minisblack", extratags=[(320, 3, 6, colours_of_both, True)])
        entry = struct.pack("<HHI", 262, 3, 1)
        content = content.replace(entry + struct.pack("<H", 1), entry + struct.pack("<H", 3))
        picture = small(content)
        assert (picture[0, 0].tolist(), picture[30, 40].tolist()) == ([255, 0, 0], [0, 0, 255])
    else:
        options: dict[str, dict[str, Any]] = {"predictor 3": {"compression": "zlib", "predictor": 3}}
        kind = np.float32 if how == "predictor 3" else np.uint16
        assert slopes(tiff((SLOPE * 999).astype(kind), **options.get(how, {"compression": how})))


def test_a_palette_of_eight_bits() -> None:
    """Some writers use 8 of the 16 bits of an entry."""
    palette = np.zeros((3, 256), np.uint16)
    palette[:, :3] = np.eye(3) * 200
    assert striped(tiff(colours().argmax(axis=2).astype(np.uint8), photometric="palette", colormap=palette))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_metadata_do_not_stop_pixels() -> None:
    """A JPEG whose EXIF is garbage is shown as it lies."""
    content = saved(Image.fromarray(colours()), "JPEG", exif=exif(6))
    at = content.index(b"Exif")
    for damage in (b"\xff" * 20, bytes(20), b"MM\0*" + b"\xff" * 16):
        assert striped(content[: at + 6] + damage + content[at + 26 :]) or b"MM" in damage


@pytest.mark.parametrize("kind", ["TIFF", "TIFF, directory last", "PNG", "JPEG"])
def test_a_picture_that_was_cut_off(kind: str) -> None:
    """The likeliest damage on a bench is told as what it is, with how much is there."""
    noise = np.random.default_rng(1).integers(0, 255, (300, 400), dtype=np.uint8)
    content = tiff(noise) if kind == "TIFF" else saved(Image.fromarray(noise), kind.partition(",")[0])
    with pytest.raises(Rejected, match=r"^cut off after 5,000 (of [\d,]+ )?bytes"):
        thumbnail(content[:5000], size=80)


def test_a_large_jpeg_2000_is_read_at_a_smaller_size() -> None:
    """As few pixels are decoded as the thumbnail needs."""
    light = np.kron((SLOPE[::2, ::2] * 255).astype(np.uint8), np.ones((20, 20), np.uint8))
    found = decoders.decode(saved(Image.fromarray(light), "JPEG2000"), 256)
    assert found.pixels.shape == (750, 1000)


def test_the_smallest_sufficient_level_of_a_pyramid_is_read() -> None:
    """As sub-images of the page, or as reduced pages after it."""
    full = (SLOPE.repeat(8, 0).repeat(8, 1) * 999).astype(np.uint16)
    for subifds in (3, 0):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as file:
            file.write(full, subifds=subifds or None, metadata=None, photometric="minisblack")
            for step in (2, 4, 8):
                file.write(full[::step, ::step], subfiletype=1, metadata=None, photometric="minisblack")
        assert decoders.decode(buffer.getvalue(), 512).pixels.shape == (600, 800)
        assert slopes(buffer.getvalue())


def test_levels_are_shared_by_sample_type_only() -> None:
    """What 16 bits need makes pictures of other types neither black nor white."""
    kind, between = pictures.levels(tiff((SLOPE * 60000).astype(np.uint16))) or ("", (0.0, 0.0))
    assert (kind, between[1] > 59000) == ("uint16", True)
    for other in (tiff((SLOPE * 255).astype(np.uint8)), tiff(SLOPE.astype(np.float32))):
        shared = thumbnail(other, size=80, levels={kind: between})
        assert shared == thumbnail(other, size=80)
    dim = tiff((SLOPE * 30000).astype(np.uint16))
    with Image.open(io.BytesIO(thumbnail(dim, size=80, levels={kind: between}))) as image:
        assert 110 < np.asarray(image).max() < 145


def dicom(pixels: Pixels, **tags: Any) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    file.PatientName = "Somebody"
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 0
    file.PixelData = pixels.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    file.save_as(buffer)
    return buffer.getvalue()


def test_dicom_by_its_slope_and_window() -> None:
    """The first frame; inverted where the smallest value is white; the window of the file, else percentiles."""
    values = SLOPE * 1000
    assert slopes(dicom(values))
    assert slopes(dicom(1000 - values, PhotometricInterpretation="MONOCHROME1"))
    assert slopes(dicom(np.stack([values, 0 * values]), NumberOfFrames=2))
    windowed = small(dicom(values, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="500", WindowWidth="1000"))
    assert windowed[:28].max() < 12
    assert windowed[-1].min() > 243
    assert windowed[45].mean() == pytest.approx(128, abs=12)
    huge = dicom(values, Rows=60000, Columns=60000)
    with pytest.raises(Rejected, match="too large"):
        thumbnail(huge, size=80)


def test_arrays_of_numpy() -> None:
    """The first plane; objects are never unpickled."""
    for array, shown in ((SLOPE, True), (np.stack([SLOPE, SLOPE * 0]), True), (np.arange(9), False)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        if shown:
            assert slopes(buffer.getvalue())
        else:
            with pytest.raises(Rejected, match="no preview of an array"):
                thumbnail(buffer.getvalue(), size=80)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(Rejected):
        thumbnail(buffer.getvalue(), size=80)


def test_other_files_have_no_preview() -> None:
    """It is said, and nothing is guessed."""
    for content in (b"\x89HDF\r\n\x1a\n" + bytes(100), b"SIMPLE  =                    T", b"hello"):
        with pytest.raises(Rejected, match="no preview of this kind of file"):
            thumbnail(content, size=80)


# ---------------------------------------------------------------------------------------------------------------- pages


def test_the_first_page_is_shown() -> None:
    """A stack of any kind: pages, an OME series, a volume in one page, channels beside each other."""
    first, other = (SLOPE * 999).astype(np.uint16), np.zeros((300, 400), np.uint16)
    stack = np.stack([first, other, other, other])
    for content in (
        tiff(stack, photometric="minisblack"),
        tiff(stack.reshape(2, 2, 300, 400), ome=True, metadata={"axes": "TCYX"}, photometric="minisblack"),
        tiff(np.repeat(stack, 16, axis=0), photometric="minisblack", volumetric=True, tile=(16, 64, 64)),
        tiff(stack, photometric="minisblack", planarconfig="separate"),
        tiff(np.moveaxis(stack, 0, -1), photometric="minisblack", planarconfig="contig"),
    ):
        assert slopes(content)


@pytest.mark.parametrize(("shape", "size", "expected"), [((300, 400), 160, (120, 160)), ((4000, 30), 100, (100, 1))])
def test_the_longer_side_counts(shape: tuple[int, int], size: int, expected: tuple[int, int]) -> None:
    """Proportions stay; nothing is made larger than it was."""
    assert small(tiff(np.zeros(shape, np.uint16)), size).shape == expected
    assert small(tiff(np.zeros((7, 5), np.uint8)), 1024).shape == (7, 5)


def test_large_images_are_averaged() -> None:
    """Every pixel counts, also a line that is one pixel thin; a spot on an even ground is not lost."""
    light = np.full((1100, 2100), 1000, np.uint16)
    light[:, 1063] = 60000
    light[-1, -1] = 30000
    picture = small(tiff(light))
    assert (picture.shape, int(picture.max(axis=0).argmax())) == ((42, 80), 40)
    assert small(tiff(np.repeat(np.arange(40000, dtype=np.uint16)[:, None], 3, axis=1))).shape == (80, 1)


def test_what_the_simulator_draws_looks_like_something() -> None:
    """Hyphae in dark field: most of it dark, some of it bright, by no means flat."""
    view = simulator.View(-1.05, -1.05, 256 / 2.1)
    picture = small(simulator.tiff(simulator.draw(7, age=0.8, view=view, size=256)), 160)
    assert picture.shape == (160, 160)
    assert picture.min() < 20
    assert picture.max() > 230
    assert 30 < picture.mean() < 200
    assert picture.std() > 25


# ---------------------------------------------------------------------------------------------------------------- bombs


def bomb(kind: int, packed: bytes, **tags: int) -> bytes:
    """Write a TIFF that is smaller than what it becomes."""
    said = {256: 64, 257: 64, 258: 8, 259: kind, 262: 1, 273: 0, 277: 1, 278: 64, 279: len(packed)}
    said |= {int(name[1:]): value for name, value in tags.items()}
    head = 8 + 2 + 12 * len(said) + 4
    said[273] = head
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(said.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(said)) + entries + bytes(4) + packed


def png(width: int, height: int) -> bytes:
    """Write the beginning of a PNG; what its pixels are nobody should come to ask."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1) + b"IDATx"


def deflated(size: int) -> bytes:
    """Pack so many MiB of zeros, without having them."""
    packer = zlib.compressobj(9)
    first, again = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (size - 1)


def test_what_is_too_large_is_not_unpacked() -> None:
    """Sizes are looked at first: many pixels, huge tiles, and strips that become more than their pixels are."""
    zeros, most = deflated(200), decoders.MOST_BYTES
    assert len(zeros) < 300_000
    for content in (
        bomb(1, b"x", t256=9000, t257=9000),
        bomb(1, b"x", t256=1 << 20, t257=1 << 20),
        bomb(1, b"x", t277=60000),
        bomb(1, b"x", t322=1 << 16, t323=1 << 16, t324=8, t325=1),
        bomb(8, zeros, t256=65000, t257=65000),
        bomb(8, zeros),
        bomb(32946, zeros),
        bomb(34925, lzma.compress(bytes(most + 1), preset=0)),
        png(9000, 9000),
        png(20000, 20000),
    ):
        with pytest.raises(Rejected, match=r"too large for a preview"):
            thumbnail(content, size=80)


SEEDS = [
    tiff((SLOPE[::9, ::9] * 999).astype(np.uint16)),
    tiff((SLOPE[::9, ::9] * 999).astype(np.uint16), compression="zlib", tile=(16, 16)),
    saved(Image.fromarray(colours()[::9, ::9].copy()), "PNG"),
    saved(Image.fromarray(colours()[::9, ::9].copy()), "JPEG"),
    saved(Image.fromarray(colours()[::9, ::9].copy()), "TIFF", compression="tiff_lzw"),
    saved(Image.fromarray(colours()[::9, ::9].copy()), "BMP"),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=12), st.data()
)
@example(b"", [], None)
@example(b"II*\0", [], None)
@example(b"\x89PNG\r\n\x1a\n", [], None)
@example(b"hello", [], None)
def test_anything_is_a_picture_or_rejected(content: bytes, turned: list[tuple[int, int]], data: Any) -> None:
    """Bytes that were turned over or cut off never raise anything else, nor take long."""
    broken = bytearray(content)
    for at, value in turned:
        if broken:
            broken[at % len(broken)] = value
    if data is not None and broken:
        broken = broken[: data.draw(st.integers(0, len(broken)))]
    try:
        assert thumbnail(bytes(broken), size=32).startswith(b"\x89PNG")
    except Rejected as error:
        assert re.search("picture|preview|cut off", str(error))


# --------------------------------------------------------------------------------------------------------------- places


NAMED = [
    ("Img_r{r:02d}_c{c:02d}.tif", 10, 15),
    ("Img/Img_r{r}_c{c}.tif", 0, 0),
    ("IMG_R{r}C{c}.TIF", 1, 1),
    ("plate7-row{r}-col{c}.png", 1, 1),
    ("Row {r}, Column {c}.jpg", 3, 4),
    ("c{c:03d}_r{r:03d}.tiff", 1, 1),
    ("tile_x{c:03d}_y{r:03d}.tif", 0, 0),
    ("y{r}x{c}_GFP.tif", 2, 2),
    ("r{r:02d}c{c:02d}f01p01-ch1sk1fk1fl1.tiff", 1, 1),
    ("20260504_row_{r}_column_{c}_z01.tif", 1, 1),
]


@pytest.mark.parametrize(("form", "top", "left"), NAMED, ids=str)
def test_names_tell_row_and_column(form: str, top: int, left: int) -> None:
    """In the usual ways to write it, from wherever the instrument counts."""
    places = {(r, c): form.format(r=r + top, c=c + left) for r in range(3) for c in range(4)}
    del places[1, 2]  # a tile that is missing leaves a gap
    assert grid([*places.values(), "metadata.json", "Overview.tif"]) == Grid(3, 4, places)


def test_what_the_simulator_names_is_a_grid() -> None:
    """A stitch of either dialect; a video and an overview are none."""
    for images, shape in ((6, (2, 3)), (12, (3, 4))):
        rows, columns = simulator.grid(images)
        names = [f"Img/Img_r{r:02d}_c{c:02d}.tif" for r in range(1, rows + 1) for c in range(1, columns + 1)]
        found = grid(names)
        assert found is not None
        assert (found.rows, found.columns) == shape
        assert sorted(found.cells.values()) == sorted(names)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["Img_r10_c15.tif"],
        ["Frame_0001.tif", "Frame_0002.tif"],
        ["Overview.tif"],
        ["r1_c1.txt", "r1_c2.json"],
        ["r1_c1.tif", "r01_c01.tif"],
        ["r0_c0.tif", "r9999_c9999.tif"],
        ["car1_c2.tif", "for2_c3.tif"],
        ["r12345_c1.tif", "r12346_c1.tif"],
    ],
)
def test_other_names_are_no_grid(names: list[str]) -> None:
    """Too few, none, two for one place, nearly all places empty, letters that only look like it."""
    assert grid(names) is None


def test_names_that_differ_otherwise_are_apart() -> None:
    """Two channels of the same tiles: one of them, whole; a second larger set wins."""
    first, second = ([f"{name}_r{r}_c{c}.tif" for r in (1, 2) for c in (1, 2)] for name in ("dapi", "gfp"))
    found = grid([*first, *second])
    assert found is not None
    assert sorted(found.cells.values()) == first
    found = grid([*first, *second, "gfp_r3_c1.tif"])
    assert found is not None
    assert (found.rows, len(found.cells)) == (3, 5)


def test_the_suffix_says_what_may_be_a_picture() -> None:
    """By the name alone; the bytes have the last word."""
    assert pictures.media("a/b.TIFF") == "image/tiff"
    assert pictures.media("x.jpeg") == "image/jpeg"
    assert [pictures.media(name) for name in ("tif", "a.tif/b", "a.svg", "a.html", "")] == [
        None,
        None,
        None,
        None,
        None,
    ]
