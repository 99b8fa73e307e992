"""Annotations of boxes as the usual tools write them (COCO, YOLO, Pascal VOC), read by name, and checked."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkd.core.boxes import box_faults
from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.io.checks import Finding

Size = tuple[int, int]
NamedBox = tuple[str, tuple[float, ...]]

_ROUNDING = 1.0
"""Pixels that a box may stick out of the image without being worth a word: annotation tools round."""
_EQUAL = 0.5  # pixels
_CORRECT = "correct the annotation, or remove the image"


@dataclass(frozen=True)
class Drawn:
    """The boxes of one image as one file states them.

    Attributes:
        file: where they stand.
        boxes: class name and (x_min, y_min, x_max, y_max) in pixels each.
        size: (width, height) of the image according to the file; None where it does not say.
        unknown: classes that the file uses but does not name.
        unusable: annotations that give no box of one object, in words.
    """

    file: Path
    boxes: tuple[NamedBox, ...] = ()
    size: Size | None = None
    unknown: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    def joined(self, other: Drawn) -> Drawn:
        """The annotations of both, which are of the same image."""
        size = self.size or other.size
        return Drawn(
            self.file, self.boxes + other.boxes, size, self.unknown + other.unknown, self.unusable + other.unusable
        )


@dataclass(frozen=True)
class Coco:
    """A COCO file.

    Attributes:
        categories: names in the order of their ids.
        images: file name → its boxes.
        findings: annotations of no image, images listed twice.
    """

    categories: tuple[str, ...]
    images: Mapping[str, Drawn]
    findings: tuple[Finding, ...] = field(default=())


def read_coco(path: Path) -> Coco:
    """Read a COCO file; boxes are taken from ``bbox``, or from the polygons where there is none.

    An annotation without either, and one of a crowd (``iscrowd``), which COCO's evaluation ignores, is unusable.

    Raises:
        DataError: the file is no COCO file.
    """
    data = read_json(path)
    try:
        names = {c["id"]: str(c["name"]) for c in sorted(data["categories"], key=lambda c: c["id"])}
        found: dict[Any, Drawn] = {image["id"]: Drawn(path, size=_coco_size(image)) for image in data["images"]}
        stray = 0
        for annotation in data.get("annotations", []):
            of = annotation["image_id"]
            stray += of not in found
            if of in found:
                found[of] = found[of].joined(_coco_annotation(path, annotation, names))
        images: dict[str, Drawn] = {}
        twice = []
        for image in data["images"]:
            name = str(image["file_name"])
            twice += [name] if name in images else []
            images[name] = images[name].joined(found[image["id"]]) if name in images else found[image["id"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a COCO file with 'images', 'annotations' and 'categories', found {error!r}."
        ) from error
    findings = [
        Finding(
            case="",
            file=f"{path}: {n}",
            expected="each image once",
            found="the image again",
            action="its boxes were put together",
            error=False,
        )
        for n in twice
    ]
    if stray:
        findings.append(
            Finding(
                case="",
                file=str(path),
                expected="annotations of listed images",
                found=f"{stray} of no image",
                action="list their images in 'images'",
            )
        )
    return Coco(tuple(dict.fromkeys(names.values())), images, tuple(findings))


def read_yolo(path: Path, names: Sequence[str], size: Size) -> Drawn:
    """Read a YOLO file: a class number and centre and size (or a polygon) relative to the image per line.

    Raises:
        DataError: a line has another form.
    """
    boxes: list[NamedBox] = []
    unknown = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            index, values = int(float(line.split()[0])), [float(v) for v in line.split()[1:]]
        except ValueError:
            index, values = -1, []
        if index < 0 or (len(values) != 4 and (len(values) < 6 or len(values) % 2)):
            raise DataError(
                f"{path}, line {number}: expected 'class x_centre y_centre width height', found '{line.strip()[:60]}'."
            )
        if index >= len(names):
            unknown.append(f"class {index}")
        else:
            boxes.append((names[index], _yolo_box(values, size)))
    return Drawn(path, tuple(boxes), None, tuple(unknown))


def read_voc(path: Path, *, one_based: bool = False) -> tuple[Drawn, str]:
    """Read a Pascal VOC file; also returns the image's file name.

    Args:
        path: the XML file.
        one_based: coordinates count pixels from 1 and include the last one, as in the original VOC data. The tools that
            radiographs are annotated with write continuous coordinates from 0.

    Raises:
        DataError: the file is no VOC file.
    """
    shift = 1.0 if one_based else 0.0
    try:
        root = ET.parse(path).getroot()
        boxes = []
        for item in root.iter("object"):
            corners = item.find("bndbox")
            left, top, right, bottom = (float(corners.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[union-attr]
            boxes.append((item.findtext("name", "").strip(), (left - shift, top - shift, right, bottom)))
        width, height = (int(float(root.findtext(f"size/{k}", "0"))) for k in ("width", "height"))
    except (ET.ParseError, OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: expected a Pascal VOC annotation, found {error}; export it again.") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: expected a Pascal VOC annotation, found <{root.tag}>.")
    return Drawn(path, tuple(boxes), (width, height) if width and height else None), root.findtext(
        "filename", ""
    ).strip()


def read_yaml_names(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a YOLO ``data.yaml``: all its entries, and the class names in the order of their numbers.

    Raises:
        DataError: the file is not YAML or its ``names`` are no list or numbered table.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = data["names"]
        if isinstance(names, Mapping):
            if sorted(names) != list(range(len(names))):
                raise DataError(
                    f"{path}: expected the class numbers 0 to {len(names) - 1} in 'names', found {sorted(names)}."
                )
            names = [names[i] for i in range(len(names))]
        return data, tuple(str(name) for name in names)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a YAML file with the class 'names', found {error!r}.") from error


def clean_boxes(
    case: str, drawn: Drawn, size: Size, categories: Collection[str]
) -> tuple[list[NamedBox], list[Finding]]:
    """Boxes that can be trained on, and what was wrong.

    A box that sticks out of the image is cut at its border (a warning if by more than a pixel), one that is there twice
    is kept once (a warning). A box of no area or wholly outside, an unknown class and an unusable annotation are
    errors: an image that lacks one of its boxes would teach that there is nothing.

    Args:
        case: case id.
        drawn: what the annotation says.
        size: (width, height) of the image.
        categories: the classes that are known.
    """
    findings: list[Finding] = []
    kept: list[NamedBox] = []
    for name in dict.fromkeys((*drawn.unknown, *(name for name, _ in drawn.boxes if name not in categories))):
        findings.append(
            Finding(
                case=case,
                file=str(drawn.file),
                expected=f"the classes {', '.join(categories)}",
                found=f"'{name}'",
                action="name it, or correct the file",
            )
        )
    for text in drawn.unusable:
        expected, action = (
            "a bbox of four numbers, or polygons, of one object",
            "correct it (iscrowd 0 if it is one), or remove the image",
        )
        findings.append(Finding(case=case, file=str(drawn.file), expected=expected, found=text, action=action))
    for name, box in drawn.boxes:
        cut, finding = _cut(case, drawn.file, name, box, size)
        findings += [finding] if finding else []
        if cut is None:
            continue
        if any(name == other and max(map(_gap, cut, twin)) <= _EQUAL for other, twin in kept):
            findings.append(
                Finding(
                    case=case,
                    file=str(drawn.file),
                    expected="each box once",
                    found=f"{_text(name, box)} twice",
                    action="one was kept",
                    error=False,
                )
            )
        else:
            kept.append((name, cut))
    return kept, findings


def disagreement(first: Sequence[NamedBox], second: Sequence[NamedBox], tolerance: float) -> str | None:
    """How two statements about the same image differ, in words; None where they agree within ``tolerance`` pixels."""
    if len(first) != len(second):
        return f"{len(second)} boxes instead of {len(first)}"
    rest = list(second)
    for name, box in first:
        near = min(rest, key=lambda other: max(map(_gap, box, other[1])) + (0 if other[0] == name else 1e6))
        distance = max(map(_gap, box, near[1]))
        if near[0] != name:
            return f"the classes {', '.join(sorted(n for n, _ in second))} instead of {', '.join(sorted(n for n, _ in first))}"
        if not distance <= tolerance:
            return f"a box of {name} that lies {distance:.3g} px away"
        rest.remove(near)
    return None


def _cut(
    case: str, file: Path, name: str, box: tuple[float, ...], size: Size
) -> tuple[tuple[float, ...] | None, Finding | None]:
    """The box within the image and a finding, if there is one; None instead of a box that cannot be used."""
    expected = f"a box inside the image of {size[0]}×{size[1]} px"
    if not all(math.isfinite(v) for v in box):
        return None, Finding(case=case, file=str(file), expected=expected, found=_text(name, box), action=_CORRECT)
    cut = tuple(round(min(max(v, 0.0), float(limit)), 3) for v, limit in zip(box, (*size, *size), strict=True))
    outside = max(map(_gap, box, cut))
    if fault := box_faults(cut, *size):
        found = f"{_text(name, box)} with {fault if outside <= _ROUNDING else 'nothing inside'}"
        return None, Finding(
            case=case, file=str(file), expected=f"{expected} and with area", found=found, action=_CORRECT
        )
    if outside <= _ROUNDING:
        return cut, None
    return cut, Finding(
        case=case,
        file=str(file),
        expected=expected,
        found=f"{_text(name, box)}, {outside:.3g} px outside",
        action="it was cut at the border",
        error=False,
    )


def _coco_size(image: Mapping[str, Any]) -> Size | None:
    """(width, height) as stated; None where it is absent, null or 0, so that the image's own is taken."""
    width, height = image.get("width"), image.get("height")
    return (int(width), int(height)) if width and height else None


def _coco_annotation(path: Path, annotation: Mapping[str, Any], names: Mapping[Any, str]) -> Drawn:
    """What one annotation adds to its image."""
    label = f"annotation {annotation.get('id', '(without id)')}"
    try:
        category, crowd = annotation.get("category_id"), bool(annotation.get("iscrowd"))
        if category not in names:
            return Drawn(path, unknown=(f"category_id {category}",))
        if crowd:
            return Drawn(path, unusable=(f"{label} of a crowd (iscrowd 1)",))
        return Drawn(path, ((names[category], _coco_box(annotation)),))
    except (KeyError, TypeError, ValueError, IndexError):
        shape = annotation.get("bbox") or annotation.get("segmentation")
        return Drawn(path, unusable=(f"{label} with {str(shape)[:60] if shape else 'neither'}",))


def _coco_box(annotation: Mapping[str, Any]) -> tuple[float, ...]:
    if annotation.get("bbox"):
        x, y, w, h = (float(v) for v in annotation["bbox"])
        return x, y, x + w, y + h
    points = [float(v) for polygon in annotation["segmentation"] for v in polygon]
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def _yolo_box(values: Sequence[float], size: Size) -> tuple[float, ...]:
    width, height = size
    if len(values) == 4:
        x, y, w, h = values
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    return min(values[::2]) * width, min(values[1::2]) * height, max(values[::2]) * width, max(values[1::2]) * height


def _gap(a: float, b: float) -> float:
    return abs(a - b)


def _text(name: str, box: Sequence[float]) -> str:
    return f"{name} [{', '.join(f'{v:.6g}' for v in box)}]"
