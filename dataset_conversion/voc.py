"""Radiographs with boxes as Pascal VOC files, from any annotation tool.

Everingham et al., The Pascal Visual Object Classes (VOC) Challenge, IJCV 2010, doi:10.1007/s11263-009-0275-4 (the
format).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_conversion.boxes import Drawn
from dataset_conversion.findings import warning
from dataset_conversion.items import Item, PartLists, convert_items, split_name
from dataset_conversion.layout import existing_folder
from dataset_conversion.radiographs import SETTINGS, Annotate, Rules, image_index
from dataset_conversion.read_voc import read_voc
from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter, name_from_path
from dataset_conversion.report import ConversionReport
from medkd.core.errors import DataError
from medkd.core.resolve import FileIndex, files_ending, path_parts
from medkd.core.run import DETECTION
from medkd.io.checks import Finding

GUIDE = """\
Radiographs of your own with boxes as Pascal VOC files (one XML per image; LabelImg, CVAT, Roboflow, ... export them).
source:    a folder with the XML files and the images anywhere below it:
             Annotations/STEM.xml, JPEGImages/STEM.jpg     found by <filename> and by the name of the XML file; where
                                                           these are two images, --match says which one is right
             ImageSets/Main/{train,val,test}.txt           fold 0 and the test cases; otherwise folders called train,
                                                           val (valid), test
Without a split there are five folds. Images without an XML file are negatives. The classes are those that occur, in
alphabetical order, or --labels. Coordinates count from 0, as annotation tools write them; --base 1 for
those of the original VOC data."""

_SETS = "ImageSets/Main"
_MATCHES = ("filename", "stem", "both")


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert a folder with Pascal VOC files and images.

    Raises:
        DataError: there is no XML file or image, a setting is unknown, a list of images names none, or the output
            cannot be written.
    """
    source = existing_folder(source, "voc")
    base = options.settings.get("base", "0")
    if base not in ("0", "1"):
        raise DataError(f"--base must be 0 or 1, found '{base}'.")
    match = options.settings.get("match", "both")
    if match not in _MATCHES:
        raise DataError(f"--match must be {', '.join(_MATCHES[:-1])} or {_MATCHES[-1]}, found '{match}'.")
    content = _read(source, base == "1")
    if not content.drawn:
        raise DataError(f"{source}: expected Pascal VOC files (.xml), found none; see medkd_convert voc --help.")
    names: set[str] = set()
    for stated, _ in content.drawn.values():
        names.update(name for name, _ in stated.boxes)
    known = tuple(dict.fromkeys((*options.labels, *sorted(names))))
    if not known:
        raise DataError(f"{source}: no XML file has a box, so the classes are not known; give --labels.")
    rules = Rules.choose(known, options)
    items, findings = _items(source, content, match, f"base {base}")
    return convert_items("voc", source, folder, items, rules, options, findings)


@dataclass
class _Content:
    """What the XML files say.

    Attributes:
        drawn: XML file → its boxes and the image's name.
        unreadable: the other XML files.
        findings: why they are unreadable.
    """

    drawn: dict[Path, tuple[Drawn, str]] = field(default_factory=dict)
    unreadable: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def _read(source: Path, one_based: bool) -> _Content:
    content = _Content()
    for path in files_ending(source, ".xml"):
        try:
            content.drawn[path] = read_voc(path, one_based=one_based)
        except DataError as error:
            content.unreadable.append(path)
            text = str(error).rstrip(".")
            action = "its image was left out; export it again"
            content.findings.append(_finding(path, "a Pascal VOC annotation", text, action))
    return content


def _items(source: Path, content: _Content, match: str, recipe: str) -> tuple[list[Item], list[Finding]]:
    index = image_index(source)
    sets = _sets(source, index)
    matcher = _Matcher(index, source, match)
    for path, (stated, name) in content.drawn.items():
        matcher.enter(path, stated, name)
    stated_by: dict[Path, tuple[Drawn, tuple[Path, ...]]] = {}
    for image, (stated, path) in matcher.found.items():
        stated_by[image] = stated, (path,)
    for image in _negatives(index, matcher, content):
        stated_by[image] = Drawn(image), ()
    items, outside = [], []
    for image, (stated, files) in stated_by.items():
        part = sets.part(image) if sets.lists else split_name(image.parent, source)
        if part is not None or not sets.lists:
            items.append(
                Item(
                    image=image,
                    annotate=_always(stated),
                    annotations=files,
                    part=part,
                    negative=not stated.boxes,
                    annotated=bool(files),
                    recipe=recipe,
                )
            )
        else:
            outside.append(image)
    outside = sorted(set(outside).difference(sets.torn()))
    findings = [*content.findings, *sets.findings, *sets.torn_findings(), *matcher.findings()]
    if outside:
        findings.append(_outside(outside))
    return items, findings


def _negatives(index: FileIndex, matcher: _Matcher, content: _Content) -> list[Path]:
    """Images that no XML file is, or may be, about."""
    unclear = matcher.unmatched.union(path.stem for path in content.unreadable)
    about = matcher.doubtful.union(matcher.found)
    return [image for image in index.paths if image not in about and image.stem not in unclear]


class _Matcher:
    """Finds the image of each XML file, by the file name that it states and by its own name.

    Attributes:
        found: image → what is drawn in it, and the XML file.
        doubtful: images that some XML file may be about; without an XML file of their own they are no negatives.
        unmatched: names of XML files whose image is not known.
    """

    def __init__(self, index: FileIndex, source: Path, match: str) -> None:
        self._index = index
        self._source = source
        self._match = match
        self._findings: list[Finding] = []
        self._renamed: list[tuple[Path, str]] = []
        self.found: dict[Path, tuple[Drawn, Path]] = {}
        self.doubtful: set[Path] = set()
        self.unmatched: set[str] = set()

    def enter(self, path: Path, drawn: Drawn, name: str) -> None:
        """Find the image of an XML file that states ``name``; a finding says where there is none, or two are meant."""
        try:
            image = self._find(path, name)
        except DataError as error:
            self._fail(path, "one image of this name", str(error).rstrip("."), "rename or remove one")
            return
        if image is None:
            return
        other, first = self.found.setdefault(image, (drawn, path))
        if first == path:
            return
        same = sorted(other.boxes) == sorted(drawn.boxes)
        expected, found = "one annotation per image", f"another one of {image.name}, {first}"
        if same:
            self._findings.append(_finding(path, expected, found, "the first one was used", error=False))
        else:
            del self.found[image]
            self.doubtful.add(image)
            self._fail(path, expected, f"{found}, with other boxes", "remove one of the two")

    def _find(self, path: Path, name: str) -> Path | None:
        stated, own = self._meant(path, name)
        if stated is None and own is None:
            self._fail(path, f"an image {name or path.stem}", "no such file", "add the image or remove the annotation")
        if stated is None:
            if own is not None:
                self._note_name(path, name, own)
            return own
        if own is None or stated == own:
            return stated
        self._contradict(path, name, stated, own)
        return None

    def _meant(self, path: Path, name: str) -> tuple[Path | None, Path | None]:
        """The image that ``<filename>`` names, and the one that is called like the XML file, as far as they count."""
        stated = own = None
        if name and self._match != "stem":
            stated = self._named(name, path)
        if self._match != "filename":
            own = self._named(path.stem, path)
        return stated, own

    def _note_name(self, path: Path, name: str, own: Path) -> None:
        """Remember an XML file whose ``<filename>`` names no image, while its own name does."""
        last = path_parts(name)[-1:]
        if self._match == "both" and last and last != (own.name,):
            self._renamed.append((path, name))

    def _contradict(self, path: Path, name: str, stated: Path, own: Path) -> None:
        self.doubtful |= {stated, own}
        found = f"<filename> {name}, which is another image than {own.name}"
        action = "correct the file, or say which is right with --match stem (the XML's own name) or filename"
        self._fail(path, "the name of its image", found, action)

    def _named(self, name: str, path: Path) -> Path | None:
        """By the folder of the XML file, else by the name alone; the latter fails where several images have it."""
        alone = len(path_parts(name)) < 2
        text = str(path.parent.relative_to(self._source) / name) if alone else name
        found = self._index.find(text, path.parent, self._source / "JPEGImages")
        if found is None and alone:
            self._index.find(name)
        return found

    def findings(self) -> list[Finding]:
        """What was noticed."""
        if not self._renamed:
            return self._findings
        path, name = self._renamed[0]
        found = f"{len(self._renamed)} that name none, such as '{name}'"
        action = "the image with the XML file's own name was taken; say so with --match stem"
        warning = _finding(path, "a <filename> that is there in each XML file", found, action, error=False)
        return [*self._findings, warning]

    def _fail(self, path: Path, expected: str, found: str, action: str) -> None:
        self.unmatched.add(path.stem)
        self._findings.append(_finding(path, expected, found, action))


def _finding(path: Path, expected: str, found: str, action: str, *, error: bool = True) -> Finding:
    return Finding(case=path.stem, file=str(path), expected=expected, found=found, action=action, error=error)


def _outside(images: Sequence[Path]) -> Finding:
    return warning(
        "",
        _SETS,
        "all images in its lists",
        f"{len(images)} in none of them, the first is {images[0]}",
        "they were left out; add them to a list",
    )


def _always(drawn: Drawn) -> Annotate:
    return lambda size: (drawn, [])


def _sets(source: Path, index: FileIndex) -> PartLists:
    """The parts that ``ImageSets/Main`` lists; ``trainval.txt`` is training where there is no ``train.txt``."""
    lists = PartLists(index, source)
    for part in ("val", "test", "train"):
        path = source / _SETS / f"{part}.txt"
        both = source / _SETS / "trainval.txt"
        if path.exists():
            lists.add(part, path, source / "JPEGImages", flags=True)
        elif part == "train" and both.exists():
            lists.add(part, both, source / "JPEGImages", flags=True, rest=True)
    return lists


CONVERTERS.register("voc")(
    Converter(
        "radiographs with boxes as Pascal VOC files",
        GUIDE,
        convert,
        name_from_path,
        {
            **SETTINGS,
            "base": "number of the first pixel: 0 (default) or 1 (original VOC data)",
            "match": "which name is the image's: filename (<filename>), stem (the XML file's own), both (default)",
        },
        task=DETECTION,
    )
)
