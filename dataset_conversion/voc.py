"""Radiographs with boxes as Pascal VOC files, from any annotation tool.

Everingham et al., The Pascal Visual Object Classes (VOC) Challenge, IJCV 2010, doi:10.1007/s11263-009-0275-4 (the
format).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dataset_conversion.boxes import Drawn, read_voc
from dataset_conversion.items import Item, convert_items, split_name
from dataset_conversion.layout import existing_folder
from dataset_conversion.radiographs import SETTINGS, Annotate, ImageIndex, Rules
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from medkd.core.errors import DataError
from medkd.io.checks import Finding

GUIDE = """\
Radiographs of your own with boxes as Pascal VOC files (one XML per image; LabelImg, CVAT, Roboflow, ... export them).
source:    a folder with the XML files and the images anywhere below it:
             Annotations/STEM.xml, JPEGImages/STEM.jpg     found by <filename>, else by the name of the XML file
             ImageSets/Main/{train,val,test}.txt           fold 0 and the test cases; otherwise folders called train, val (valid), test
Without a split there are five folds. Images without an XML file are negatives. The classes are those that occur, in alphabetical order,
or --labels. Coordinates count from 0, as annotation tools write them; --base 1 for those of the original VOC data."""

_SETS = "ImageSets/Main"


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert a folder with Pascal VOC files and images.

    Raises:
        DataError: there is no XML file or image, a setting is unknown, or the output cannot be written.
    """
    source = existing_folder(source, "voc")
    base = options.settings.get("base", "0")
    if base not in ("0", "1"):
        raise DataError(f"--base must be 0 or 1, found '{base}'.")
    drawn, findings = _annotations(source, base == "1")
    if not drawn:
        raise DataError(f"{source}: expected Pascal VOC files (.xml), found none; see medkd_convert voc --help.")
    names = tuple(sorted({name for stated, _ in drawn.values() for name, _ in stated.boxes}))
    known = tuple(dict.fromkeys((*options.labels, *names)))
    if not known:
        raise DataError(f"{source}: no XML file has a box, so the classes are not known; give --labels.")
    items, more = _items(source, drawn, f"base {base}")
    return convert_items("voc", source, folder, items, Rules.choose(known, options), options, [*findings, *more])


def _annotations(source: Path, one_based: bool) -> tuple[dict[Path, tuple[Drawn, str]], list[Finding]]:
    """XML file → its boxes and the image's name."""
    drawn: dict[Path, tuple[Drawn, str]] = {}
    findings = []
    for path in sorted(p for p in source.rglob("*.xml") if not p.name.startswith(".")):
        try:
            drawn[path] = read_voc(path, one_based=one_based)
        except DataError as error:
            text = str(error).rstrip(".")
            findings.append(
                Finding(
                    case=path.stem,
                    file=str(path),
                    expected="a Pascal VOC annotation",
                    found=text,
                    action="its image was left out; export it again",
                )
            )
    return drawn, findings


def _items(source: Path, drawn: Mapping[Path, tuple[Drawn, str]], recipe: str) -> tuple[list[Item], list[Finding]]:
    index, sets = ImageIndex(source), _sets(source)
    items, findings, used = [], [], set()
    for path, (stated, name) in drawn.items():
        try:
            image = (index.find(name, path.parent, source / "JPEGImages") if name else None) or index.find(
                path.stem, path.parent
            )
        except DataError as error:
            findings.append(
                Finding(
                    case=path.stem,
                    file=str(path),
                    expected="one image of this name",
                    found=str(error).rstrip("."),
                    action="rename or remove one",
                )
            )
            continue
        if image is None:
            action = "add the image or remove the annotation"
            findings.append(
                Finding(
                    case=path.stem,
                    file=str(path),
                    expected=f"an image {name or path.stem}",
                    found="no such file",
                    action=action,
                )
            )
        elif image in used:
            findings.append(
                Finding(
                    case=path.stem,
                    file=str(path),
                    expected="one annotation per image",
                    found=f"another one of {image.name}",
                    action="the first one was used",
                    error=False,
                )
            )
        else:
            used.add(image)
            items.append(Item(image, _always(stated), (path,), _part(image, sets, source), not stated.boxes, recipe))
    damaged = {finding.case for finding in findings}
    unreadable = {p.stem for p in source.rglob("*.xml")} - {p.stem for p in drawn}
    for image in index.paths:
        if image not in used and image.stem not in damaged | unreadable:
            items.append(Item(image, _always(Drawn(image)), (), _part(image, sets, source), True, recipe))
    return items, findings


def _always(drawn: Drawn) -> Annotate:
    return lambda size: (drawn, [])


def _sets(source: Path) -> dict[str, str]:
    """Image name → train, val or test, as ``ImageSets/Main`` lists them."""
    found: dict[str, str] = {}
    for part in ("train", "val", "test"):
        path = source / _SETS / f"{part}.txt"
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.exists() else []
        found |= {line.split()[0]: part for line in lines if line.strip()}
    return found


def _part(image: Path, sets: Mapping[str, str], source: Path) -> str | None:
    return sets.get(image.stem) if sets else split_name(image.parent, source)


CONVERTERS.register("voc")(
    Converter(
        "radiographs with boxes as Pascal VOC files",
        GUIDE,
        convert,
        name_from_path,
        {**SETTINGS, "base": "number of the first pixel: 0 (default) or 1 (original VOC data)"},
    )
)
