"""The table of ``--patients``: which image is of whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset_conversion.radiographs import below, read_table
from dataset_conversion.registry import ConversionOptions
from medkd.core.errors import DataError

_FIX = "give its path below the source, one row per image"


def read_patients(options: ConversionOptions, images: Iterable[Path], source: Path) -> dict[Path, str]:
    """Image → patient from the CSV file of ``--patients``, with the columns ``image`` and ``patient``.

    ``image`` is the path below the source, or as many of its last parts as tell the images apart: ``P0/a.png``,
    ``a.png`` or ``a``. Rows without patient, and rows of images that are not there, are passed over.

    Args:
        options: of the conversion.
        images: all image files of the source.
        source: the folder that they are in.

    Raises:
        DataError: the file is missing or has other columns, a name fits several images, an image has two patients, or
            no row fits an image.
    """
    if "patients" not in options.settings:
        return {}
    path, index = Path(options.settings["patients"]), _Index(images, source)
    sure: dict[Path, str] = {}
    likely: dict[Path, str] = {}
    for row in read_table(path, ("image", "patient")):
        if not row["image"] or not row["patient"]:
            continue
        image, certain = index.find(row["image"], path)
        if image is None:
            continue
        if (found := (sure if certain else likely).setdefault(image, row["patient"])) != row["patient"]:
            raise DataError(f"{path}: expected one patient of {image}, found '{found}' and '{row['patient']}'; {_FIX}.")
    if not sure and not likely:
        raise DataError(
            f"{path}: expected the images of {source} in the column 'image', but no row names one of them; {_FIX}."
        )
    return {**likely, **sure}


class _Index:
    """Images by their names, with (``a.png``) and without their ending (``a``)."""

    def __init__(self, images: Iterable[Path], source: Path) -> None:
        self._parts = {image: below(image, source) for image in images}
        self._named: dict[str, list[Path]] = defaultdict(list)
        for image in self._parts:
            for name in {image.name, image.stem}:
                self._named[name].append(image)

    def find(self, text: str, table: Path) -> tuple[Path | None, bool]:
        """The image that a row names, and whether name and folders agree; otherwise it is the only one whose name does.

        Raises:
            DataError: several images fit equally well.
        """
        *folders, name = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")] or [text]
        named = self._named.get(name, [])
        agreeing = [image for image in named if _agree(folders, self._parts[image][:-1])]
        exact = [image for image in agreeing if self._parts[image] == (*folders, image.name)]
        deepest = max((min(len(folders), len(self._parts[image]) - 1) for image in agreeing), default=0)
        best = exact or [image for image in agreeing if min(len(folders), len(self._parts[image]) - 1) == deepest]
        if len(best) > 1:
            shown = ", ".join(map(str, sorted(best)[:3]))
            raise DataError(f"{table}: the image '{text}' is there {len(best)} times ({shown}); {_FIX}.")
        if best:
            return best[0], True
        likely = named or self._named.get(Path(name).stem, [])
        return (likely[0] if len(likely) == 1 else None), False


def _agree(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the shorter path is the end of the longer one."""
    count = min(len(first), len(second))
    return not count or tuple(first[-count:]) == tuple(second[-count:])
