"""Radiographs with boxes as YOLO text files, from any annotation tool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dataset_conversion.boxes import Drawn, Size
from dataset_conversion.findings import problem, warning
from dataset_conversion.items import Item, PartLists, convert_items, split_name
from dataset_conversion.layout import existing_folder
from dataset_conversion.radiographs import SETTINGS, SUFFIXES, Annotate, Rules, image_index
from dataset_conversion.read_yolo import read_yaml_names, read_yolo
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from medkd.core.errors import DataError
from medkd.core.files import check_file, is_file
from medkd.core.resolve import FileIndex, files_ending, is_hidden, part_of_name, path_parts, read_lines
from medkd.core.run import DETECTION
from medkd.io.checks import Finding

GUIDE = """\
Radiographs of your own with boxes as YOLO files (class x_centre y_centre width height, relative to the image; or
polygons).
source:    a folder:
             data.yaml                 'names' in the order of the class numbers; 'train', 'val' and 'test' if they are
                                       separate
             images/... and labels/... the same sub-folders and names in both (or train/images and train/labels, ...)
           Without data.yaml the names are taken from classes.txt or labels.txt (one per line), else from --labels.
train and val become fold 0, test the test cases; otherwise there are five folds. Images without a label file (capitals
and a blank at the end of its name do not matter), or with an empty one, are negatives; images that share a label file
(c.jpg and c.png with c.txt) are left out, since it is the label of one of them.
--labels chooses and orders classes; --patients keeps a patient's images in one fold."""

_KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
_LISTS = ("classes.txt", "labels.txt", "obj.names")


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert a folder with YOLO labels and images.

    Raises:
        DataError: the class names are not known, there is no image, a list or a folder that ``data.yaml`` names is not
            there, a setting is unknown, or the output cannot be written.
    """
    source = existing_folder(source, "yolo")
    description = _describe(source, options)
    rules = Rules.choose(description.names, options)
    items, findings = _items(source, description)
    return convert_items("yolo", source, folder, items, rules, options, findings)


@dataclass(frozen=True)
class _Description:
    """What ``data.yaml``, or a list of names, says.

    Attributes:
        names: of the classes.
        folder: where ``data.yaml`` lies.
        settings: its entries; none where there is no such file.
        key_points: numbers behind each box.
    """

    names: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    key_points: int = 0


def _describe(source: Path, options: ConversionOptions) -> _Description:
    for path in _yaml_files(source):
        settings, names = read_yaml_names(path)
        return _Description(names, path.parent, settings, _key_points(path, settings))
    for name in _LISTS:
        for path in (source / name, source / "labels" / name):
            if path.exists():
                return _Description(tuple(line for _, line in read_lines(path)), source)
    if options.labels:
        return _Description(options.labels, source)
    raise DataError(
        f"{source}: the class names are not known; add data.yaml with 'names', or give --labels in the order of the "
        "numbers."
    )


def _yaml_files(source: Path) -> list[Path]:
    """The YAML files with names, in the folder and one below."""
    found = []
    for pattern in ("*.yaml", "*/*.yaml", "*.yml", "*/*.yml"):
        for path in sorted(source.glob(pattern)):
            if is_hidden(path, source):
                continue
            check_file(path)
            if "names" in path.read_text(encoding="utf-8", errors="replace"):
                found.append(path)
    return sorted(found)


def _key_points(path: Path, settings: Mapping[str, Any]) -> int:
    shape = settings.get("kpt_shape")
    if shape is None:
        return 0
    types = list(map(type, shape)) if isinstance(shape, list) else []
    if types != [int, int]:
        raise DataError(f"{path}: expected two numbers in 'kpt_shape', found {shape!r}.")
    return int(shape[0] * shape[1])


def _items(source: Path, description: _Description) -> tuple[list[Item], list[Finding]]:
    index = image_index(source)
    parts = _Parts(source, description, index)
    labels = _label_files(source, parts.lists.lists)
    owners = _owners(index.paths, source, labels)
    torn = set(parts.lists.torn())
    items, outside = [], []
    for image in index.paths:
        part = parts.find(image)
        if parts.stated and part is None:
            if image not in torn:
                outside.append(image)
            continue
        label, sharing = owners[image]
        items.append(_item(image, label, sharing, part, description))
    findings = [*parts.lists.findings, *parts.lists.torn_findings()]
    used = {label for label, _ in owners.values() if label is not None}
    folders = {image.parent for image in index.paths}
    findings += _without_image(sorted(labels - used), source, folders)
    if outside:
        findings.append(_outside(outside))
    return items, findings


def _item(
    image: Path, label: Path | None, sharing: Sequence[Path], part: str | None, description: _Description
) -> Item:
    if label is None:
        return Item(
            image=image, annotate=_always(Drawn(image)), annotations=(), part=part, negative=True, annotated=False
        )
    if sharing:
        recipe = "the label file of several images"
        return Item(
            image=image, annotate=_undecided(image, label, sharing), annotations=(label,), part=part, recipe=recipe
        )
    names, key_points = description.names, description.key_points

    def annotate(size: Size) -> tuple[Drawn, list[Finding]]:
        return read_yolo(label, names, size, key_points), []

    recipe = f"key points {key_points}" if key_points else ""
    return Item(
        image=image, annotate=annotate, annotations=(label,), part=part, negative=_is_empty(label), recipe=recipe
    )


def _label_files(source: Path, lists: Collection[Path]) -> set[Path]:
    """Text files that are neither names of classes, nor lists of images, nor a README."""
    known = {path.resolve() for path in lists}
    found = set()
    for path in files_ending(source, ".txt"):
        if path.name not in _LISTS and not path.name.lower().startswith("readme") and path.resolve() not in known:
            found.add(path)
    return found


def _without_image(labels: Iterable[Path], source: Path, image_folders: Collection[Path]) -> list[Finding]:
    findings = []
    for label in labels:
        if "labels" in label.relative_to(source).parts or label.parent in image_folders:
            findings.append(
                problem(label.stem, label, "an image of the same name", "none", "add the image or remove the labels")
            )
    return findings


def _outside(images: Sequence[Path]) -> Finding:
    return warning(
        "",
        "data.yaml",
        "images in the folders named by train, val and test",
        f"{len(images)} images elsewhere, the first is {images[0]}",
        "they were left out; name their folder in data.yaml",
    )


def _owners(
    images: Sequence[Path], source: Path, labels: Collection[Path]
) -> dict[Path, tuple[Path | None, list[Path]]]:
    """Image → its label file, and the other images that this may belong to: those that find it at an equally good or
    better place.
    """
    found = _own_labels(images, source, labels)
    claims: dict[Path, list[Path]] = defaultdict(list)
    for image, (_, label) in found.items():
        claims[label].append(image)
    owners: dict[Path, tuple[Path | None, list[Path]]] = {}
    for image in images:
        if image not in found:
            owners[image] = None, []
            continue
        rank, label = found[image]
        rivals = [other for other in claims[label] if other != image]
        owners[image] = label, [other for other in rivals if found[other][0] <= rank]
    return owners


def _own_labels(images: Sequence[Path], source: Path, labels: Collection[Path]) -> dict[Path, tuple[int, Path]]:
    """Image → place and path of its label file; images without one are left out."""
    found: dict[Path, tuple[int, Path]] = {}
    for image in images:
        for rank, path in enumerate(_label_paths(image, source)):
            if path in labels:
                found[image] = rank, path
                break
    missing = [image for image in images if image not in found]
    return found | _respelt(missing, source, set(labels) - {label for _, label in found.values()})


def _respelt(images: Iterable[Path], source: Path, labels: Iterable[Path]) -> dict[Path, tuple[int, Path]]:
    """Image → place and path of a label file that is spelt in another way; images without one are left out."""
    spelt, found = _by_spelling(labels), {}
    for image in images:
        known = [spelt.get(_spelling(path)) for path in _label_paths(image, source)]
        label = next(filter(None, known), None)
        if label is not None:
            found[image] = known.index(label), label
    return found


def _by_spelling(labels: Iterable[Path]) -> dict[str, Path]:
    """Label files that are an image's in other capitals, or with a blank at the end of their names; where several are
    spelt alike, none is anybody's.
    """
    alike: dict[str, list[Path]] = defaultdict(list)
    for label in labels:
        alike[_spelling(label)].append(label)
    return {spelling: same[0] for spelling, same in alike.items() if len(same) == 1}


def _spelling(path: Path) -> str:
    return f"{path.parent}/{path.stem.strip()}".casefold()


def _label_paths(image: Path, source: Path) -> list[Path]:
    """Where the labels of an image may lie: ``images`` replaced by ``labels`` in its path (the last one), or beside
    it.
    """
    parts = list(image.relative_to(source).parts)
    found = []
    for place in reversed(range(len(parts) - 1)):
        if parts[place].lower() == "images":
            moved = source.joinpath(*parts[:place], "labels", *parts[place + 1 :])
            found.append(moved.with_suffix(".txt"))
    return [*found, image.with_suffix(".txt"), source / "labels" / f"{image.stem}.txt"]


class _Parts:
    """The part of each image, as ``data.yaml`` states it by folders, lists of images and single images, else as lists
    called ``train.txt``, ``val.txt`` and ``test.txt`` or the folders say.
    """

    def __init__(self, source: Path, description: _Description, index: FileIndex) -> None:
        self._source = source
        self._where = description.folder / "data.yaml"
        self._roots = _roots(source, description)
        self._folders: dict[Path, str] = {}
        self.lists = PartLists(index, source)
        named = set()
        for part, keys in _KEYS.items():
            for key in keys:
                listed = description.settings.get(key) or []
                for text in [listed] if isinstance(listed, str) else listed:
                    named.add(part)
                    self._add(part, key, text)
        for part, keys in _KEYS.items():
            if part not in named:
                self._add_unnamed(part, keys, {path.with_suffix("") for path in index.paths})

    @property
    def stated(self) -> bool:
        """Whether anything but the names of folders says what the parts are."""
        return bool(self._folders or self.lists.lists)

    def find(self, image: Path) -> str | None:
        """The part that a list names for the image itself, else the one of the nearest folder above it."""
        if not self.stated:
            return split_name(image.parent, self._source)
        if image in self.lists.torn():
            return None
        listed = self.lists.part(image)
        if listed is not None:
            return listed
        folder = image.parent.resolve()
        for above in (folder, *folder.parents):
            if above in self._folders:
                return self._folders[above]
        return None

    def _add(self, part: str, key: str, text: object) -> None:
        if not isinstance(text, str):
            raise DataError(f"{self._where}: '{key}' must name folders or lists of images, found {text!r}.")
        place = self._place(text)
        if place is None:
            raise DataError(
                f"data.yaml: '{key}' names {text}, which does not exist below {self._source}; correct it or remove the "
                "entry."
            )
        if place.is_dir():
            self._add_folder(part, text, place.resolve())
        elif place.suffix.lower() in SUFFIXES:
            self.lists.state(part, place)
        else:
            self.lists.add(part, place, *self._roots)

    def _add_folder(self, part: str, text: str, place: Path) -> None:
        other = self._folders.setdefault(place, part)
        if other != part:
            raise DataError(
                f"{self._where}: expected different folders for '{other}' and '{part}', found {text} for both; remove "
                f"'{part}' to get five folds, or divide the images."
            )

    def _add_unnamed(self, part: str, keys: Sequence[str], images: Collection[Path]) -> None:
        """A list that lies there without being named; not the boxes of an image called ``train.jpg``."""
        for root in dict.fromkeys((self._where.parent, self._source)):
            for key in keys:
                path = root / f"{key}.txt"
                if is_file(path) and path.with_suffix("") not in images and not _is_label(path):
                    self.lists.add(part, path, *self._roots)
                    return

    def _place(self, text: str) -> Path | None:
        """The folder or list that an entry names, also with another machine's folders before it."""
        slashes = text.replace("\\", "/")
        for name in dict.fromkeys((text, slashes, unquote(slashes))):
            for root in self._roots:
                for tried in (root / name, root / name.removeprefix("../")):
                    if tried.exists():
                        return tried
        parts = path_parts(text)
        elsewhere = slashes.startswith("/") or slashes[1:3] == ":/"
        for start in range(1, len(parts) if elsewhere else 0):
            if part_of_name(parts[start - 1]):
                return None
            tried = self._source.joinpath(*parts[start:])
            if tried.exists():
                return tried
        return None


def _is_label(path: Path) -> bool:
    """Whether a text file holds boxes: numbers alone."""
    lines = read_lines(path)
    return not lines or not set(lines[0][1]) - set("0123456789.-+e \t")


def _roots(source: Path, description: _Description) -> list[Path]:
    stated = str(description.settings.get("path") or ".").replace("\\", "/")
    return list(dict.fromkeys([description.folder / stated, description.folder, source]))


def _always(drawn: Drawn) -> Annotate:
    return lambda size: (drawn, [])


def _undecided(image: Path, label: Path, others: Sequence[Path]) -> Annotate:
    """The boxes of one label file are those of one image; which one it is nobody says, so that all of them are left
    out.
    """
    finding = problem(
        "",
        image,
        "a label file of its own",
        f"{label}, which is that of {', '.join(map(str, others[:3]))} as well",
        "rename images and label files, or remove the other image",
    )
    return lambda size: (Drawn(image), [finding])


def _is_empty(label: Path) -> bool:
    try:
        return not read_lines(label)
    except DataError:  # the image itself is reported when it is converted
        return False


CONVERTERS.register("yolo")(
    Converter("radiographs with boxes as YOLO text files", GUIDE, convert, name_from_path, SETTINGS, task=DETECTION)
)
