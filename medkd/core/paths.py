"""The folders medkd works in."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from medkd.core.errors import DataError

_NAME = re.compile(r"^Dataset(\d{3})_.+$")


@dataclass(frozen=True)
class Root:
    """The three folders of a medkd installation.

    Attributes:
        raw: unified raw data sets (nnU-Net v2 layout).
        preprocessed: fingerprints, plans, splits and stores.
        results: runs.
    """

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def resolve(cls, root: str | Path | None = None) -> Root:
        """``root``, else ``$MEDKD_ROOT``, else ``./medkd_data``."""
        chosen = str(root or os.environ.get("MEDKD_ROOT") or "medkd_data")
        if "\0" in chosen:
            raise DataError("The root folder's path holds a null character, which no path may; give another --root.")
        base = Path(chosen).expanduser().absolute()
        return cls(base / "raw", base / "preprocessed", base / "results")

    def dataset_name(self, dataset: str | int) -> str:
        """Full name of a data set given by number (``4``) or full name (``Dataset004_Hippocampus``).

        ``raw`` and ``preprocessed`` are searched, then the folders named by ``nnUNet_raw`` and ``nnUNet_preprocessed``.

        Raises:
            DataError: nothing, or more than one data set, has this number or name.
        """
        text = str(dataset)
        names = self._dataset_names()
        if text in names:
            return text
        number = text.removeprefix("Dataset")
        found = []
        if re.fullmatch(r"[0-9]{1,3}", number):
            found = [name for name in names if name.startswith(f"Dataset{int(number):03d}_")]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"Data set {text} is ambiguous: {', '.join(found)}; give the full name.")
        known = ", ".join(names) or "none"
        raise DataError(
            f"Data set '{text}' was not found below {self.raw.parent} (known: {known}); run medkd_convert first, or "
            "give --root."
        )

    def _dataset_names(self) -> list[str]:
        """Full names of all data sets that have a folder somewhere, sorted."""
        folders = [self.raw, self.preprocessed, self.results, *_nnunet_folders("nnUNet_raw", "nnUNet_preprocessed")]
        names = set()
        for folder in folders:
            paths = folder.iterdir() if folder.is_dir() else ()
            for path in paths:
                if _NAME.match(path.name) and path.is_dir():
                    names.add(path.name)
        return sorted(names)

    def raw_dataset(self, name: str) -> Path:
        """Folder of a raw data set: below :attr:`raw`, else below ``$nnUNet_raw`` (for reading)."""
        for folder in [self.raw, *_nnunet_folders("nnUNet_raw")]:
            if (folder / name).is_dir():
                return folder / name
        return self.raw / name


def _nnunet_folders(*variables: str) -> list[Path]:
    return [Path(os.environ[v]) for v in variables if os.environ.get(v)]


def new_dataset_name(number: int, name: str) -> str:
    """``DatasetNNN_Name`` for a new data set.

    Raises:
        DataError: the number is not within 1..999 or the name has characters other than letters, digits, ``_`` and
            ``-``.

    >>> new_dataset_name(4, "Hippocampus")
    'Dataset004_Hippocampus'
    """
    if not 1 <= number <= 999:
        raise DataError(f"Data set numbers run from 1 to 999, found {number}.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise DataError(f"Data set names use letters, digits, '_' and '-', found '{name}'.")
    return f"Dataset{number:03d}_{name}"
