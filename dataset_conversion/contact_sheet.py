"""``contact_sheet.png``: what a conversion made, to be looked at: a few cases, and every case with a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dataset_conversion.report import ConversionReport
from dataset_conversion.thumbnails import Colour, colour, radiograph_picture, volume_picture
from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import CaseFiles, DatasetDescription, detection_cases, training_cases
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
    sections = choose_cases(files, report, warnings, _MOST[description.task], set(report.lists.get("negative", ())))
    if not sections:
        return None
    shown = list(dict.fromkeys(case for section in sections for case in section.cases))
    with ThreadPoolExecutor(_THREADS if description.task == "detection" else 2) as pool:  # a volume takes a gigabyte
        tiles = dict(zip(shown, pool.map(lambda case: _tile(files[case], description), shown), strict=True))
    sheet = _Sheet(len(max((s.cases for s in sections), key=len)))
    names = description.categories or tuple(name for name, _ in description.labels.foreground)
    sheet.head(f"{report.dataset}", f"{report.format} · {len(files)} cases · {len(shown)} shown", names)
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
    sections: list[Section] = []
    seen: set[str] = set()

    def add(title: str, reason: str, cases: Iterable[str]) -> None:
        wanted = [c for c in dict.fromkeys(cases) if c in known and c not in seen]
        room = max(0, most - len(seen))
        seen.update(wanted[:room])
        if wanted:
            sections.append(Section(title, reason, tuple(wanted[:room]), len(wanted[room:])))

    for name, reason in _SECTIONS.items():
        members = [case for member in report.lists.get(name, ()) for case in member.split(" = ")]
        with_label = sorted(members, key=lambda case: case in (negatives or set())) if name != "duplicates" else members
        add(name, reason, with_label)
    add("warnings", "see the reports", (f.case for f in (*report.warnings, *warnings) if f.case))
    without = negatives or set()
    most += 2 * _EXAMPLES
    add("examples", "evenly spaced", _spaced([c for c in sorted(known) if c not in seen | without]))
    add("negatives", "without a box", _spaced([c for c in sorted(without & set(known)) if c not in seen]))
    return sections


def _spaced(cases: Sequence[str]) -> list[str]:
    count = min(_EXAMPLES, len(cases))
    return [cases[(2 * i + 1) * len(cases) // (2 * count)] for i in range(count)]


def _files(folder: Path, description: DatasetDescription) -> dict[str, CaseFiles]:
    cases = training_cases(folder, description)
    if description.task == "detection":
        cases += detection_cases(folder, description, "Ts")
    return {files.case: files for files in cases}


def _tile(files: CaseFiles, description: DatasetDescription) -> tuple[Image.Image, str]:
    """The picture and the second line of its caption."""
    try:
        if description.task != "detection":
            return volume_picture(files, _SIDE), ""
        picture = radiograph_picture(files.images[0], files.label, description.categories, _SIDE)
        annotation = BoxAnnotation.load(files.label) if files.label else None
    except DataError:
        return Image.new("RGB", (_SIDE, _SIDE), _EMPTY), "unreadable"
    if annotation is None:
        return picture, ""
    counts = ", ".join(f"{annotation.names.count(name)} {name}" for name in dict.fromkeys(annotation.names))
    return picture, f"{annotation.width} x {annotation.height}, {counts or 'no box'}"


class _Sheet:
    """Lays out sections below each other; the height is known only at the end, so drawing is put off.

    Args:
        widest: tiles in the largest section.
    """

    def __init__(self, widest: int) -> None:
        self._columns = max(3, min(_COLUMNS, widest))
        self._width = 2 * _MARGIN + self._columns * (_SIDE + _GAP) - _GAP
        self._y = _MARGIN
        self._texts: list[tuple[tuple[int, int], str, int, Colour]] = []
        self._tiles: list[tuple[tuple[int, int], Image.Image]] = []

    def head(self, title: str, subtitle: str, names: Sequence[str]) -> None:
        """The title, and the names of the classes in their colours."""
        self._texts += [((_MARGIN, self._y), title, 26, _TEXT), ((_MARGIN, self._y + 34), subtitle, 15, _FAINT)]
        self._y += 62
        x = _MARGIN
        for i, name in enumerate(names):
            width = round(_font(14).getlength(name)) + 34
            if x + width > self._width - _MARGIN:
                x, self._y = _MARGIN, self._y + 22
            self._tiles.append(((x, self._y + 3), Image.new("RGB", (12, 12), colour(i))))
            self._texts.append(((x + 18, self._y), name, 14, _TEXT))
            x += width
        self._y += 22

    def add(self, section: Section, tiles: Mapping[str, tuple[Image.Image, str]]) -> None:
        """A heading and rows of pictures."""
        count = len(section.cases) + section.hidden
        more = f"; {section.hidden} more in the report" if section.hidden else ""
        heading = f"{section.title} ({count})"
        self._y += 22
        self._texts.append(((_MARGIN, self._y), heading, 19, _TEXT))
        self._texts.append(
            ((_MARGIN + round(_font(19).getlength(heading)) + 12, self._y + 4), section.reason + more, 14, _FAINT)
        )
        self._y += 34
        for i, case in enumerate(section.cases):
            x = _MARGIN + (i % self._columns) * (_SIDE + _GAP)
            y = self._y + (i // self._columns) * (_SIDE + _CAPTION + _GAP)
            picture, caption = tiles[case]
            self._tiles.append(((x, y), picture))
            self._texts += [
                ((x, y + _SIDE + 3), _fitted(case, 14), 14, _TEXT),
                ((x, y + _SIDE + 20), _fitted(caption, 12), 12, _FAINT),
            ]
        self._y += -(-len(section.cases) // self._columns) * (_SIDE + _CAPTION + _GAP)

    def image(self) -> Image.Image:
        """The finished sheet."""
        sheet = Image.new("RGB", (self._width, self._y + _MARGIN - _GAP), _BACKGROUND)
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
