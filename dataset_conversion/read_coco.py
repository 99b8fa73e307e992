"""COCO files: what they state about each image.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, arXiv:1405.0312 (the format).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_conversion.boxes import Drawn, Size
from dataset_conversion.findings import problem, warning
from medkd.core.errors import DataError
from medkd.core.files import read_json
from medkd.io.checks import Finding

Corners = tuple[float, ...]
Annotations = Mapping[Any, list[Mapping[str, Any]]]
"""Image id → its annotations."""
_FLAGS = {"0": False, "0.0": False, "false": False, "none": False, "": False, "1": True, "1.0": True, "true": True}
_ROUNDING = 1.0  # pixels
_ENOUGH = 3
"""Boxes of a file that must agree before it is said to be written in another convention."""


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

    An annotation without either is unusable; the box of a crowd (``iscrowd``) is kept as one to be ignored, as COCO's
    evaluation does. Ids may be numbers or texts. Where annotations belong to no listed image, an image without
    annotations may be theirs, so that it is no negative.

    Raises:
        DataError: the file is no COCO file, no annotation belongs to an image, an id is that of two images, or the
            boxes are fractions of the image or pairs of corners.
    """
    data = read_json(path)
    try:
        names = _category_names(data)
        files = _file_names(path, data["images"])
        annotations, strays = _by_image(data["annotations"] or [], files)
        drawn = _drawn(path, data["images"], annotations, names)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: expected a COCO file with 'images', 'annotations' and 'categories', found {error!r}."
        ) from error
    _check_convention(path, list(drawn.values()))
    if strays and not any(annotations.values()):
        raise DataError(
            f"{path}: none of its {len(strays)} annotations belongs to a listed image, the first has "
            f"{strays[0]}; correct 'image_id', or list the images."
        )
    if strays:
        for key, found in drawn.items():
            drawn[key] = _doubtful(found, len(strays))
    images, findings = _by_name(path, files, drawn)
    if strays:
        found_text = f"{len(strays)} of no image, the first has {strays[0]}"
        action = "list their images in 'images', or correct 'image_id'"
        expected = "annotations of listed images"
        findings.append(problem("", path, expected, found_text, action))
    return Coco(tuple(dict.fromkeys(names.values())), images, tuple(findings))


def _drawn(
    path: Path, images: Sequence[Mapping[str, Any]], annotations: Annotations, names: Mapping[Any, str]
) -> dict[Any, Drawn]:
    """Image id → what is drawn in it."""
    drawn: dict[Any, Drawn] = {}
    for image in images:
        key = _key(image["id"])
        drawn[key] = Drawn(path, size=_size(image))
    for key in drawn:
        for annotation in annotations[key]:
            drawn[key] = drawn[key].joined(_annotation(path, annotation, names))
    return drawn


def _key(value: Any) -> Any:
    """An id as a number where it is one, whether it is written as a number or as text."""
    if isinstance(value, bool):
        raise TypeError(f"the id {value}, which is neither a number nor a text")
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    hash(value)
    return value


def _category_names(data: Mapping[str, Any]) -> dict[Any, str]:
    """Id → name, in the order of the ids."""
    names: dict[Any, str] = {}
    for category in data["categories"]:
        names[_key(category["id"])] = str(category["name"]).strip()
    keys = sorted(names, key=lambda key: (isinstance(key, str), key))
    return {key: names[key] for key in keys}


def _file_names(path: Path, images: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Image id → file name."""
    names: dict[Any, str] = {}
    for image in images:
        key, name = _key(image["id"]), str(image["file_name"])
        if names.setdefault(key, name) != name:
            raise DataError(
                f"{path}: expected an id of its own for each image, found {key} for {names[key]} and {name}; number "
                "them anew."
            )
    return names


def _by_image(annotations: Sequence[Mapping[str, Any]], files: Mapping[Any, str]) -> tuple[Annotations, list[str]]:
    """The annotations of each image, and the image ids of those that belong to none."""
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    strays = []
    for annotation in annotations:
        key = _key(annotation["image_id"])
        if key in files:
            found[key].append(annotation)
        else:
            strays.append(f"image_id {annotation['image_id']!r}")
    return found, strays


def _by_name(
    path: Path, files: Mapping[Any, str], drawn: Mapping[Any, Drawn]
) -> tuple[dict[str, Drawn], list[Finding]]:
    """File name → its boxes; those of an image that is listed under two ids are put together."""
    images: dict[str, Drawn] = {}
    findings = []
    for key, name in files.items():
        if name in images:
            images[name] = images[name].joined(drawn[key])
            action = "its boxes were put together"
            findings.append(warning("", f"{path}: {name}", "each image once", "the image again", action))
        else:
            images[name] = drawn[key]
    return images, findings


def _doubtful(drawn: Drawn, strays: int) -> Drawn:
    """An image without annotations in a file with annotations of no image: nobody knows that it is a negative."""
    if drawn.boxes or drawn.unknown or drawn.unusable or drawn.ignored:
        return drawn
    text = f"no annotation, while {strays} annotations of this file belong to no image"
    return Drawn(drawn.file, size=drawn.size, unusable=(text,))


def _size(image: Mapping[str, Any]) -> Size | None:
    """(width, height) as stated; None where it is absent, null or 0, so that the image's own is taken."""
    width, height = image.get("width"), image.get("height")
    if not width or not height:
        return None
    return int(width), int(height)


def _annotation(path: Path, annotation: Mapping[str, Any], names: Mapping[Any, str]) -> Drawn:
    """What one annotation adds to its image."""
    label = f"annotation {annotation.get('id', '(without id)')}"
    category = _key(annotation.get("category_id"))
    if category not in names:
        return Drawn(path, unknown=(f"category_id {category}",))
    crowd = _flag(annotation.get("iscrowd"))
    if crowd is None:
        return Drawn(path, unusable=(f"{label} with iscrowd {annotation['iscrowd']!r:.60}",))
    try:
        named = ((names[category], _corners(annotation)),)
        return Drawn(path, ignored=named) if crowd else Drawn(path, named)
    except (KeyError, TypeError, ValueError, IndexError):
        shape = annotation.get("bbox") or annotation.get("segmentation")
        return Drawn(path, unusable=(f"{label} with {str(shape)[:60] if shape else 'neither'}",))


def _flag(value: Any) -> bool | None:
    """A flag that may be written as a number, as a truth value, or as the text of one; None for anything else."""
    return _FLAGS.get(str(value).strip().casefold())


def _corners(annotation: Mapping[str, Any]) -> Corners:
    if annotation.get("bbox"):
        x, y, width, height = map(float, annotation["bbox"])
        return x, y, x + width, y + height
    points: list[float] = []
    for polygon in annotation["segmentation"]:
        points += map(float, polygon)
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _check_convention(path: Path, drawn: Sequence[Drawn]) -> None:
    """Refuse a file whose boxes are corners instead of a corner with width and height.

    It is one if every box is a right pair of corners inside of its image, and some box sticks out when it is read as
    COCO defines it.
    """
    outside = 0
    boxes: list[tuple[Corners, Size]] = []
    for image in drawn:
        if image.size is not None:
            boxes += [(box, image.size) for _, box in image.boxes]
    for (left, top, right, bottom), (width, height) in boxes:
        x, y = right - left, bottom - top
        if not (left < x <= width + _ROUNDING and top < y <= height + _ROUNDING):
            return
        outside += right > width + _ROUNDING or bottom > height + _ROUNDING
    if outside and len(boxes) >= _ENOUGH:
        raise DataError(
            f"{path}: expected 'bbox' as x, y, width and height, but all {len(boxes)} of them are corners (x_min, "
            f"y_min, x_max, y_max), for read as COCO has it {outside} reach out of their images; convert them."
        )
