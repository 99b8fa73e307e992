"""YOLO files: class names in YAML, boxes and polygons as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_conversion.boxes import Drawn, NamedBox, Size
from medkd.core.errors import DataError
from medkd.core.files import check_file
from medkd.core.resolve import read_lines

Corners = tuple[float, float, float, float]
_EQUAL = 0.01
"""How far, as a share of the image, a box and the ends of the polygon behind it may differ: labels have few digits."""


def read_yolo(path: Path, names: Sequence[str], size: Size, key_points: int = 0) -> Drawn:
    """Read a YOLO file: per line a class number and, relative to the image, centre and size of a box, or the corners of
    a polygon, or a box and behind it its polygon or its key points.

    Each line is read by itself, whatever the others are.

    Args:
        path: the text file.
        names: of the classes.
        size: (width, height) of the image.
        key_points: numbers behind the box of each line (``kpt_shape`` in ``data.yaml``).

    Raises:
        DataError: a line has another form.
    """
    boxes: list[NamedBox] = []
    unknown = []
    for number, line in read_lines(path):
        index, values = _numbers(line)
        box = _fractions(values, key_points)
        if index < 0 or box is None:
            raise DataError(
                f"{path}, line {number}: expected 'class x_centre y_centre width height', found '{line[:60]}'."
            )
        if index >= len(names):
            unknown.append(f"class {index}")
            continue
        left, top, right, bottom = box
        width, height = size
        corners = (left * width, top * height, right * width, bottom * height)
        boxes.append((names[index], corners))
    return Drawn(path, tuple(boxes), None, tuple(unknown))


def read_yaml_names(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a YOLO ``data.yaml``: all its entries, and the class names in the order of their numbers.

    Raises:
        DataError: the file is not YAML or its ``names`` are no list or numbered table.
    """
    import yaml

    check_file(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        names = data["names"]
        if isinstance(names, Mapping):
            names = _in_order(path, names)
        if not isinstance(names, list):
            raise DataError(f"{path}: expected a list of the class 'names', found {names!r}.")
        count = data.get("nc")
        if count is not None and count != len(names):
            raise DataError(
                f"{path}: expected as many class 'names' as 'nc' says, {count!r}, found {len(names)}; correct one of "
                "both."
            )
        return data, tuple(str(name).strip() for name in names)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: expected a YAML file with the class 'names', found {reason}.") from error


def _in_order(path: Path, names: Mapping[Any, Any]) -> list[Any]:
    numbered: dict[int, Any] = {}
    for key, name in names.items():
        text = str(key)
        if text.isdecimal():
            numbered[int(text)] = name
    if len(numbered) != len(names) or sorted(numbered) != list(range(len(names))):
        raise DataError(f"{path}: expected the class numbers 0 to {len(names) - 1} in 'names', found {list(names)}.")
    return [numbered[number] for number in range(len(names))]


def _numbers(line: str) -> tuple[int, list[float]]:
    """Class number and what follows it; -1 and nothing where the line is something else."""
    first, *rest = line.split()
    try:
        number = float(first)
        values = list(map(float, rest))
    except ValueError:
        return -1, []
    if not number.is_integer():
        return -1, []
    return int(number), values


def _fractions(values: Sequence[float], key_points: int) -> Corners | None:
    """The box of a line as fractions of the image (x_min, y_min, x_max, y_max); None where it has none."""
    if len(values) == 4 or (key_points and len(values) == 4 + key_points):
        return _around(values)
    if len(values) < 6 or len(values) % 2:
        return None
    if len(values) >= 10 and _close(_around(values), _ends(values[4:])):  # a box, and behind it the polygon
        return _around(values)
    return _ends(values)


def _around(values: Sequence[float]) -> Corners:
    x, y, width, height = values[:4]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _ends(points: Sequence[float]) -> Corners:
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _close(box: Sequence[float], other: Sequence[float]) -> bool:
    pairs = zip(box, other, strict=True)
    return all(abs(a - b) <= _EQUAL for a, b in pairs)
