"""Radiographs with boxes in COCO files, from any annotation tool.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, arXiv:1405.0312 (the format).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dataset_conversion.boxes import Coco, Drawn, read_coco
from dataset_conversion.items import SPLIT_NAMES, Item, convert_items, split_name
from dataset_conversion.layout import existing_folder
from dataset_conversion.radiographs import SETTINGS, ImageIndex, Rules
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from medkd.core.errors import DataError
from medkd.io.checks import Finding

GUIDE = """\
Radiographs of your own with boxes in COCO files (CVAT, Label Studio, Roboflow, Supervisely, ... export them).
source:    a folder with one COCO file, or one each for training, validation and test, and the images anywhere below it:
             annotations/instances_train.json, instances_val.json    or    train/_annotations.coco.json, valid/...
             images/...                                              found by 'file_name'
Files whose name or folder says train, val (valid) or test give fold 0 and the test cases; one file alone gives five folds.
Boxes are 'bbox', else the polygons' ends. Images with a crowd (iscrowd 1) or an annotation without either are left out, and named.
Images without boxes are negatives; --labels chooses and orders classes; --patients keeps a patient's images in one fold."""


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert a folder with COCO files and images.

    Raises:
        DataError: there is no COCO file or image, a setting is unknown, or the output cannot be written.
    """
    source = existing_folder(source, "coco")
    files = {path: read_coco(path) for path in _coco_files(source)}
    if not files:
        raise DataError(
            f"{source}: expected a JSON file with 'images', 'annotations' and 'categories', found none; see --help."
        )
    known = tuple(dict.fromkeys(name for content in files.values() for name in content.categories))
    index = ImageIndex(source)
    items, findings = _items(files, index, source)
    listed = {item.image for item in items}
    for path in index.paths:
        if path not in listed:
            action = "it was left out, since it may have boxes; list it in 'images' if it has none"
            findings.append(
                Finding(
                    case="",
                    file=str(path),
                    expected="an image that a COCO file lists",
                    found="an unlisted image",
                    action=action,
                    error=False,
                )
            )
    return convert_items("coco", source, folder, items, Rules.choose(known, options), options, findings)


def _coco_files(source: Path) -> list[Path]:
    """JSON files that are COCO files; the others (settings of tools, other formats) are none of our business."""
    found = []
    for path in sorted(source.rglob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, Mapping) and {"images", "categories"} <= set(data):
            found.append(path)
    return found


def _items(files: Mapping[Path, Coco], index: ImageIndex, source: Path) -> tuple[list[Item], list[Finding]]:
    items: list[Item] = []
    findings: list[Finding] = []
    several = len(files) > 1
    for path, content in files.items():
        findings += content.findings
        part = split_name(path, source) if several else None
        if several and part is None:
            expected = f"a name or folder with {', '.join(SPLIT_NAMES)}"
            findings.append(
                Finding(
                    case="",
                    file=str(path),
                    expected=expected,
                    found=path.name,
                    action="its images were counted as training",
                    error=False,
                )
            )
        for name, drawn in content.images.items():
            try:
                image = index.find(name, path.parent, path.parent.parent / "images")
            except DataError as error:
                findings.append(
                    Finding(
                        case=Path(name).stem,
                        file=str(path),
                        expected="one image of this name",
                        found=str(error).rstrip("."),
                        action="rename or remove one",
                    )
                )
                continue
            if image is None:
                action = "add the image or remove it from the file"
                findings.append(
                    Finding(
                        case=Path(name).stem,
                        file=name,
                        expected=f"an image below {source}, as {path.name} lists",
                        found="no such file",
                        action=action,
                    )
                )
            else:
                items.append(_item(image, drawn, part))
    return items, findings


def _item(image: Path, drawn: Drawn, part: str | None) -> Item:
    negative = not (drawn.boxes or drawn.unknown or drawn.unusable)
    recipe = f"{drawn.size} {drawn.boxes} {drawn.unknown}" + (f" {drawn.unusable}" if drawn.unusable else "")
    return Item(image, lambda size: (drawn, []), (), part, negative, recipe)


CONVERTERS.register("coco")(Converter("radiographs with boxes in COCO files", GUIDE, convert, name_from_path, SETTINGS))
