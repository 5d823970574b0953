"""Metadata that image files carry: tags of TIFF, EXIF and texts of PNG and JPEG, elements of DICOM.

Of DICOM only technical elements are read: numbers and coded values about acquisition and pixels. Names, dates,
identifiers and free text, which may identify a person, are counted and left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import tifffile
from PIL import ExifTags, Image

from plateway.gateway.decoders import FORMATS, TIFF

MOST = 100  # entries of one file
LONGEST = 300  # characters of a value
LAYOUT = frozenset({273, 279, 320, 324, 325, 330, 347, 34665, 34853})  # tags of TIFF that say where pixels are, and GPS
EXIF_IFD, LOCATION = 0x8769, 0x8825  # directories in EXIF; where a picture was taken is left out
TECHNICAL = frozenset({0x0002, 0x0018, 0x0028})  # groups of DICOM: the file, acquisition, pixels
CODED = frozenset({"US", "SS", "UL", "SL", "FL", "FD", "DS", "IS", "CS"})  # kinds of values that are numbers or codes
NAMED = frozenset({"Modality", "TransferSyntaxUID"})  # elements of other groups or kinds that are read as well


class Metadata(NamedTuple):
    """Names and values, in the order of the file, and how many entries were left out."""

    entries: tuple[tuple[str, str], ...] = ()
    left_out: int = 0


NOTHING = Metadata()


def read_metadata(content: bytes) -> Metadata:
    """Read what a file says about itself; nothing where it is damaged: metadata never stop pixels."""
    with suppress(Exception):
        if content[:4] in TIFF:
            return _collect(_read_tiff(content))
        if content[128:132] == b"DICM":
            return _read_dicom(content)
        return _collect(_read_pillow(content))
    return NOTHING


def _collect(found: Iterator[tuple[str, Any]]) -> Metadata:
    entries = [(name, text) for name, value in found if (text := _format(value))]
    return Metadata(tuple(entries[:MOST]), max(len(entries) - MOST, 0))


def _format(value: Any) -> str:
    """Format a value in one line; empty for what is long and binary."""
    if isinstance(value, bytes):
        try:
            value = value.decode().rstrip("\0")
        except UnicodeDecodeError:
            return ""
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _read_tiff(content: bytes) -> Iterator[tuple[str, Any]]:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for tag in file.pages.first.tags:
            if tag.code not in LAYOUT:
                value = tag.value
                yield tag.name, getattr(value, "name", value)


def _read_pillow(content: bytes) -> Iterator[tuple[str, Any]]:
    image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    for name, value in image.info.items():
        if (
            isinstance(name, str)
            and isinstance(value, str | int | float | tuple)
            and name not in {"exif", "icc_profile"}
        ):
            yield name, value
    exif = image.getexif()
    for tags in (exif, exif.get_ifd(EXIF_IFD)):
        for code, value in tags.items():
            if code not in {EXIF_IFD, LOCATION}:
                yield ExifTags.TAGS.get(code, f"tag {code}"), value


def _read_dicom(content: bytes) -> Metadata:
    import pydicom  # noqa: PLC0415  an extra

    file = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    every = [*file.file_meta, *file]
    told = [one for one in every if _is_technical(one)]
    entries = [(str(one.keyword), _format(getattr(one.value, "name", one.value))) for one in told[:MOST]]
    return Metadata(tuple(entries), len(every) - len(entries))


def _is_technical(element: Any) -> bool:
    if element.keyword in NAMED:
        return True
    return bool(element.keyword) and element.tag.group in TECHNICAL and element.VR in CODED
