"""Reading radiographs: every pixel as a viewer shows it, more than 8 bits without crushing or blackening."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from medkd.core.errors import DataError
from medkd.io.radiographs import radiograph_size, read_radiograph, to_eight_bit, write_png

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 36), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (24, 36, 3), dtype=np.uint8)


def save_jpeg(path: Path, array: np.ndarray, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(array).save(path, quality=95, exif=exif)
    return path


def truncate(path: Path, share: float = 0.02) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: -max(3, int(len(content) * share))])
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_would_and_the_size_is_known_from_the_header(
    tmp_path: Path, orientation: int
) -> None:
    path = save_jpeg(tmp_path / "a.jpg", GREY, orientation)
    found = read_radiograph(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(found.pixels, np.asarray(ImageOps.exif_transpose(image)))
    assert found.orientation == orientation and found.plain == (orientation == 1)
    assert found.size == radiograph_size(path) and found.stored_size == (36, 24)
    assert read_radiograph(path, upright=False).size == (36, 24)


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
}
TURNS |= {7: lambda a: np.rot90(a, 2).T, 8: np.rot90}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "webp", "tif", "tif lzw", "tif I;16", "tif I;16 lzw", "tif F"])
def test_every_format_is_turned_once(tmp_path: Path, form: str, orientation: int) -> None:
    ending, *rest = form.split()
    stored = GREY.astype({"I;16": np.uint16, "F": np.float32}.get(rest[0] if rest else "", np.uint8))
    stored = stored * 257 if stored.dtype == np.uint16 else stored
    path, exif = tmp_path / f"a.{ending}", Image.Exif()
    exif[274] = orientation
    options = {"webp": {"lossless": True}, "tif": {"compression": "tiff_lzw"} if "lzw" in rest else {}}.get(ending, {})
    Image.fromarray(stored).save(
        path, **({"tiffinfo": {274: orientation}} if ending == "tif" else {"exif": exif}), **options
    )
    found, unturned = read_radiograph(path), read_radiograph(path, upright=False)
    for image, expected in ((found, TURNS[orientation](stored)), (unturned, stored)):
        np.testing.assert_array_equal(image.pixels[..., 0] if ending == "webp" else image.pixels, expected)
        assert image.pixels.dtype == stored.dtype
        assert image.orientation == orientation and image.stored_size == (36, 24)
    assert found.size == radiograph_size(path) and not (found.plain and orientation != 1)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_tiff_whose_zero_is_white_is_not_read_inverted(tmp_path: Path, kind: type, compression: str | None) -> None:
    stored = GREY.astype(kind) * (257 if kind == np.uint16 else 1)
    Image.fromarray(stored).save(tmp_path / "one.tif", compression=compression)
    content = bytearray((tmp_path / "one.tif").read_bytes())
    place = content.index(struct.pack("<HHIH", 262, 3, 1, 1))
    content[place + 8] = 0
    (tmp_path / "zero.tif").write_bytes(content)
    plain, inverse = (read_radiograph(tmp_path / f"{name}.tif").pixels for name in ("one", "zero"))
    np.testing.assert_array_equal(plain, stored)
    np.testing.assert_array_equal(inverse, -stored if kind == np.float32 else np.iinfo(kind).max - stored)
    assert inverse.dtype == kind


def test_opencv_sees_the_same_upright_image(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = save_jpeg(tmp_path / "a.jpg", GREY, 6)
    other = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert np.abs(read_radiograph(path).pixels.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("array", [GREY, COLOUR])
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_plain_files_are_known_as_such(tmp_path: Path, array: np.ndarray, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.fromarray(array).save(path)
    found = read_radiograph(path)
    assert found.plain and found.ending == ending and found.pixels.shape == array.shape


def test_a_jpeg_without_its_end_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 160).astype(np.uint8), (160, 1))
    whole = read_radiograph(save_jpeg(tmp_path / "a.jpg", smooth)).pixels
    found = read_radiograph(truncate(tmp_path / "a.jpg"))
    assert found.truncated and not found.plain and 0 < found.lost < 0.2
    np.testing.assert_array_equal(found.pixels[:128], whole[:128])
    with pytest.raises(OSError, match="truncated"):
        Image.open(tmp_path / "a.jpg").load()


@pytest.mark.parametrize("colour", [False, True])
def test_what_is_lost_of_a_jpeg_is_black_and_measured(tmp_path: Path, colour: bool) -> None:
    """Half of the file is gone: the decoder's mid-grey must not become a sign of damaged images, and true grey
    stays.
    """
    array = np.clip(RNG.normal(60, 20, (160, 160)), 0, 255).astype(np.uint8)
    array[:24] = 128
    array = np.repeat(array[..., None], 3, 2) if colour else array
    whole = read_radiograph(save_jpeg(tmp_path / "a.jpg", array)).pixels
    found = read_radiograph(truncate(tmp_path / "a.jpg", 0.5))
    assert 0.3 < found.lost < 0.6
    np.testing.assert_array_equal(found.pixels[:64], whole[:64])
    assert found.pixels[-48:].max() == 0 and (found.pixels[24:64] == 0).mean() < 0.05


def test_truncated_files_can_be_read_in_threads_while_others_are_judged(tmp_path: Path) -> None:
    """Pillow's own switch is global: one thread's leniency would hide another one's damage."""
    cut = truncate(save_jpeg(tmp_path / "cut.jpg", COLOUR))
    whole = save_jpeg(tmp_path / "whole.jpg", COLOUR)
    wrong: list[Path] = []

    def check(path: Path) -> None:
        for _ in range(10):
            if read_radiograph(path).truncated != (path == cut):
                wrong.append(path)

    threads = [threading.Thread(target=check, args=(path,)) for path in (cut, whole) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_unusual_modes_become_grey_or_colour(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(COLOUR).convert("L" if mode in ("1", "LA") else "RGB").convert(mode).save(path)
    found = read_radiograph(path)
    assert not found.plain and found.pixels.dtype == np.uint8
    assert found.pixels.shape == ((24, 36) if mode in ("1", "LA") else (24, 36, 3))


def test_sixteen_bit_grey_and_colour_keep_all_their_bits(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    grey = RNG.integers(0, 4096, (24, 36)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "grey.png").pixels, grey)
    colour = RNG.integers(0, 65536, (24, 36, 3)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / "colour.png"))
    found = read_radiograph(tmp_path / "colour.png")
    np.testing.assert_array_equal(found.pixels, colour)
    assert not found.plain


@pytest.mark.parametrize("highest", [1023, 4095, 65535])
@pytest.mark.parametrize("scaling", ["percentile", "range"])
def test_any_bit_depth_fills_the_eight_bits_and_keeps_the_order(highest: int, scaling: str) -> None:
    ramp = np.linspace(0, highest, 100 * 100).round().astype(np.uint16).reshape(100, 100)
    found, (low, high) = to_eight_bit(ramp, scaling)  # type: ignore[arg-type]
    assert found.min() == 0 and found.max() == 255
    assert (np.diff(found.reshape(-1).astype(int)) >= 0).all()
    assert len(np.unique(found)) == 256
    expected = np.clip((ramp.astype(np.float64) - low) / (high - low) * 255, 0, 255)
    assert np.abs(found - expected).max() <= 0.51


def test_a_few_hot_pixels_do_not_blacken_the_rest() -> None:
    """12 bits of anatomy and a burnt-in letter at the top of 16 bits: the high byte alone leaves 16 grey values."""
    image = RNG.integers(300, 3000, (200, 200)).astype(np.uint16)
    image[0, :10] = 65535
    found, _ = to_eight_bit(image)
    assert found.mean() > 100 and len(np.unique(found)) > 200
    assert (image >> 8).max() == 255 and np.median(image >> 8) < 12


def test_what_fits_into_eight_bits_is_not_stretched_and_constants_are_black() -> None:
    dark = RNG.integers(0, 90, (9, 9)).astype(np.uint16)
    found, window = to_eight_bit(dark)
    np.testing.assert_array_equal(found, dark)
    assert window == (0.0, 255.0)
    assert to_eight_bit(np.full((4, 4), 3000, np.uint16))[0].max() == 0
    almost = np.zeros((300, 300), np.uint16)
    almost[0, 0] = 4000
    assert to_eight_bit(almost)[0][0, 0] == 255
    with pytest.raises(DataError, match="finite"):
        to_eight_bit(np.full((4, 4), np.nan, np.float32))


def test_written_pngs_hold_the_very_pixels(tmp_path: Path) -> None:
    for name, array in {"g": GREY, "c": COLOUR}.items():
        write_png(tmp_path / f"{name}.png", array)
        found = read_radiograph(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(found.pixels, array)
        assert found.plain


@pytest.mark.parametrize(("content", "text"), [(b"", "empty"), (b"hello", "no image"), (None, "No such file")])
def test_unreadable_files_are_one_sentence(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=text) as error:
        read_radiograph(path)
    assert "bad.png" in str(error.value) and "\n" not in str(error.value)


def test_a_png_without_its_end_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", COLOUR)
    with pytest.raises(DataError, match=r"a\.png"):
        read_radiograph(truncate(tmp_path / "a.png", 0.3))
