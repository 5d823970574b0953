"""What files say about themselves: shown where it is technical, and never in the way of a picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from plateway.gateway.file_metadata import LONGEST, Metadata, read_metadata

IDENTIFYING = {
    "PatientName": "Doe^Jane",
    "PatientID": "4711-canary",
    "PatientBirthDate": "19700101",
    "StudyDate": "20261121",
    "StudyInstanceUID": "1.2.3.4711",
    "InstitutionName": "canary hospital",
    "ProtocolName": "canary protocol",
    "DeviceSerialNumber": "canary-7",
    "StudyDescription": "canary study",
}


def dicom() -> bytes:
    """A DICOM file with names, dates, identifiers and technical values."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4.5")
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in IDENTIFYING.items():
        setattr(file, name, value)
    file.Modality, file.KVP, file.Rows, file.Columns = "XC", "120", 4, 5
    file.BitsAllocated = file.BitsStored = 8
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_shows_nothing_that_identifies_a_person() -> None:
    """Only numbers and codes about acquisition and pixels; how many are left out is counted."""
    found = read_metadata(dicom())
    named = dict(found.entries)
    assert (named["Modality"], named["KVP"], named["Rows"], named["Columns"]) == ("XC", "120", "4", "5")
    assert named["TransferSyntaxUID"] == "Explicit VR Little Endian"
    assert not IDENTIFYING.keys() & named.keys()
    shown = " ".join(named.values())
    assert all(one not in shown for one in ("canary", "4711", "Doe", "1970", "20261121"))
    assert found.left_out >= len(IDENTIFYING)


def test_tags_of_tiff_are_shown_without_the_layout() -> None:
    """Description, software and resolution, but no offsets; long values are cut."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {
        "description": "x" * 1000,
        "software": "Echo 3",
        "resolution": (300, 300),
        "metadata": None,
    }
    tifffile.imwrite(buffer, np.zeros((4, 4), np.uint16), **options)
    named = dict(read_metadata(buffer.getvalue()).entries)
    assert named["Software"] == "Echo 3"
    assert len(named["ImageDescription"]) == LONGEST + 1
    assert not {"StripOffsets", "StripByteCounts"} & named.keys()


def test_exif_is_shown_without_the_location() -> None:
    """Camera and exposure, but not where the picture was taken."""
    image = Image.new("RGB", (4, 4))
    exif = image.getexif()
    exif[0x0110] = "Canon EOS"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    named = dict(read_metadata(buffer.getvalue()).entries)
    assert named["Model"] == "Canon EOS"
    assert float(named["ExposureTime"]) == pytest.approx(0.01)
    assert not [name for name in named if name.startswith("GPS")]


@pytest.mark.parametrize("content", [b"", b"II*\0", b"\0" * 128 + b"DICM", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_damaged_files_have_no_metadata(content: bytes) -> None:
    """Nothing is raised."""
    assert read_metadata(content) == Metadata()
