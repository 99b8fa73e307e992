"""Radiographs with boxes as YOLO text files, from any annotation tool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_conversion.boxes import Drawn, read_yaml_names, read_yolo
from dataset_conversion.items import Item, convert_items, split_name
from dataset_conversion.layout import existing_folder
from dataset_conversion.radiographs import SETTINGS, SUFFIXES, Annotate, ImageIndex, Rules
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from medkd.core.errors import DataError
from medkd.io.checks import Finding

GUIDE = """\
Radiographs of your own with boxes as YOLO files (class x_centre y_centre width height, relative to the image; or polygons).
source:    a folder:
             data.yaml                 'names' in the order of the class numbers; 'train', 'val' and 'test' if they are separate
             images/... and labels/... the same sub-folders and names in both (or train/images and train/labels, ...)
           Without data.yaml the names are taken from classes.txt or labels.txt (one per line), else from --labels.
train and val become fold 0, test the test cases; otherwise there are five folds. Images without a label file, or with an empty one,
are negatives; images that share a label file (c.jpg and c.png with c.txt) are left out, since it is the label of one of them.
--labels chooses and orders classes; --patients keeps a patient's images in one fold."""

_LISTS = ("classes.txt", "labels.txt", "obj.names")


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert a folder with YOLO labels and images.

    Raises:
        DataError: the class names are not known, there is no image, a setting is unknown, or the output cannot be
            written.
    """
    source = existing_folder(source, "yolo")
    settings, known = _names(source, options)
    items, findings = _items(source, settings, known)
    return convert_items("yolo", source, folder, items, Rules.choose(known, options), options, findings)


def _names(source: Path, options: ConversionOptions) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """``data.yaml`` (empty where there is none) and the class names."""
    files = sorted(p for ending in ("*.yaml", "*.yml") for p in (*source.glob(ending), *source.glob(f"*/{ending}")))
    for path in files:
        if "names" in path.read_text(encoding="utf-8", errors="replace"):
            data, names = read_yaml_names(path)
            return {**data, "folder": path.parent}, names
    for path in (p for name in _LISTS for p in (source / name, source / "labels" / name) if p.exists()):
        return {}, tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if options.labels:
        return {}, options.labels
    raise DataError(
        f"{source}: the class names are not known; add data.yaml with 'names', or give --labels in the order of the "
        "numbers."
    )


def _items(source: Path, settings: Mapping[str, Any], names: Sequence[str]) -> tuple[list[Item], list[Finding]]:
    index = ImageIndex(source)
    labels = {p for p in source.rglob("*.txt") if p.name not in _LISTS and not p.name.lower().startswith("readme")}
    parts = _parts(source, settings)
    items, outside, owners = [], [], _owners(index.paths, source, labels)
    for image in index.paths:
        label, sharing = owners[image]
        part = _part(image, parts) if parts else split_name(image.parent, source)
        if parts and part is None:
            outside.append(image)
        elif label and sharing:
            items.append(
                Item(
                    image, _undecided(image, label, sharing), (label,), part, recipe="the label file of several images"
                )
            )
        else:
            items.append(Item(image, _annotator(image, label, names), (label,) if label else (), part, _empty(label)))
    used = {label for label, _ in owners.values()}
    folders = {image.parent for image in index.paths}
    findings = [
        Finding(
            case=label.stem,
            file=str(label),
            expected="an image of the same name",
            found="none",
            action="add the image or remove the labels",
        )
        for label in sorted(labels - used)
        if "labels" in label.relative_to(source).parts or label.parent in folders
    ]
    if outside:
        found, action = (
            f"{len(outside)} images elsewhere, the first is {outside[0]}",
            "they were left out; name their folder in data.yaml",
        )
        findings.append(
            Finding(
                case="",
                file="data.yaml",
                expected="images in the folders named by train, val and test",
                found=found,
                action=action,
                error=False,
            )
        )
    return items, findings


def _owners(
    images: Sequence[Path], source: Path, labels: Collection[Path]
) -> dict[Path, tuple[Path | None, list[Path]]]:
    """Image → its label file, and the other images that this may belong to: those that find it at an equally good or
    better place.
    """
    found: dict[Path, tuple[int, Path]] = {}
    claims: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        places = [(rank, path) for rank, path in enumerate(_label_paths(image, source)) if path in labels]
        if places:
            found[image] = places[0]
            claims[places[0][1]].append(image)
    owners: dict[Path, tuple[Path | None, list[Path]]] = {}
    for image in images:
        rank, label = found.get(image, (0, None))
        owners[image] = (
            label,
            [other for other in claims.get(label, ()) if other != image and found[other][0] <= rank] if label else [],
        )
    return owners


def _part(image: Path, parts: Sequence[tuple[str, Path]]) -> str | None:
    """The part that lists the image itself, else the one that names a folder above it."""
    exact = (part for part, place in parts if place == image)
    return next(exact, None) or next((part for part, place in parts if place in image.parents), None)


def _label_paths(image: Path, source: Path) -> list[Path]:
    """Where the labels of an image may lie: ``images`` replaced by ``labels`` in its path (the last one), or beside
    it.
    """
    parts = list(image.relative_to(source).parts)
    found = []
    for place in reversed([i for i, part in enumerate(parts[:-1]) if part == "images"]):
        found.append(source.joinpath(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt"))
    return [*found, image.with_suffix(".txt"), source / "labels" / f"{image.stem}.txt"]


def _parts(source: Path, settings: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """(part, folder or image file) as ``data.yaml`` names them."""
    base = Path(settings.get("folder", source))
    roots = [base / str(settings.get("path") or "."), base, source]
    found: list[tuple[str, Path]] = []
    for part, key in (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test")):
        listed = settings.get(key) or []
        for text in [listed] if isinstance(listed, str) else listed:
            tries = [root / name for name in (text, text.removeprefix("../")) for root in roots]
            place = next((p.resolve() for p in tries if p.exists()), None)
            if place is None:
                raise DataError(
                    f"data.yaml: '{key}' names {text}, which does not exist below {source}; correct it or remove the "
                    "entry."
                )
            found += _listed(part, place, roots) if place.is_file() and place.suffix == ".txt" else [(part, place)]
    return [
        (part, source / place.relative_to(source.resolve()) if source.resolve() in place.parents else place)
        for part, place in found
    ]


def _listed(part: str, path: Path, roots: Sequence[Path]) -> list[tuple[str, Path]]:
    """The images that a text file lists."""
    found = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        place = next(
            (p.resolve() for root in (path.parent, *roots) if line.strip() and (p := root / line.strip()).is_file()),
            None,
        )
        found += [(part, place)] if place and place.suffix.lower() in SUFFIXES else []
    return found


def _annotator(image: Path, label: Path | None, names: Sequence[str]) -> Annotate:
    return lambda size: (read_yolo(label, names, size) if label else Drawn(image), [])


def _undecided(image: Path, label: Path, others: Sequence[Path]) -> Annotate:
    """The boxes of one label file are those of one image; which one it is nobody says, so that all of them are left
    out.
    """
    found = f"{label}, which is that of {', '.join(map(str, others[:3]))} as well"
    finding = Finding(
        case="",
        file=str(image),
        expected="a label file of its own",
        found=found,
        action="rename images and label files, or remove the other image",
    )
    return lambda size: (Drawn(image), [finding])


def _empty(label: Path | None) -> bool:
    return label is None or not label.read_text(encoding="utf-8-sig", errors="replace").strip()


CONVERTERS.register("yolo")(
    Converter("radiographs with boxes as YOLO text files", GUIDE, convert, name_from_path, SETTINGS)
)
