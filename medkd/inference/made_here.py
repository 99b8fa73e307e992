"""Which label maps of a folder this model has made of the scans as they are: what ``--continue`` keeps."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError, RunError
from medkd.core.made_with import KnownPredictions, scan_digest
from medkd.core.settled import SETTINGS_FILE, are_settled
from medkd.inference.settings import PredictSettings
from medkd.io.writing.label_maps import LabelMapWriter
from medkd.runtime.prediction import CasePredictor

_log = logging.getLogger(__name__)


class MadeHere:
    """The files of cases that one model has made, noted beside them as soon as each is written.

    Args:
        known: the notes.
        series: case id → the DICOM series that its label map refers to, where it is another than the scan.
    """

    def __init__(self, known: KnownPredictions, series: Mapping[str, Sequence[Path]] | None = None) -> None:
        self.known = known
        self._series = series or {}
        self._sources: dict[str, str] = {}

    def begin(self, case: CaseFiles) -> None:
        """Take down what a case is predicted from; call it before the scan is read."""
        self._sources[case.case] = self._source(case)

    def add(self, case: CaseFiles, file: Path) -> None:
        """Note a file of a case that was just written.

        Raises:
            DataError: the disk is full or read-only.
        """
        self.known.add(file, self._sources[case.case])

    def has(self, case: CaseFiles, files: Sequence[Path]) -> bool:
        """Whether these files of a case are there as the model made them of the scan as it is now."""
        source = self._source(case)
        return bool(source) and all(self.known.has(file, source) for file in files)

    def adopt(self, case: CaseFiles, files: Sequence[Path]) -> bool:
        """Take the files of a case for the model's, where they are all there."""
        self.begin(case)
        if not self._sources[case.case] or not all(file.is_file() for file in files):
            return False
        for file in files:
            self.add(case, file)
        return True

    def _source(self, case: CaseFiles) -> str:
        """Empty where a file of the scan cannot be read, which reading it says."""
        series = tuple(self._series.get(case.case, ()))
        try:
            return scan_digest([*case.images, *(series if series != case.images else ())])
        except OSError:
            return ""


def notes_of(
    folder: Path, predictor: CasePredictor, settings: PredictSettings, writer: LabelMapWriter, part: tuple[int, int]
) -> KnownPredictions:
    """The notes of what this model has made in a folder.

    Args:
        folder: of the label maps.
        predictor: the model.
        settings: with which it predicts.
        writer: of the label maps, which hold names, colours and terms.
        part: (index from 0, count) of the cases.
    """
    written = {"written": json.dumps(settings.written), "structures": repr(writer.painted)}
    name = "" if part[1] == 1 else f"_{part[0] + 1}_of_{part[1]}"
    return KnownPredictions(folder, settings.weights, {**predictor.circumstances(), **written}, part=name)


class Folder:
    """A folder that label maps are predicted into: it never holds any beside settings with which they were not made.

    Args:
        settings: with which is predicted.
        folder: of the label maps.
        made: the notes there.
        files: case → its files.
    """

    def __init__(
        self,
        settings: PredictSettings,
        folder: Path,
        made: MadeHere,
        files: Sequence[tuple[CaseFiles, Sequence[Path]]],
    ) -> None:
        self._settings, self._folder = settings, folder
        self._known, self._made, self._files = made.known, made, files

    def resume(self) -> None:
        """Go on with what is there.

        Raises:
            RunError: it was made with other settings or weights, or nobody says with which.
        """
        there = [file for _, files in self._files for file in files if file.exists()]
        if there and not (self._folder / SETTINGS_FILE).exists():
            raise RunError(
                f"{self._folder} has no {SETTINGS_FILE}, so nobody knows what made {there[0].name} there "
                f"({len(there)} such files); choose another folder, or leave out --continue."
            )
        self._settings.write(self._folder, resume=True)
        earlier = bool(there) and not self._known.any_noted
        self._known.begin()
        if earlier:
            self._adopt()

    def _adopt(self) -> None:
        """Take what an earlier version predicted as its settings say, which is all that is known of it."""
        taken = [case.case for case, files in self._files if self._made.adopt(case, files)]
        if taken:
            _log.warning(
                "%s: an earlier version predicted %d cases, for example %s, and did not note of which scans; they are "
                "taken as they are, so leave out --continue where scans or models changed since",
                self._folder,
                len(taken),
                taken[0],
            )

    def start(self) -> list[str]:
        """Predict anew; returns the cases of which label maps of other settings or weights were removed.

        Raises:
            RunError: the folder holds others of other cases, which would be taken for this model's.
        """
        removed = [] if self._is_settled() else self._remove()
        self._known.begin()
        self._settings.write(self._folder, resume=False)
        return removed

    def _is_settled(self) -> bool:
        file = self._folder / SETTINGS_FILE
        try:
            return not file.exists() or are_settled(file, self._settings)
        except DataError:
            return False

    def _unnoted(self) -> set[str]:
        """What an earlier version has predicted here, as far as names tell."""
        endings = tuple({file.name.removeprefix(case.case) for case, files in self._files for file in files})
        scans = {image.name for case, _ in self._files for image in case.images}
        return {path.name for path in self._folder.iterdir() if path.name.endswith(endings)} - scans

    def _refuse_others(self) -> None:
        """Label maps of other cases would be taken for this model's."""
        ours = {file.name for _, files in self._files for file in files}
        others = sorted((self._known.foreign() if self._known.any_noted else self._unnoted()) - ours)
        if others:
            raise RunError(
                f"{self._folder / SETTINGS_FILE} says that predictions of other cases there ({others[0]}, one of "
                f"{len(others)}) were made with other settings or weights; choose another folder, or move them away."
            )

    def _remove(self) -> list[str]:
        self._refuse_others()
        removed = {}
        for case, files in self._files:
            outdated = [file for file in files if file.exists() and not self._made.has(case, [file])]
            for file in outdated:
                removed[case.case] = file
                file.unlink()
        if removed:
            _log.warning(
                "%s: label maps of %d cases (%s) were made with other settings or weights and are removed",
                self._folder,
                len(removed),
                next(iter(removed.values())).name,
            )
        return list(removed)
