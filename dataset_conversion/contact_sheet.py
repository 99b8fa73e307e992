"""``contact_sheet.png``: what a conversion made, to be looked at: a few cases, and every case with a warning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dataset_conversion.report import ConversionReport
from dataset_conversion.thumbnails import Colour, colour, radiograph_picture, volume_picture
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import CaseFiles, DatasetDescription, detection_cases, labelled_cases, unlabelled_cases
from medkd.core.errors import DataError
from medkd.core.files import atomic_path
from medkd.io.checks import Finding

SHEET_FILE = "contact_sheet.png"

_SIDE = 256
_GAP = 12
_CAPTION = 36
_COLUMNS = 6
_MARGIN = 32
_THREADS = 4
_BACKGROUND: Colour = (18, 21, 26)
_TEXT: Colour = (235, 238, 242)
_FAINT: Colour = (150, 158, 170)
_EMPTY: Colour = (40, 45, 54)
_EXAMPLES = 6
_MOST = {"detection": 240, "segmentation": 36}
"""Pictures in all; a volume takes a second or more to read, and a sheet must stay readable."""
_SECTIONS = {
    "rotated": "turned upright by their EXIF orientation",
    "truncated": "the end of the file is missing; what is lost is black",
    "duplicates": "equal images, side by side; never in training and validation at once",
}


@dataclass(frozen=True)
class Section:
    """Cases that are shown together, and why."""

    title: str
    reason: str
    cases: tuple[str, ...]
    hidden: int = 0


def make_contact_sheet(folder: Path, report: ConversionReport, warnings: Iterable[Finding] = ()) -> Path | None:
    """Write the contact sheet of a converted data set.

    Args:
        folder: the raw data set.
        report: of its conversion.
        warnings: further findings about cases, those of the check of the result.

    Returns:
        The file; None where the data set has no case to show.

    Raises:
        DataError: the file cannot be written.
    """
    description = DatasetDescription.load(folder / "dataset.json")
    files = _files(folder, description)
    negatives = set(report.lists.get("negative", ()))
    sections = choose_cases(files, report, warnings, _MOST[description.task], negatives)
    if not sections:
        return None
    shown: dict[str, CaseFiles] = {}
    for section in sections:
        for case in section.cases:
            shown[case] = files[case]
    threads = _THREADS if description.task == "detection" else 2  # a volume takes a gigabyte
    with ThreadPoolExecutor(threads) as pool:
        pictures = pool.map(lambda case: _tile(case, description), shown.values())
        tiles = dict(zip(shown, pictures, strict=True))
    sheet = _Sheet(max(len(section.cases) for section in sections))
    names = description.categories or [name for name, _ in description.labels.foreground]
    sheet.head(report.dataset, f"{report.format} · {len(files)} cases · {len(shown)} shown", names)
    for section in sections:
        sheet.add(section, tiles)
    target = folder / SHEET_FILE
    with atomic_path(target) as temporary:
        sheet.image().save(temporary, format="PNG", compress_level=6)
    return target


def choose_cases(
    known: Mapping[str, CaseFiles],
    report: ConversionReport,
    warnings: Iterable[Finding],
    most: int,
    negatives: set[str] | None = None,
) -> list[Section]:
    """What to show: remarkable cases by kind, the other cases with a warning, and evenly spaced examples.

    No more than ``most`` in all (examples come on top); what does not fit is counted in :attr:`Section.hidden`.
    """
    without = negatives or set()
    choice = _Choice(known, most)
    for name, reason in _SECTIONS.items():
        members: list[str] = []
        for member in report.lists.get(name, ()):
            members += member.split(" = ")
        if name != "duplicates":  # those with boxes first
            members.sort(key=without.__contains__)
        choice.add(name, reason, members)
    warned = [finding.case for finding in (*report.warnings, *warnings)]
    choice.add("warnings", "see the reports", warned)
    choice.most += 2 * _EXAMPLES
    cases = sorted(known)
    with_label = choice.unseen(cases, set(cases) - without)
    choice.add("examples", "evenly spaced", _spaced(with_label))
    negative = choice.unseen(cases, without)
    choice.add("negatives", "without a box", _spaced(negative))
    return choice.sections


class _Choice:
    """Sections in which no case is shown twice, with no more than ``most`` cases in all."""

    def __init__(self, known: Mapping[str, CaseFiles], most: int) -> None:
        self.most = most
        self.sections: list[Section] = []
        self._known = known
        self._seen: set[str] = set()

    def add(self, title: str, reason: str, cases: Iterable[str]) -> None:
        """A section with those of the cases that are there and not shown yet; none where there is no such case."""
        wanted = self.unseen(dict.fromkeys(cases), self._known)
        room = max(0, self.most - len(self._seen))
        self._seen.update(wanted[:room])
        hidden = len(wanted[room:])
        if wanted:
            self.sections.append(Section(title, reason, tuple(wanted[:room]), hidden))

    def unseen(self, cases: Iterable[str], among: Collection[str]) -> list[str]:
        """The cases that are among others and not shown yet."""
        return [case for case in cases if case in among and case not in self._seen]


def _spaced(cases: Sequence[str]) -> list[str]:
    total = len(cases)
    count = min(_EXAMPLES, total)
    chosen = []
    for i in range(count):
        place = (2 * i + 1) * total // (2 * count)
        chosen.append(cases[place])
    return chosen


def _files(folder: Path, description: DatasetDescription) -> dict[str, CaseFiles]:
    cases = labelled_cases(folder, description) or unlabelled_cases(folder, description)
    if description.task == "detection":
        cases += detection_cases(folder, description, "Ts")
    return {files.case: files for files in cases}


def _tile(files: CaseFiles, description: DatasetDescription) -> tuple[Image.Image, str]:
    """The picture and the second line of its caption."""
    try:
        if description.task != "detection":
            return volume_picture(files, _SIDE), ""
        image, label = files.images[0], files.label
        picture = radiograph_picture(image, label, description.categories, _SIDE)
        annotation = BoxAnnotation.load(files.label) if files.label else None
    except DataError:
        return Image.new("RGB", (_SIDE, _SIDE), _EMPTY), "unreadable"
    if annotation is None:
        return picture, ""
    counted = Counter(annotation.names)  # in the order of their first box
    counts = ", ".join(f"{times} {name}" for name, times in counted.items())
    return picture, f"{annotation.width} x {annotation.height}, {counts or 'no box'}"


_Place = tuple[int, int]
_Text = tuple[_Place, str, int, Colour]
_Tile = tuple[Image.Image, str]


class _Sheet:
    """Lays out sections below each other; the height is known only at the end, so drawing is put off.

    Args:
        widest: tiles in the largest section.
    """

    def __init__(self, widest: int) -> None:
        self._columns = max(3, min(_COLUMNS, widest))
        self._width = 2 * _MARGIN + self._columns * (_SIDE + _GAP) - _GAP
        self._y = _MARGIN
        self._texts: list[_Text] = []
        self._tiles: list[tuple[_Place, Image.Image]] = []

    def head(self, title: str, subtitle: str, names: Sequence[str]) -> None:
        """The title, and the names of the classes in their colours."""
        self._write(_MARGIN, self._y, title, 26)
        self._write(_MARGIN, self._y + 34, subtitle, 15, _FAINT)
        self._y += 62
        x = _MARGIN
        for i, name in enumerate(names):
            width = round(_font(14).getlength(name)) + 34
            if x + width > self._width - _MARGIN:
                x, self._y = _MARGIN, self._y + 22
            square = Image.new("RGB", (12, 12), colour(i))
            self._tiles.append(((x, self._y + 3), square))
            self._write(x + 18, self._y, name, 14)
            x += width
        self._y += 22

    def add(self, section: Section, tiles: Mapping[str, _Tile]) -> None:
        """A heading and rows of pictures."""
        count = len(section.cases) + section.hidden
        more = f"; {section.hidden} more in the report" if section.hidden else ""
        heading = f"{section.title} ({count})"
        self._y += 22
        self._write(_MARGIN, self._y, heading, 19)
        width = round(_font(19).getlength(heading))
        self._write(_MARGIN + width + 12, self._y + 4, section.reason + more, 14, _FAINT)
        self._y += 34
        height = _SIDE + _CAPTION + _GAP
        for i, case in enumerate(section.cases):
            row, column = divmod(i, self._columns)
            x = _MARGIN + column * (_SIDE + _GAP)
            y = self._y + row * height
            picture, caption = tiles[case]
            self._tiles.append(((x, y), picture))
            self._write(x, y + _SIDE + 3, _fitted(case, 14), 14)
            self._write(x, y + _SIDE + 20, _fitted(caption, 12), 12, _FAINT)
        rows = math.ceil(len(section.cases) / self._columns)
        self._y += rows * height

    def _write(self, x: int, y: int, text: str, size: int, shade: Colour = _TEXT) -> None:
        self._texts.append(((x, y), text, size, shade))

    def image(self) -> Image.Image:
        """The finished sheet."""
        height = self._y + _MARGIN - _GAP
        sheet = Image.new("RGB", (self._width, height), _BACKGROUND)
        for place, tile in self._tiles:
            sheet.paste(tile, place)
        draw = ImageDraw.Draw(sheet)
        for place, text, size, shade in self._texts:
            draw.text(place, text, fill=shade, font=_font(size))
        return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]  # with a size it is a FreeType font


def _fitted(text: str, size: int) -> str:
    """The text, cut to the width of a picture."""
    font = _font(size)
    if font.getlength(text) <= _SIDE:
        return text
    while text and font.getlength(text + "...") > _SIDE:
        text = text[:-1]
    return text + "..."
