"""Decode pictures of untrusted bytes: TIFF, PNG, JPEG, JPEG 2000, BMP, DICOM and NumPy arrays.

Every format goes one way: decode at the smallest sufficient resolution, orient, split off the alpha channel. Sizes are
checked before anything is decompressed. tifffile with imagecodecs reads TIFF, Pillow the others and what tifffile
leaves, pydicom DICOM.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from lzma import LZMADecompressor
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, UnidentifiedImageError

from plateway.errors import Rejected

Pixels = npt.NDArray[Any]

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF: how such files begin
NPY = b"\x93NUMPY"
DICM = slice(128, 132)  # where DICOM says what it is
FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF")  # that Pillow may decode
DEFLATED, LZMA = frozenset({8, 32946, 50013}), 34925  # compressions of TIFF
BOUNDED = frozenset({5, 32773, 50000})  # LZW, PackBits, Zstandard: imagecodecs writes no more than the tile's size
PRINTED = frozenset({5, 6, 8})  # CMYK, YCbCr and CIELAB in TIFF
ORIENTATION = 274  # tag of TIFF and EXIF
PIECE = 1 << 20  # bytes that are decompressed at once where only their number counts
RATIO = 1032  # largest compression ratio of deflate
MOST_PIXELS = 1 << 26  # of an image that is decoded
MOST_BYTES = 1 << 27  # of its pixels
MOST_SEGMENTS = 1 << 16  # strips or tiles of a TIFF
MOST_LEVELS = 16  # of a pyramid
PHOTOMETRIC = {  # of Pillow's modes
    **dict.fromkeys(("1", "L", "LA", "I", "F"), "grey"),
    **dict.fromkeys(("P", "PA"), "palette"),
    **dict.fromkeys(("RGB", "RGBA", "RGBX"), "RGB"),
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
}
GREY = {"minisblack": "grey, 0 is black", "miniswhite": "grey, 0 is white", "rgb": "RGB", "separated": "CMYK"}
WINDOWED = "windowed"  # kind of DICOM pixels whose file says what is black and white


@dataclass(frozen=True)
class Decoded:
    """Pixels of one picture: rows, columns and, for colour, three channels of 8 bits."""

    pixels: Pixels
    kind: str  # sample type, as NumPy calls it
    stretch: bool = False  # grey values of any range; otherwise 8 bits to be shown as they are
    white: bool = False  # the smallest value is white
    alpha: Pixels | None = None  # 8 bits
    levels: tuple[float, float] | None = None  # black and white, where the file says so


def decode(content: bytes, size: int) -> Decoded:
    """Decode the first page, upright, with `size` pixels or more along the longer side if it has as many.

    Raises:
        Rejected: it is cut off, too large, or not a picture that can be decoded.
    """
    with _translate_errors(len(content)):
        if content[:4] in TIFF:
            return _tiff(content, size)
        if content[DICM] == b"DICM":
            return _dicom(content)
        if content.startswith(NPY):
            return _npy(content)
        return _pillow(content, size)


@dataclass(frozen=True)
class Header:
    """What the header of a picture says of its pixels; None: it does not."""

    format: str | None = None
    bits: int | None = None  # of a sample
    photometric: str | None = None
    compression: str | None = None


def read_header(content: bytes) -> Header:
    """Read the header of the first page; nothing is decompressed."""
    with suppress(Exception):
        if content[:4] in TIFF:
            return _read_tiff_header(content)
        if content[DICM] == b"DICM":
            return _read_dicom_header(content)
        if content.startswith(NPY):
            dtype = np.load(io.BytesIO(content), allow_pickle=False).dtype
            return Header("NumPy", dtype.itemsize * 8, str(dtype))
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        bits = {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if ";16" in image.mode else 8)
        packed = image.info.get("compression")  # of BMP a number
        photometric = PHOTOMETRIC.get(image.mode.partition(";")[0])
        return Header(image.format, bits, photometric, packed if isinstance(packed, str) else None)
    return Header()


def pixel_bytes(content: bytes) -> int:
    """Return how many bytes a picture's pixels take when decoded, by its header; 0 if it does not say."""
    with suppress(Exception):
        if content[:4] in TIFF:
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                page = file.pages.first
                return int(page.imagewidth * page.imagelength * _depth(page))
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        return image.width * image.height * len(image.getbands())
    return 0


@contextmanager
def _translate_errors(size: int) -> Iterator[None]:
    """Translate every exception of a decoder to ours: for untrusted bytes there is no complete list of them."""
    try:
        yield
    except Rejected:
        raise
    except UnidentifiedImageError as error:
        raise Rejected("no preview of this kind of file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise Rejected(f"too large for a preview: more than {MOST_PIXELS:,} pixels") from error
    except Exception as error:
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise Rejected(f"cut off after {size:,} bytes") from error
        raise Rejected(f"not a picture that can be decoded ({type(error).__name__})") from error


def _check_size(width: int, height: int, depth: int) -> None:
    """Refuse a picture that is too large; `depth` is bytes per pixel."""
    if width * height > MOST_PIXELS or width * height * depth > MOST_BYTES:
        raise Rejected(f"too large for a preview: {width:,} x {height:,} pixels of {depth} bytes")


def _oriented(found: Decoded, orientation: int) -> Decoded:
    """Turn pixels upright by the orientation 1 to 8 of TIFF and EXIF."""

    def turn(pixels: Pixels) -> Pixels:
        if orientation >= 5:
            pixels = pixels.swapaxes(0, 1)
        rows = -1 if orientation in {3, 4, 7, 8} else 1
        columns = -1 if orientation in {2, 3, 6, 7} else 1
        return pixels[::rows, ::columns]

    if not 2 <= orientation <= 8:
        return found
    return replace(found, pixels=turn(found.pixels), alpha=None if found.alpha is None else turn(found.alpha))


def _eight_bits(pixels: Pixels) -> Pixels:
    """Reduce colour channels to 8 bits: integers by their upper bits, fractions from 0 to 1."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        return np.asarray(np.nan_to_num(np.clip(pixels, 0, 1) * 255), np.uint8)
    return np.asarray(pixels >> (8 * (pixels.dtype.itemsize - 1)), np.uint8)


# ---------------------------------------------------------------------------------------------------------------- TIFF


def _tiff(content: bytes, size: int) -> Decoded:
    _check_directory(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = _level(file, size)
        _check_spans(page, content)
        _check_size(page.imagewidth, page.imagelength * page.imagedepth, _depth(page))
        bounded = page.compression in {1, LZMA, *DEFLATED, *BOUNDED}
        if not bounded or page.photometric in PRINTED:
            return _pillow(content, size, stretch=True)
        _check_size(page.tilewidth or 1, page.tilelength or 1, _depth(page))
        _check_decompressed_size(page, content)
        return _oriented(_plane(page, size), _tag(page, ORIENTATION, 1))


def _check_directory(content: bytes) -> None:
    """Refuse a file that ends before its first directory, which many programs write last."""
    order, big = ("<" if content[:2] == b"II" else ">"), content[2:4] in {b"+\0", b"\0+"}
    form, start = (f"{order}Q", 8) if big else (f"{order}I", 4)
    if len(content) < start + struct.calcsize(form):
        raise Rejected(f"cut off after {len(content):,} bytes")
    (offset,) = struct.unpack_from(form, content, start)
    if offset + 2 > len(content):
        raise Rejected(f"cut off after {len(content):,} of {offset + 2:,} bytes, or more")


def _read_tiff_header(content: bytes) -> Header:
    _check_directory(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        named = tifffile.PHOTOMETRIC(page.photometric).name.lower()
        compression = tifffile.COMPRESSION(page.compression).name.lower()
        form = "BigTIFF" if file.is_bigtiff else "TIFF"
        return Header(form, int(page.bitspersample), GREY.get(named, named), compression)


def _level(file: tifffile.TiffFile, size: int) -> Any:
    """Choose the smallest page of a pyramid that is large enough; the first page if it is none."""
    first: Any = file.pages.first
    found = [first]
    with suppress(Exception):  # a damaged pyramid still has its first page
        found += (first.pages or ())[:MOST_LEVELS] if first.subifds else []
        for number in range(1, MOST_LEVELS):
            page: Any = file.pages[number]
            if not page.is_reduced:
                break
            found.append(page)
    alike = [page for page in found if page.bitspersample == first.bitspersample]
    sizes = {id(page): max(page.imagewidth, page.imagelength) for page in alike}
    enough = [page for page in alike if sizes[id(page)] >= size]
    return min(enough, key=lambda page: sizes[id(page)], default=first)


def _tag(page: Any, code: int, default: int) -> int:
    value = page.tags.valueof(code, default)
    return value if isinstance(value, int) else default


def _depth(page: Any) -> int:
    return -(-int(page.bitspersample) // 8) * int(page.samplesperpixel)


def _check_spans(page: Any, content: bytes) -> None:
    """Refuse a page whose strips or tiles go beyond the end of the file, or are too many."""
    spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(spans) > MOST_SEGMENTS:
        raise Rejected(f"too large for a preview: {len(spans):,} strips or tiles")
    end = max((offset + count for offset, count in spans), default=0)
    if end > len(content):
        raise Rejected(f"cut off after {len(content):,} of {end:,} bytes")
    if sum(count for _, count in spans) > len(content):
        raise Rejected(f"too large for a preview: its parts have more than its {len(content):,} bytes")


def _check_decompressed_size(page: Any, content: bytes) -> None:
    """Refuse a page whose strips or tiles would decompress to too many bytes."""
    spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    packed = sum(count for _, count in spans)
    if page.compression not in {LZMA, *DEFLATED} or (page.compression in DEFLATED and packed * RATIO <= MOST_BYTES):
        return
    left = MOST_BYTES
    for offset, count in spans:
        part = content[offset : offset + count]
        for piece in _unpack(part, lzma=page.compression == LZMA):
            left -= len(piece)
            if left < 0:
                raise Rejected(f"too large for a preview: more than {MOST_BYTES:,} bytes when unpacked")


def _unpack(part: bytes, *, lzma: bool) -> Iterator[bytes]:
    """Decompress a strip or tile piece by piece, so that little of it is in memory."""
    if lzma:
        decoder = LZMADecompressor()
        while not decoder.eof and (piece := decoder.decompress(part, PIECE)):
            yield piece
            part = b""
        return
    inflater = zlib.decompressobj()
    while not inflater.eof and (piece := inflater.decompress(part, PIECE)):
        yield piece
        part = inflater.unconsumed_tail


def _plane(page: Any, size: int) -> Decoded:
    """Read the first plane of a page."""
    pixels, axes = page.asarray(), page.axes
    for axis in [name for name in axes if name not in "YXS"]:
        pixels, axes = pixels.take(0, axes.index(axis)), axes.replace(axis, "")
    kind = str(page.dtype)
    if "S" in axes:
        pixels = np.moveaxis(pixels, axes.index("S"), -1)
    channels = 3 if page.photometric == tifffile.PHOTOMETRIC.RGB else 1
    alpha = None
    if pixels.ndim == 3:
        clear = {int(one) for one in page.extrasamples[:1]} & {1, 2}  # associated or not
        alpha = _eight_bits(pixels[..., channels]) if clear and pixels.shape[2] > channels else None
        pixels = pixels[..., :channels] if channels == 3 else pixels[..., 0]
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        step = max(1, max(pixels.shape[:2]) // (2 * size))  # indices cannot be averaged
        colours = np.moveaxis(page.colormap, 0, -1)[pixels[::step, ::step].astype(np.uint16)]
        eight = page.colormap.max() < 256  # some writers use 8 of the 16 bits
        return Decoded(colours.astype(np.uint8) if eight else (colours >> 8).astype(np.uint8), kind, alpha=alpha)
    white = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    if pixels.ndim == 3:
        return Decoded(_eight_bits(pixels), kind, alpha=alpha)
    if pixels.dtype == np.bool_:
        return Decoded(pixels * np.uint8(255), kind, white=white, alpha=alpha)
    return Decoded(np.abs(pixels) if np.iscomplexobj(pixels) else pixels, kind, stretch=True, white=white, alpha=alpha)


# -------------------------------------------------------------------------------------------------------------- Pillow


def _pillow(content: bytes, size: int, *, stretch: bool = False) -> Decoded:
    """Read with Pillow; grey is stretched with `stretch`, and if it has more than 8 bits."""
    image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    image.draft(None, (2 * size, 2 * size))  # JPEG can be decoded at a smaller size
    width, height = image.size
    if image.format == "JPEG2000":  # and so can JPEG 2000
        less = min(max((max(image.size) // (2 * size)).bit_length() - 1, 0), 5)
        vars(image)["_reduce"] = less
        width, height = width >> less, height >> less
    _check_size(width, height, len(image.getbands()))
    image.load()
    turned = 1
    with suppress(Exception):  # damaged metadata never stop pixels
        turned = int(image.getexif().get(ORIENTATION, 1))  # none where Pillow has turned the pixels already
    return _oriented(_channels(image, stretch=stretch), turned)


def _channels(image: Image.Image, *, stretch: bool) -> Decoded:
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image)
        return Decoded(pixels, str(pixels.dtype), stretch=True)
    if image.mode in {"1", "L"} and "transparency" not in image.info:
        return Decoded(np.asarray(image.convert("L")), "bool" if image.mode == "1" else "uint8", stretch=stretch)
    if "transparency" in image.info or "A" in image.mode or "a" in image.mode:
        pixels = np.asarray(image.convert("RGBA"))
        return Decoded(pixels[..., :3], "uint8", alpha=pixels[..., 3])
    return Decoded(np.asarray(image.convert("RGB")), "uint8")


# -------------------------------------------------------------------------------------------------- arrays and DICOM


def _npy(content: bytes) -> Decoded:
    """Read an array of NumPy: the first plane of the last two axes, or a single row."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype.kind not in "buif" or array.ndim < 2 or not array.size:
        raise Rejected(f"no preview of an array of {array.dtype} with {array.ndim} axes")
    plane = array.reshape(-1, *array.shape[-2:])[0]
    _check_size(plane.shape[1], plane.shape[0], array.dtype.itemsize)
    return Decoded(plane, str(array.dtype), stretch=array.dtype != np.bool_)


def _dicom(content: bytes) -> Decoded:
    """Read the first frame of a DICOM file, by its own slope and window."""
    try:
        import pydicom  # noqa: PLC0415  an extra
        from pydicom.pixels.processing import apply_rescale  # noqa: PLC0415
        from pydicom.pixels.utils import pixel_array  # noqa: PLC0415
    except ImportError as error:
        raise Rejected("no preview of DICOM here: install plateway[dicom]") from error
    file = pydicom.dcmread(io.BytesIO(content))
    if "PixelData" not in file:
        raise Rejected("no preview: the DICOM file has no pixels")
    samples = int(file.SamplesPerPixel)
    _check_size(int(file.Columns), int(file.Rows), samples * -(-int(file.BitsAllocated) // 8))
    pixels = pixel_array(file, index=0)
    if samples > 1:
        return Decoded(_eight_bits(pixels), str(pixels.dtype))
    white = str(file.PhotometricInterpretation) == "MONOCHROME1"
    values = apply_rescale(pixels, file)
    centre, width = (_first(file.get(name)) for name in ("WindowCenter", "WindowWidth"))
    levels = None if centre is None or not width or width < 1 else (centre - width / 2, centre + width / 2)
    return Decoded(values, WINDOWED if levels else str(pixels.dtype), stretch=True, white=white, levels=levels)


def _read_dicom_header(content: bytes) -> Header:
    import pydicom  # noqa: PLC0415  an extra

    file = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    return Header("DICOM", int(file.BitsStored), str(file.PhotometricInterpretation))


def _first(value: Any) -> float | None:
    """Return the first of the values that a DICOM element has."""
    with suppress(TypeError, ValueError, IndexError):
        return float(value if isinstance(value, int | float | str) else value[0])
    return None
