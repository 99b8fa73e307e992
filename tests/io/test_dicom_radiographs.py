"""DICOM radiographs in the 8 bits that a workstation shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from medkd.core.errors import DataError  # noqa: E402
from medkd.io.dicom_radiographs import read_dicom_radiograph, read_eight_bit  # noqa: E402
from tests.io.dicom_series import plane_dataset  # noqa: E402

STORED = np.random.default_rng(0).integers(0, 4096, (24, 36))


def write(path: Path, stored: np.ndarray = STORED, **tags: object) -> Path:
    dataset = plane_dataset(stored)
    dataset.Modality, dataset.SeriesInstanceUID = "DX", "1.2.4"
    dataset.BitsStored, dataset.HighBit = 12, 11
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_window_is_that_of_pydicom(tmp_path: Path, function: str) -> None:
    """pydicom's own windowing is the reference; it keeps the output in the range of the stored bits."""
    from pydicom.pixels import apply_voi_lut

    path = write(tmp_path / "a.dcm", WindowCenter=[1500, 7], WindowWidth=[1000, 3], VOILUTFunction=function)
    expected = apply_voi_lut(STORED.astype(np.uint16), pydicom.dcmread(path)) / 4095 * 255
    assert np.abs(read_dicom_radiograph(path) - expected).max() <= 0.51


def test_slope_and_intercept_come_before_the_window(tmp_path: Path) -> None:
    plain = read_dicom_radiograph(write(tmp_path / "a.dcm", WindowCenter=1500, WindowWidth=1000))
    moved = write(
        tmp_path / "b.dcm", WindowCenter=1500 * 2 - 10, WindowWidth=1999, RescaleSlope=2, RescaleIntercept=-10
    )
    assert np.abs(plain.astype(int) - read_dicom_radiograph(moved)).max() <= 1


def test_a_voi_table_is_applied(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 16], np.linspace(65535, 0, 4096).astype("<u2").tobytes()
    found = read_dicom_radiograph(write(tmp_path / "a.dcm", VOILUTSequence=[item]))
    assert np.abs(found - (255 - STORED / 4095 * 255)).max() <= 1


def test_monochrome1_is_turned_round_and_padding_stays_black(tmp_path: Path) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = read_dicom_radiograph(write(tmp_path / "a.dcm", **window))
    inverse = read_dicom_radiograph(
        write(tmp_path / "b.dcm", 4095 - STORED, PhotometricInterpretation="MONOCHROME1", **window)
    )
    assert np.abs(plain.astype(int) - inverse).max() <= 1
    padded = STORED.copy() // 2
    padded[:5] = 4095
    found = read_dicom_radiograph(
        write(tmp_path / "c.dcm", padded, PixelPaddingValue=4095, PhotometricInterpretation="MONOCHROME1")
    )
    assert found[:5].max() == 0 and found[5:].min() == 0 and found[5:].max() == 255


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 2000}])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("value", "limit"), [(0, None), (4095, None), (0, 9), (4095, 4000)])
def test_padding_is_black_with_and_without_window_and_as_a_range(
    tmp_path: Path, window: dict[str, int], kind: str, value: int, limit: int | None
) -> None:
    """A value of padding that is the white end of MONOCHROME1 must not light up a frame around the hand."""
    stored = STORED // 4 + 1000
    plain = read_dicom_radiograph(write(tmp_path / "a.dcm", stored, PhotometricInterpretation=kind, **window))
    padded = stored.copy()
    padded[:5] = value
    padded[:2] = value if limit is None else limit
    tags = {**window, "PixelPaddingValue": value, **({} if limit is None else {"PixelPaddingRangeLimit": limit})}
    found = read_dicom_radiograph(write(tmp_path / "b.dcm", padded, PhotometricInterpretation=kind, **tags))
    assert found[:5].max() == 0 and found[5:].max() > 100
    if window:
        np.testing.assert_array_equal(found[5:], plain[5:])


def test_without_a_window_the_range_is_filled(tmp_path: Path) -> None:
    found = read_eight_bit(write(tmp_path / "a.dcm", STORED // 4 + 300))
    assert found.dtype == np.uint8 and (found.min(), found.max()) == (0, 255)
    order = np.argsort(STORED.reshape(-1) // 4, kind="stable")
    assert (np.diff(found.reshape(-1)[order].astype(int)) >= 0).all()
    small = STORED // 16 // 2  # fits into 8 bits: not stretched, as a PNG of 8 bits is not
    np.testing.assert_array_equal(read_eight_bit(write(tmp_path / "b.dcm", small)), small)


def test_what_is_no_radiograph_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="section of modality CT"):
        read_eight_bit(write(tmp_path / "a.dcm", Modality="CT"))
    with pytest.raises(DataError, match="2 frames"):
        read_eight_bit(write(tmp_path / "b.dcm", np.stack([STORED] * 2), NumberOfFrames=2))
    path = write(tmp_path / "c.dcm")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"c\.dcm is truncated"):
        read_eight_bit(path)
    (tmp_path / "d.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"d\.png: it is empty"):
        read_eight_bit(tmp_path / "d.png")
