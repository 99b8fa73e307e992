"""Radiographs with boxes in COCO files, from any annotation tool.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, arXiv:1405.0312 (the format).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_conversion.boxes import Drawn
from dataset_conversion.findings import problem, warning
from dataset_conversion.items import SPLIT_NAMES, Item, convert_items, split_name
from dataset_conversion.layout import existing_folder
from dataset_conversion.radiographs import SETTINGS, Rules, image_index
from dataset_conversion.read_coco import Coco, read_coco
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from medkd.core.errors import DataError
from medkd.core.files import check_file, read_json
from medkd.core.resolve import FileIndex, files_ending
from medkd.core.run import DETECTION
from medkd.io.checks import Finding

GUIDE = """\
Radiographs of your own with boxes in COCO files (CVAT, Label Studio, Roboflow, Supervisely, ... export them).
source:    a folder with one COCO file, or one each for training, validation and test, and the images anywhere below it:
             annotations/instances_train.json, instances_val.json    or    train/_annotations.coco.json, valid/...
             images/...                                              found by 'file_name'
Files whose name or folder says train, val (valid) or test give fold 0 and the test cases; one file alone gives five
folds. Boxes are 'bbox', else the polygons' ends. Crowds (iscrowd 1) are kept as boxes to be ignored: they are not
learnt, and what is found in them is neither right nor wrong. Images with an annotation without a box are left out, and
named. Images without boxes are negatives; --labels chooses and orders classes; --patients keeps a patient's images in
one fold."""


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert a folder with COCO files and images.

    Raises:
        DataError: there is no COCO file or image, a setting is unknown, or the output cannot be written.
    """
    source = existing_folder(source, "coco")
    paths, passed_over = _coco_files(source)
    files = {path: read_coco(path) for path in paths}
    if not files:
        raise DataError(
            f"{source}: expected a JSON file with 'images', 'annotations' and 'categories', found none; see --help."
        )
    known: dict[str, None] = {}
    for content in files.values():
        known |= dict.fromkeys(content.categories)
    rules = Rules.choose(tuple(known), options)
    index = image_index(source)
    items, findings = _items(files, index, source)
    findings += passed_over
    listed = {item.image for item in items}
    for path in index.paths:
        if path not in listed:
            findings.append(_unlisted(path))
    return convert_items("coco", source, folder, items, rules, options, findings)


def _coco_files(source: Path) -> tuple[list[Path], list[Finding]]:
    """JSON files that are COCO files, and a warning for each that is no JSON; the others (settings of tools, other
    formats) are none of our business.

    Raises:
        DataError: a file that was to be a COCO file, or something in the place of a file, cannot be read.
    """
    found = []
    passed_over = []
    for path in files_ending(source, ".json"):
        try:
            data = read_json(path)
        except DataError as error:
            if _looks_like_coco(path):
                raise
            passed_over.append(_passed_over(path, error))
            continue
        if isinstance(data, Mapping) and {"images", "categories"} & set(data):
            found.append(path)
    return found, passed_over


def _looks_like_coco(path: Path) -> bool:
    """Whether a file that is no JSON was to be a COCO file: a truncated one must not be passed over."""
    check_file(path)
    with path.open("rb") as stream:
        start = stream.read(1 << 20).replace(b"\0", b"")  # UTF-16 too
    return re.search(rb'"(images|annotations|file_name)"', start) is not None


def _passed_over(path: Path, error: DataError) -> Finding:
    return warning(
        "",
        path,
        "JSON in a file of this name",
        str(error).rstrip("."),
        "it was passed over; restore the file if it is a COCO file, or remove it",
    )


def _items(files: Mapping[Path, Coco], index: FileIndex, source: Path) -> tuple[list[Item], list[Finding]]:
    items: list[Item] = []
    findings: list[Finding] = []
    parts: dict[Path, str | None] = dict.fromkeys(files)
    if len(files) > 1:
        for path in files:
            parts[path] = split_name(path, source)
    for path, content in files.items():
        findings += content.findings
        if parts[path] is None and any(parts.values()):
            findings.append(_without_part(path))
            continue
        images, faults = _images(path, content, index, source)
        findings += faults
        for image, drawn in images.items():
            items.append(_item(image, drawn, parts[path]))
    return items, findings


def _images(path: Path, content: Coco, index: FileIndex, source: Path) -> tuple[dict[Path, Drawn], list[Finding]]:
    """The images that a COCO file lists, and what is drawn in them."""
    findings: list[Finding] = []
    names: dict[Path, list[str]] = {}
    for name in content.images:
        image, fault = _find(name, path, index, source)
        if fault is not None:
            findings.append(fault)
        if image is not None:
            names.setdefault(image, []).append(name)
    drawn: dict[Path, Drawn] = {}
    for image, stated in names.items():
        if len(stated) == 1:
            drawn[image] = content.images[stated[0]]
        else:
            findings.append(_claimed_twice(image, path, stated))
    return drawn, findings


def _find(name: str, path: Path, index: FileIndex, source: Path) -> tuple[Path | None, Finding | None]:
    """The image that a COCO file lists, or why it is not known."""
    case = Path(name.replace("\\", "/")).stem
    try:
        image = index.find(name, path.parent, path.parent.parent / "images")
    except DataError as error:
        found, action = str(error).rstrip("."), "rename or remove one"
        return None, problem(case, path, "one image of this name", found, action)
    if image is not None:
        return image, None
    expected = f"an image below {source}, as {path.name} lists"
    action = "add the image or remove it from the file"
    return None, problem(case, name, expected, "no such file", action)


def _unlisted(path: Path) -> Finding:
    return warning(
        "",
        path,
        "an image that a COCO file lists",
        "an unlisted image",
        "it was left out, since it may have boxes; list it in 'images' if it has none",
    )


def _without_part(path: Path) -> Finding:
    return problem(
        "",
        path,
        f"a name or folder with {', '.join(SPLIT_NAMES)}",
        path.name,
        "its images were left out, since other files say of which part they are; rename it",
    )


def _claimed_twice(image: Path, path: Path, names: Sequence[str]) -> Finding:
    return problem(
        image.stem,
        path,
        "each image under one name",
        f"{image} as {' and as '.join(names)}",
        "it was left out; correct one of the names",
    )


def _item(image: Path, drawn: Drawn, part: str | None) -> Item:
    negative = not (drawn.boxes or drawn.unknown or drawn.unusable or drawn.ignored)
    recipe = f"{drawn.size} {drawn.boxes} {drawn.unknown}" + (f" {drawn.unusable}" if drawn.unusable else "")
    recipe += f" {drawn.ignored}" if drawn.ignored else ""
    return Item(
        image=image, annotate=lambda size: (drawn, []), annotations=(), part=part, negative=negative, recipe=recipe
    )


CONVERTERS.register("coco")(
    Converter("radiographs with boxes in COCO files", GUIDE, convert, name_from_path, SETTINGS, task=DETECTION)
)
