"""The same few radiographs as a COCO, a YOLO and a VOC folder, and their conversion."""

from __future__ import annotations

from pathlib import Path

from dataset_conversion import ConversionOptions, convert_dataset
from dataset_conversion.convert import Converted
from tests.dataset_conversion.radiograph_trees import (
    HEIGHT,
    WIDTH,
    Box,
    picture,
    save_jpeg,
    write_coco,
    write_voc,
    write_yolo,
)

NAMES = ("fracture", "implant")
PARTS = {"train": range(6), "val": range(6, 8), "test": range(8, 9)}


def box(number: int) -> Box:
    return (5.0 + number, 6.0, 20.0 + number, 18.0)


def number_of(case: str) -> int:
    return int(case.removeprefix("x"))


def boxes_of(number: int) -> list[tuple[int, Box]]:
    """Every third image is a negative, every second box an implant."""
    return [] if number % 3 == 2 else [(number % 2, box(number))]


def make(kind: str, source: Path, parts: dict[str, range] | None = None) -> Path:
    """A folder in one of the formats; with ``parts`` it has official splits, in the way the format has them."""
    for part, numbers in (parts or {"": range(9)}).items():
        for n in numbers:
            folder = {"coco": f"images/{part}", "yolo": f"images/{part}", "voc": "JPEGImages"}[kind]
            save_jpeg(source / folder / f"x{n}.jpg", picture(n, box=box(n)))
            if kind == "yolo" and (boxes_of(n) or n % 2):
                write_yolo(source / f"labels/{part}/x{n}.txt", boxes_of(n))
            if kind == "voc" and (boxes_of(n) or n % 2):
                write_voc(source / f"Annotations/x{n}.xml", f"x{n}.jpg", [(NAMES[i], b) for i, b in boxes_of(n)])
        if kind == "coco":
            images = {f"x{n}.jpg": (WIDTH, HEIGHT, [(10 + i, b) for i, b in boxes_of(n)]) for n in numbers}
            write_coco(source / f"annotations/instances_{part or 'all'}.json", images, {11: NAMES[1], 10: NAMES[0]})
        if kind == "voc" and part:
            path = source / f"ImageSets/Main/{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(f"x{n}" for n in numbers))
    if kind == "yolo":
        splits = "".join(f"{part}: images/{part}\n" for part in parts or {})
        (source / "data.yaml").write_text(f"path: .\n{splits}names:\n  0: fracture\n  1: implant\n")
    return source


def convert(kind: str, source: Path, root: Path, labels: tuple[str, ...] = (), **settings: str) -> Converted:
    return convert_dataset(
        kind, source, 9, name="Own", root=root, options=ConversionOptions(labels=labels, settings=settings)
    )


KINDS = ("coco", "yolo", "voc")


def patients_table(path: Path, patients: dict[int, str]) -> str:
    path.write_text("\n".join(["image,patient", *(f"x{n}.jpg,{p}" for n, p in patients.items())]))
    return str(path)
