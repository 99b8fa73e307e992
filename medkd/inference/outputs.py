"""Where predictions go: a folder with a label map per case, or for one scan the very file that was named."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.dataset import CaseFiles
from medkd.core.errors import DataError
from medkd.core.files import atomic_path
from medkd.core.geometry import Geometry
from medkd.inference.inputs import output_ending
from medkd.io.volumes import WRITABLE, file_ending, stem, write_volume
from medkd.runtime.prediction import Prediction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """The files of the predictions.

    Attributes:
        folder: where they lie.
        file: the only label map, where it was named itself.
        probabilities: whether a case has a ``.npz`` too.
    """

    folder: Path
    file: Path | None = None
    probabilities: bool = False

    @classmethod
    def at(cls, path: Path, cases: Sequence[CaseFiles], *, probabilities: bool = False) -> Outputs:
        """What ``-o PATH`` means for these cases: a folder, or a file where the name ends as a scan's.

        Raises:
            DataError: one file is named for several cases, has an ending that cannot be written, or is one of the
                scans.
        """
        outputs = cls(path, None, probabilities)
        ending = file_ending(path)
        if ending is not None and not path.is_dir():
            if len(cases) != 1:
                raise DataError(
                    f"-o {path} names one file, but there are {len(cases)} scans to predict; give a folder."
                )
            if ending not in WRITABLE:
                raise DataError(
                    f"-o {path}: label maps cannot be written as {ending}; end the name with {', '.join(WRITABLE)}."
                )
            outputs = cls(path.parent, path, probabilities)
        scans = {scan.resolve() for case in cases for scan in case.images}
        for case in cases:
            if outputs.label_map(case).resolve() in scans:
                raise DataError(
                    f"The label map {outputs.label_map(case)} would overwrite the scan; choose another output folder."
                )
        return outputs

    def label_map(self, case: CaseFiles) -> Path:
        """The label map of a case."""
        return self.file or self.folder / f"{case.case}{output_ending(case)}"

    def archive(self, case: CaseFiles) -> Path:
        """The probabilities of a case."""
        return self.folder / f"{case.case if self.file is None else stem(self.file)}.npz"

    def finished(self, case: CaseFiles) -> bool:
        """Whether all files of a case are there."""
        return self.label_map(case).exists() and (not self.probabilities or self.archive(case).exists())

    def warn_of_replacing(self, cases: Sequence[CaseFiles]) -> list[str]:
        """Say which of the cases have label maps that are going to be replaced; returns their ids."""
        there = [case for case in cases if self.label_map(case).exists()]
        if there:
            example = self.label_map(there[0])
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            logger.warning("%s%s replaced by new predictions", example, f"{more} are" if more else " is")
        return [case.case for case in there]

    def write(self, case: CaseFiles, prediction: Prediction, geometry: Geometry) -> None:
        """Write what was predicted, each file atomically.

        Raises:
            DataError: a file cannot be written.
        """
        if prediction.probabilities is not None:
            with atomic_path(self.archive(case)) as temporary:
                np.savez_compressed(temporary, probabilities=prediction.probabilities)
        # last: its presence says that the case is finished
        write_volume(self.label_map(case), prediction.labels, geometry)
