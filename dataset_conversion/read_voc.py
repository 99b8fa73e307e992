"""Pascal VOC files: one XML per image.

Everingham et al., The Pascal Visual Object Classes (VOC) Challenge, IJCV 2010, doi:10.1007/s11263-009-0275-4 (the
format).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from dataset_conversion.boxes import Drawn, NamedBox
from medkd.core.errors import DataError
from medkd.core.files import check_file

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path: Path, *, one_based: bool = False) -> tuple[Drawn, str]:
    """Read a Pascal VOC file; also returns the image's file name.

    Args:
        path: the XML file.
        one_based: coordinates count pixels from 1 and include the last one, as in the original VOC data. The tools that
            radiographs are annotated with write continuous coordinates from 0.

    Raises:
        DataError: the file is no VOC file.
    """
    check_file(path)
    try:
        root = ET.parse(path).getroot()
        if root.tag != "annotation":
            raise DataError(f"{path}: expected a Pascal VOC annotation, found <{root.tag}>.")
        first = 1.0 if one_based else 0.0
        boxes = [_box(item, first) for item in root.iter("object")]
        _check_boxes(root)
        width, height = _side(root, "width"), _side(root, "height")
    except (ET.ParseError, OSError, ValueError, OverflowError, LookupError) as error:
        raise DataError(f"{path}: expected a Pascal VOC annotation, found {error}; export it again.") from error
    size = (width, height) if width and height else None
    return Drawn(path, tuple(boxes), size), (root.findtext("filename") or "").strip()


def _check_boxes(root: ET.Element) -> None:
    """See to it that every box belongs to an object: a misspelt <object> must not make a negative of its image."""
    strays = set(root.iter("bndbox"))
    for item in root.iter("object"):
        strays.difference_update(item.iter("bndbox"))
    if strays:
        raise ValueError("a bndbox without an object")


def _side(root: ET.Element, name: str) -> int:
    """Width or height as stated; 0 where it is not."""
    text = root.findtext(f"size/{name}", "0") or "0"
    return int(float(text))


def _box(item: ET.Element, shift: float) -> NamedBox:
    corners = item.find("bndbox")
    if corners is None:
        raise ValueError("an object without bndbox")
    left, top, right, bottom = (float(corners.findtext(name, "")) for name in _CORNERS)
    name = item.findtext("name") or ""
    return name.strip(), (left - shift, top - shift, right, bottom)
