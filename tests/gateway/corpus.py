"""A corpus of odd and hostile image files, each generated here, with what must become of it.

``python -m tests.gateway.corpus`` makes a picture of each, prints one JSON object per file, and measures CPU time and
memory: as a process of its own, so that the memory of other tests does not count.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from PIL import Image

from plateway.errors import Rejected
from plateway.gateway import decoders, pictures
from tests.gateway.test_pictures import BLOT, SLOPE, bomb, colours, deflated, dicom, exif, png, saved, tiff

SIZE = 80  # pixels of the pictures
GREY = (SLOPE * 65535).astype(np.uint16)
SMALL = (SLOPE[::9, ::9] * 999).astype(np.uint16)


class Case(NamedTuple):
    """One file: its bytes, and the expected outcome, a picture of this kind or a reason."""

    name: str
    content: Callable[[], bytes]
    picture: str | None = None  # slope | stripes | blot | flat
    reason: str | None = None  # pattern of the reason, if there is no picture


def corpus() -> list[Case]:
    """List all files."""
    rgb = Image.fromarray(colours())
    grey8 = Image.fromarray((SLOPE * 255).astype(np.uint8))
    odd = [
        Case("grey 8 bit.tif", lambda: tiff((SLOPE * 255).astype(np.uint8)), "slope"),
        Case("grey 16 bit, big-endian.tif", lambda: tiff(GREY, byteorder=">"), "slope"),
        Case("grey 32 bit float.tif", lambda: tiff(SLOPE.astype(np.float32)), "slope"),
        Case("grey 64 bit float, negative.tif", lambda: tiff(SLOPE - 7), "slope"),
        Case("not a number.tif", lambda: tiff(np.where(BLOT > 0, np.nan, SLOPE).astype(np.float32)), "any"),
        Case("only infinities.tif", lambda: tiff(np.full((9, 9), np.inf, np.float32)), "flat"),
        Case("BigTIFF.tif", lambda: tiff(GREY, bigtiff=True), "slope"),
        Case(
            "tiles, deflate, predictor.tif",
            lambda: tiff(GREY, tile=(64, 64), compression="zlib", predictor=True),
            "slope",
        ),
        Case("LZW.tif", lambda: saved(grey8, "TIFF", compression="tiff_lzw"), "slope"),
        Case("PackBits.tif", lambda: saved(grey8, "TIFF", compression="packbits"), "slope"),
        Case(
            "colour in planes.tif",
            lambda: tiff(np.moveaxis(colours(), -1, 0), photometric="rgb", planarconfig="separate"),
            "stripes",
        ),
        Case(
            "stack of 40 pages.tif", lambda: tiff(np.stack([GREY, *[GREY * 0] * 39]), photometric="minisblack"), "slope"
        ),
        Case("one row.tif", lambda: tiff(np.arange(400, dtype=np.uint16)[None]), "any"),
        Case("one pixel.tif", lambda: tiff(np.zeros((1, 1), np.uint16)), "flat"),
        Case("colours.png", lambda: saved(rgb, "PNG"), "stripes"),
        Case("palette.png", lambda: saved(rgb.quantize(8), "PNG"), "stripes"),
        Case("grey 16 bit.png", lambda: saved(Image.fromarray(GREY), "PNG"), "slope"),
        Case("transparent.png", lambda: saved(rgb.convert("RGBA"), "PNG"), "stripes"),
        Case("colours.jpg", lambda: saved(rgb, "JPEG", quality=95), "stripes"),
        Case("CMYK.jpg", lambda: saved(rgb.convert("CMYK"), "JPEG", quality=95), "stripes"),
        Case("progressive.jpg", lambda: saved(rgb, "JPEG", progressive=True), "stripes"),
        Case("damaged EXIF.jpg", lambda: damage_exif(saved(rgb, "JPEG", exif=exif(6))), "any"),
        Case("colours.jp2", lambda: saved(rgb, "JPEG2000"), "stripes"),
        Case("colours.bmp", lambda: saved(rgb, "BMP"), "stripes"),
        Case("a JPEG called.tif", lambda: saved(rgb, "JPEG", quality=95), "stripes"),
        Case("frames.dcm", lambda: dicom(np.stack([SLOPE * 1000] * 3), NumberOfFrames=3), "slope"),
        Case("plane.npy", lambda: npy(SLOPE), "slope"),
    ]
    refused = [
        Case("empty.tif", lambda: b"", reason=r"no preview|cut off"),
        Case("four bytes.tif", lambda: b"II*\0", reason=r"cut off after 4 bytes"),
        Case("cut off.tif", lambda: tiff(GREY)[:5000], reason=r"cut off after 5,000 of [\d,]+ bytes"),
        Case("cut off.png", lambda: saved(Image.fromarray(GREY), "PNG")[:200], reason=r"cut off|not a picture"),
        Case("cut off.jpg", lambda: saved(rgb, "JPEG")[:900], reason=r"cut off after 900 bytes"),
        Case("zeros.tif", lambda: bytes(5000), reason=r"no preview"),
        Case("text.tif", lambda: b"no picture at all" * 99, reason=r"no preview"),
        Case("endless directory.tif", lambda: loop_directory(tiff(SMALL)), "any"),
        Case("directory beyond the end.tif", lambda: b"II*\0\xff\xff\xff\x7f" + bytes(99), reason=r"cut off"),
        Case("million pixels a side.tif", lambda: bomb(1, b"x", t256=1 << 20, t257=1 << 20), reason=r"too large"),
        Case("60,000 channels.tif", lambda: bomb(1, b"x", t277=60000), reason=r"too large"),
        Case("deflate bomb.tif", lambda: bomb(8, deflated(200)), reason=r"too large"),
        Case("LZMA bomb.tif", lzma_bomb, reason=r"too large"),
        Case("20,000 pixels a side.png", lambda: png(20000, 20000), reason=r"too large"),
        Case("text bomb.png", lambda: text_bomb(saved(rgb, "PNG")), reason=r"not a picture"),
        Case("without pixels.dcm", without_pixels, reason=r"no pixels"),
        Case("60,000 pixels a side.dcm", lambda: dicom(SLOPE, Rows=60000, Columns=60000), reason=r"too large"),
        Case("one axis.npy", lambda: npy(np.arange(9)), reason=r"no preview of an array"),
        Case("3.5 TiB.npy", huge_npy, reason=r".+"),
        Case("objects.npy", lambda: npy(np.array([{}, {}])), reason=r".+"),
        Case("HDF5.tif", lambda: b"\x89HDF\r\n\x1a\n" + bytes(1000), reason=r"no preview of this kind"),
        Case("FITS.tif", lambda: b"SIMPLE  =                    T" + bytes(1000), reason=r"no preview of this kind"),
        Case("PDF.jpg", lambda: b"%PDF-1.7\n" + bytes(1000), reason=r"no preview of this kind"),
        Case("PostScript.bmp", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(99), reason=r"no preview of this kind"),
    ]  # fmt: skip
    return odd + refused


def lzma_bomb() -> bytes:
    """Write a TIFF whose one strip becomes more bytes than a picture may have."""
    return bomb(34925, lzma.compress(bytes(decoders.MOST_BYTES + 1), preset=0))


def npy(array: Any) -> bytes:
    """Write an array of NumPy."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def huge_npy() -> bytes:
    """Write the header of an array of 3.5 TiB, and nothing else."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (700000, 700000), }"
    padded = header + b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\0" + len(padded).to_bytes(2, "little") + padded


def damage_exif(content: bytes) -> bytes:
    """Overwrite the EXIF directory of a JPEG."""
    at = content.index(b"Exif") + 6
    return content[:at] + b"\xff" * 20 + content[at + 20 :]


def loop_directory(content: bytes) -> bytes:
    """Make the first directory of a TIFF its own successor."""
    first = int.from_bytes(content[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    return content[:end] + content[4:8] + content[end + 4 :]


def text_bomb(content: bytes) -> bytes:
    """Add a compressed text of 64 MiB to a PNG."""
    body = b"zTXtComment\0\0" + zlib.compress(bytes(1 << 26), 9)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return content[:33] + chunk + content[33:]


def without_pixels() -> bytes:
    """Write a DICOM file that has everything but pixels."""
    file = pydicom.dcmread(io.BytesIO(dicom(SLOPE)))
    del file.PixelData
    buffer = io.BytesIO()
    file.save_as(buffer)
    return buffer.getvalue()


def recognise(picture: bytes) -> str:
    """Name what a picture shows, by its pixels."""
    with Image.open(io.BytesIO(picture)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rows = pixels.reshape(pixels.shape[0], -1).mean(axis=1)
    if len(rows) > 9 and rows[0] < 12 and rows[-1] > 243 and (np.diff(rows) > 0).mean() > 0.9:
        return "slope"
    if pixels.shape[1] == SIZE and pixels.shape[0] > 30:
        middle = [pixels[30, column] for column in (12, 40, 68)]
        if all(one.argmax() == channel and one.max() > 150 for channel, one in enumerate(middle)):
            return "stripes"
    return "flat" if np.ptp(pixels) == 0 else "any"


def peak() -> int:
    """Return the largest memory of this process since the last call, in bytes."""
    most = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]  # there is one
    Path("/proc/self/clear_refs").write_text("5")
    return most * 1024


def main() -> None:
    """Make a picture of each file."""
    pictures.thumbnail(tiff(SMALL), size=SIZE)  # what is imported and cached once does not count
    pictures.thumbnail(dicom(SLOPE), size=SIZE)
    for case in corpus():
        content = case.content()
        peak()
        before, began = peak(), time.process_time()
        result: dict[str, Any] = {"name": case.name}
        try:
            result["picture"] = recognise(pictures.thumbnail(content, size=SIZE))
        except Rejected as error:
            result["reason"] = str(error)
        result |= {"seconds": time.process_time() - began, "bytes": peak() - before}
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
