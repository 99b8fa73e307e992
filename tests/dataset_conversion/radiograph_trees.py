"""Radiographs and annotations as the usual tools and the two public data sets write them, small, with their traps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
WIDTH, HEIGHT = 60, 40


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT, box: Box | None = None) -> np.ndarray:
    """A smooth dark field with noise of its own and a bright patch where the box is."""
    rng = np.random.default_rng(seed)
    field = np.linspace(20, 90, width)[None] + np.linspace(0, 30, height)[:, None] + rng.integers(0, 8, (height, width))
    if box is not None:
        left, top, right, bottom = (int(v) for v in box)
        field[top:bottom, left:right] = 240
    return field.astype(np.uint8)


def save_jpeg(path: Path, upright: np.ndarray, orientation: int = 1, cut: int = 0) -> None:
    """Write a JPEG that shows ``upright`` once its EXIF orientation (1, 3, 6 or 8) is applied; ``cut`` bytes are
    missing at its end.
    """
    stored = np.rot90(upright, {1: 0, 3: 2, 6: 1, 8: 3}[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(stored)).save(path, quality=95, **({"exif": exif} if orientation != 1 else {}))
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])


def coco(
    images: Mapping[str, tuple[int, int, Sequence[tuple[int, Box]]]], categories: Mapping[int, str]
) -> dict[str, Any]:
    """COCO content: file name → width, height, (category id, box)."""
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in categories.items()],
    }
    for number, (name, (width, height, boxes)) in enumerate(images.items(), 1):
        data["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for category, (left, top, right, bottom) in boxes:
            box = [left, top, right - left, bottom - top]
            data["annotations"].append(
                {"id": len(data["annotations"]), "image_id": number, "category_id": category, "bbox": box, "iscrowd": 0}
            )
    return data


def write_coco(path: Path, *arguments: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco(*arguments)))


def write_yolo(path: Path, boxes: Sequence[tuple[int, Box]], width: int = WIDTH, height: int = HEIGHT) -> None:
    lines = [
        f"{index} {(a + c) / 2 / width:.4f} {(b + d) / 2 / height:.4f} {(c - a) / width:.4f} {(d - b) / height:.4f}"
        for index, (a, b, c, d) in boxes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + ("\n" if lines else ""))


def write_voc(
    path: Path, name: str, boxes: Sequence[tuple[str, Box]], width: int = WIDTH, height: int = HEIGHT
) -> None:
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{int(a)}</xmin><ymin>{int(b)}</ymin><xmax>{int(c)}</xmax><ymax>{int(d)}</ymax></bndbox></object>"
        for label, (a, b, c, d) in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{name}</filename>{size}{objects}</annotation>")


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and contents."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


FRACTURES: dict[str, tuple[int, int, list[tuple[int, Box]]]] = {
    f"IMG{i:07d}.jpg": (WIDTH, HEIGHT, [(0, (10.4 + i, 8.2, 22.6 + i, 20.9))]) for i in range(8)
}


def make_fracatlas(root: Path) -> Path:
    """FracAtlas: 8 fractured images (5 train, 2 valid, 1 test), 6 without, and one defect of each kind.

    IMG0000001 is stored sideways (EXIF 8), its box is in the upright frame; IMG0000002 equals IMG0000003; IMG0000004 is
    not there; IMG0000006 is one of the valid ones; IMG0000007 is the test image and dataset.csv denies its fracture; of
    the others 11 is turned upside down, 12 is truncated and 13 is not there.
    """
    source = root / "FracAtlas"
    annotations = source / "Annotations"
    for i, (name, (width, height, boxes)) in enumerate(FRACTURES.items()):
        size = (HEIGHT, WIDTH) if i == 1 else (width, height)
        boxes = [(0, (8.0, 20.0, 20.0, 33.5))] if i == 1 else boxes
        FRACTURES[name] = (*size, boxes)
        image = picture(2 if i == 3 else i, *size, boxes[0][1] if i != 3 else FRACTURES["IMG0000002.jpg"][2][0][1])
        if i != 4:
            save_jpeg(source / "images/Fractured" / name, image, 8 if i == 1 else 1)
        write_yolo(annotations / "YOLO" / name.replace("jpg", "txt"), boxes, *size)
        write_voc(
            annotations / "PASCAL VOC" / name.replace("jpg", "xml"), name, [("fractured", b) for _, b in boxes], *size
        )
    for i in range(8, 14):
        name = f"IMG{i:07d}.jpg"
        if i != 13:
            save_jpeg(source / "images/Non_fractured" / name, picture(i), 3 if i == 11 else 1, 12 if i == 12 else 0)
        write_yolo(annotations / "YOLO" / f"{name[:-4]}.txt", [])
        write_voc(annotations / "PASCAL VOC" / f"{name[:-4]}.xml", name, [])
    (annotations / "YOLO/labels.txt").write_text("fractured")
    write_coco(annotations / "COCO JSON/COCO_fracture_masks.json", FRACTURES, {0: "fractured"})
    rows = [f"IMG{i:07d}.jpg,{int(i < 7)},{int(i < 8)}" for i in range(14)]
    (source / "dataset.csv").write_text("\n".join(["image_id,fractured,fracture_count", *rows]))
    for part, numbers in {"train": range(5), "valid": (5, 6), "test": (7,)}.items():
        path = source / f"Utilities/Fracture Split/{part}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["image_id", *(f"IMG{i:07d}.jpg" for i in numbers)]))
    return source


GRAZ_BOXES = {"fracture": (10.0, 8.0, 24.0, 21.0), "text": (40.0, 2.0, 56.0, 9.0), "metal": (30.0, 20.0, 38.0, 33.0)}
GRAZ_NUMBERS = {"fracture": 3, "metal": 4, "text": 8}
GRAZ_COLUMNS = (
    "filestem,patient_id,study_number,timehash,gender,age,laterality,projection,initial_exam,ao_classification,cast,"
    "fracture_visible"
)


def graz_stem(patient: int, study: int, projection: int) -> str:
    return f"{patient:04d}_{1000000000 + patient * 10 + study}_{study:02d}_WRI-L{projection}_M014"


def make_graz(source: Path, patients: int = 8) -> Path:
    """GRAZPEDWRI-DX: per patient two projections; 12 bits in 16; boxes of three of the nine classes; flags 1.0 or
    empty.
    """
    rows = []
    for patient in range(1, patients + 1):
        for projection in (1, 2):
            stem = graz_stem(patient, 1, projection)
            names = ["text", *(["fracture"] if patient % 2 else []), *(["metal"] if patient == 1 else [])]
            array = (
                picture(patient * 2 + projection, box=GRAZ_BOXES["fracture"] if patient % 2 else None).astype(np.uint16)
                * 16
            )
            array[0, 0] = 65535
            path = source / f"images_part{1 + patient % 4}/{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
            write_yolo(
                source / f"folder_structure/yolov5/labels/{stem}.txt", [(GRAZ_NUMBERS[n], GRAZ_BOXES[n]) for n in names]
            )
            write_voc(
                source / f"folder_structure/pascalvoc/{stem}.xml", f"{stem}.png", [(n, GRAZ_BOXES[n]) for n in names]
            )
            flag = "1.0" if patient % 2 else ""
            rows.append(f"{stem},{patient},1,{1000000000 + patient * 10 + 1},M,14.2,L,{projection},,,,{flag}")
    (source / "dataset.csv").write_text("\n".join([GRAZ_COLUMNS, *rows]))
    return source
