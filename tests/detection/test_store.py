from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.core.boxes import BoxAnnotation
from medkd.core.errors import DataError
from medkd.detection.store import (
    INDEX_FILE,
    JOURNAL_FILE,
    DetectionStore,
    DetectionStoreWriter,
    source_of_case,
    stored_size,
)
from medkd.io.radiographs import write_png
from tests.detection.builders import make_dataset, make_store

BOXES = ((10.0, 20.0, 40.0, 60.0), (0.0, 0.0, 99.9997, 80.0))


def raw_case(folder: Path, pixels: np.ndarray, name: str = "a") -> tuple[Path, Path]:
    write_png(folder / f"{name}.png", pixels)
    BoxAnnotation(width=pixels.shape[1], height=pixels.shape[0], boxes=BOXES, names=("text", "fracture")).save(
        folder / f"{name}.json"
    )
    return folder / f"{name}.png", folder / f"{name}.json"


def write(writer: DetectionStoreWriter, case: str, image: Path, label: Path) -> None:
    writer.write(case, image, BoxAnnotation.load(label), source_of_case(image, label))


def test_small_images_stay_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100), dtype=np.uint8)
    image, label = raw_case(tmp_path, pixels)
    writer = DetectionStoreWriter(tmp_path / "store", ("fracture", "text"), 128)
    write(writer, "a", image, label)
    store = writer.finish(["a"])
    assert store.cases() == ["a"] and store.size("a") == store.original_size("a") == (100, 80)
    np.testing.assert_array_equal(store.image("a"), np.repeat(pixels[..., None], 3, -1))
    with Image.open(store.image_path("a")) as stored:
        assert stored.mode == "L"
    boxes, classes = store.boxes("a")
    assert boxes.dtype == np.float32 and classes.dtype == np.int64
    np.testing.assert_allclose(boxes, BOXES, atol=1e-3)
    assert classes.tolist() == [1, 0] and store.names("a") == ("text", "fracture") == store.annotations()["a"]
    rows = np.loadtxt(store.label_path("a"), ndmin=2)
    np.testing.assert_allclose(rows[0], [1, 0.25, 0.5, 0.3, 0.5], atol=1e-7)


def test_large_images_are_averaged_over_areas_and_their_boxes_scaled(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    image, label = raw_case(tmp_path, pixels)
    writer = DetectionStoreWriter(tmp_path / "store", ("fracture", "text"), 50)
    write(writer, "a", image, label)
    store = writer.finish(["a"])
    means = pixels.reshape(40, 2, 50, 2, 3).mean((1, 3))
    assert np.abs(store.image("a") - means).max() <= 1
    assert store.size("a") == (50, 40) and store.original_size("a") == (100, 80)
    np.testing.assert_allclose(store.boxes("a")[0], np.array(BOXES) / 2, atol=1e-3)
    assert stored_size((2000, 3), 64) == (64, 1)


def test_negatives_have_an_empty_file(tmp_path: Path) -> None:
    store = make_store(make_dataset(tmp_path, images=3, negatives=1), tmp_path / "store")
    assert store.boxes("image_02")[0].shape == (0, 4) and store.boxes("image_02")[1].shape == (0,)
    assert store.label_path("image_02").read_text() == "" and store.names("image_02") == ()


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=4)
    files = {
        f"image_{i:02d}": (raw / f"imagesTr/image_{i:02d}_0000.png", raw / f"labelsTr/image_{i:02d}.json")
        for i in range(4)
    }
    first = DetectionStoreWriter(tmp_path / "store", ("fracture",), 64)
    for case in list(files)[:3]:
        write(first, case, *files[case])
    journal = tmp_path / "store" / JOURNAL_FILE
    journal.write_text(journal.read_text()[:-30])  # killed while the last line was written
    again = DetectionStoreWriter(tmp_path / "store", ("fracture",), 64)
    current = [case for case in files if again.is_current(case, source_of_case(*files[case]), (96, 72))]
    assert current == ["image_00", "image_01"]
    for case in list(files)[2:]:
        write(again, case, *files[case])
    store = again.finish(list(files))
    whole = make_store(raw, tmp_path / "whole", 64)
    assert store.index == whole.index and not journal.exists()


def _four(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    raw = make_dataset(tmp_path, images=4)
    names = [f"image_{i:02d}" for i in range(4)]
    return {name: (raw / f"imagesTr/{name}_0000.png", raw / f"labelsTr/{name}.json") for name in names}


def _store_all(place: Path, files: dict[str, tuple[Path, Path]], size: int, stop: int | None = None) -> DetectionStore:
    """A preparation, which is killed after so many cases."""
    writer = DetectionStoreWriter(place, ("fracture",), size)
    for case in list(files)[:stop]:
        if not writer.is_current(case, source_of_case(*files[case]), (96, 72)):
            write(writer, case, *files[case])
    return writer.finish(list(files)) if stop is None else writer.store


def test_pictures_and_boxes_of_two_preparations_are_not_read(tmp_path: Path) -> None:
    files, place = _four(tmp_path), tmp_path / "Dataset001_X" / "detection"
    whole = _store_all(place, files, 96)
    assert _store_all(place, files, 96, stop=2).cases() == whole.cases()  # nothing was to be done
    store = _store_all(place, files, 32, stop=2)
    for read in (store.cases, lambda: store.boxes("image_00"), lambda: DetectionStore(place).categories):
        with pytest.raises(DataError, match=r"^[^\n]* run medkd_plan_and_preprocess -d Dataset001_X, [^\n]*\.$"):
            read()
    for size in (32, 96):  # it goes on, and the way back is open, too
        done = _store_all(place, files, size)
        for case in files:
            assert done.size(case) == done.image(case).shape[1::-1] and done.size(case)[0] == size
            assert len(done.label_path(case).read_text().splitlines()) == len(done.boxes(case)[0])


@pytest.mark.parametrize("last", ["picture", "line"])
def test_a_picture_without_its_text_is_made_anew(tmp_path: Path, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files, place = _four(tmp_path), tmp_path / "store"
    _store_all(place, files, 96)
    writer = DetectionStoreWriter(place, ("fracture",), 32)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        write(writer, "image_00", *files["image_00"])
        patch.setattr(
            "medkd.detection.store._journal_line" if last == "picture" else "medkd.detection.store._yolo_lines", killed
        )
        with pytest.raises(KeyboardInterrupt):
            write(writer, "image_01", *files["image_01"])
    done = _store_all(place, files, 96)
    assert all(done.image(case).shape[:2] == (72, 96) for case in files)


def test_texts_of_other_categories_are_made_anew(tmp_path: Path) -> None:
    files, place = _four(tmp_path), tmp_path / "store"
    before = _store_all(place, files, 96).label_path("image_00").read_text()
    other = DetectionStoreWriter(place, ("metal", "fracture"), 96)
    write(other, "image_00", *files["image_00"])
    assert other.store.label_path("image_00").read_text() != before
    assert not _store_all(place, files, 96, stop=1).folder.joinpath(INDEX_FILE).exists()
    assert _store_all(place, files, 96).label_path("image_00").read_text() == before


def test_what_changed_is_not_current(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=2)
    make_store(raw, tmp_path / "store", 64)
    image, label = raw / "imagesTr/image_00_0000.png", raw / "labelsTr/image_00.json"
    source = source_of_case(image, label)

    def current(categories: tuple[str, ...] = ("fracture",), size: int = 64) -> bool:
        return DetectionStoreWriter(tmp_path / "store", categories, size).is_current("image_00", source, (96, 72))

    assert current()
    assert not current(size=32) and not current(size=128) and not current(("metal", "fracture"))
    os.utime(label, ns=(1, 1))
    assert source_of_case(image, label) != source
    (tmp_path / "store/images/image_00.png").unlink()
    assert not current()


def test_removed_cases_leave_the_store(tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, images=3)
    make_store(raw, tmp_path / "store")
    store = DetectionStoreWriter(tmp_path / "store", ("fracture",), 640).finish(["image_00", "image_02"])
    assert store.cases() == ["image_00", "image_02"] and not (tmp_path / "store/images/image_01.png").exists()


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run medkd_plan_and_preprocess"):
        DetectionStore(tmp_path).cases()
    store = make_store(make_dataset(tmp_path, images=2), tmp_path / "store")
    with pytest.raises(DataError, match="does not hold the case 'x'"):
        store.boxes("x")
    path = store.image_path("image_00")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="delete it and run"):
        store.image("image_00")
    (tmp_path / "store" / INDEX_FILE).write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        DetectionStore(tmp_path / "store").cases()
    writer = DetectionStoreWriter(tmp_path / "other", ("fracture",), 64)
    image, _ = raw_case(tmp_path, np.zeros((10, 12), np.uint8))
    with pytest.raises(DataError, match="expected 20×10 px"):
        writer.write("a", image, BoxAnnotation(width=20, height=10), "")
    with pytest.raises(DataError, match="1 cases were not stored"):
        writer.finish(["a"])
