"""The table of ``--patients``: which image is of whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dataset_conversion.findings import some
from dataset_conversion.registry import ConversionOptions
from dataset_conversion.tables import read_table
from medkd.core.errors import DataError
from medkd.core.resolve import FileIndex
from medkd.io.checks import Finding

_FIX = "give its path below the source, one row per image"
_SHOWN = 3


def read_patients(
    options: ConversionOptions, images: Iterable[Path], source: Path
) -> tuple[dict[Path, str], list[Finding]]:
    """Image → patient from the CSV file of ``--patients``, with the columns ``image`` and ``patient``.

    ``image`` is the path below the source, or as many of its last parts as tell the images apart: ``P0/a.png``,
    ``a.png`` or ``a``. A row without patient says nothing. A row of no image is a problem if some image has no patient,
    since it may be its row, and is worth a warning otherwise.

    Args:
        options: of the conversion.
        images: all image files of the source.
        source: the folder that they are in.

    Raises:
        DataError: the file is missing or has other columns, a name fits several images, an image has two patients, or
            no row fits an image.
    """
    if "patients" not in options.settings:
        return {}, []
    path = Path(options.settings["patients"])
    index = FileIndex(source, images, _stem)
    certain: dict[Path, str] = {}
    likely: dict[Path, str] = {}
    unmatched: list[str] = []
    for text, patient in _rows(path):
        image = _find(index, text, path)
        if image is None:
            unmatched.append(text)
            continue
        known = certain if index.agrees(text, image) else likely
        _enter(known, image, patient, path)
    if not certain and not likely:
        raise DataError(
            f"{path}: expected the images of {source} in the column 'image', but no row names one of them; {_FIX}."
        )
    patients = {**likely, **certain}
    without = [image for image in index.paths if image not in patients]
    return patients, _unmatched(unmatched, path, without)


def _rows(path: Path) -> list[tuple[str, str]]:
    """Image and patient of each row that has both."""
    rows = []
    for row in read_table(path, ("image", "patient")):
        if row["image"] and row["patient"]:
            rows.append((row["image"], row["patient"]))
    return rows


def _stem(name: str) -> str:
    return Path(name).stem


def _find(index: FileIndex, text: str, table: Path) -> Path | None:
    try:
        return index.find(text)
    except DataError as error:
        raise DataError(f"{table}: {str(error).rstrip('.')}; {_FIX}.") from error


def _enter(patients: dict[Path, str], image: Path, patient: str, table: Path) -> None:
    found = patients.setdefault(image, patient)
    if found != patient:
        raise DataError(f"{table}: expected one patient of {image}, found '{found}' and '{patient}'; {_FIX}.")


def _unmatched(rows: list[str], table: Path, without: list[Path]) -> list[Finding]:
    if not rows:
        return []
    shown = some([f"'{text}'" for text in rows], _SHOWN)
    found = f"{len(rows)} rows of no image ({shown})"
    if without:
        found += f", and {len(without)} images without a row, the first is {without[0]}"
    return [
        Finding(
            case="",
            file=str(table),
            expected="rows of images that are there",
            found=found,
            action="correct the names, or remove the rows",
            error=bool(without),
        )
    ]


def patients_note(names: Mapping[Path, str], patients: Mapping[Path, str]) -> list[str]:
    """What the report says of images of nobody."""
    unknown = sorted(name for image, name in names.items() if image not in patients)
    if not patients or not unknown:
        return []
    return [f"{len(unknown)} images have no patient in the file of --patients; each counts as one: {unknown[0]}, …"]
