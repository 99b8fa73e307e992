"""What the predictions of a folder were made with, written beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from medkd import __version__
from medkd.core.settled import SETTINGS_FILE, write_settings
from medkd.io.writing.formats import Format
from medkd.io.writing.label_maps import LabelMapWriter
from medkd.runtime.prediction import CasePredictor


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """``predict_settings.json``: what the predictions beside it were made with.

    Attributes:
        run: run folder.
        folds: folds whose logits were averaged.
        checkpoint: ``"final"`` or ``"best"``.
        step_size: tile distance as a share of the patch.
        mirror_axes: axes that were mirrored; empty without test-time augmentation.
        precision: arithmetic of the forwards.
        medkd: version.
        blending: ``gaussian`` or ``constant`` weights of a tile's voxels.
        weights: a hash of each network's weights.
        engine: what computed the networks; of several models what computed each kind, joined by commas.
        engine_version: its version, or theirs.
        written: formats of the label maps with their kind; empty for the scans' own.
        postprocessing: structures of which the largest component alone was kept, in this order.
        preprocessing: a hash of all that the label maps depend on besides these, the plan above all; empty in files of
            earlier versions.
    """

    run: str
    folds: tuple[str, ...]
    checkpoint: str
    step_size: float
    mirror_axes: tuple[int, ...]
    precision: str
    medkd: str
    blending: str = "gaussian"
    weights: tuple[str, ...] = ()
    engine: str = "torch"
    engine_version: str = ""
    written: tuple[str, ...] = ()
    postprocessing: tuple[str, ...] = ()
    preprocessing: str = ""
    schema: int = 3
    oldest: ClassVar[int] = 1

    @classmethod
    def of(cls, predictor: CasePredictor, run: Path, checkpoint: str, written: Sequence[str] = ()) -> PredictSettings:
        """What a predictor predicts with, and what :func:`written_as` says."""
        return cls(
            run=str(run),
            folds=tuple(predictor.folds),
            checkpoint=checkpoint,
            step_size=predictor.step_size,
            mirror_axes=predictor.used_axes,
            precision=predictor.arithmetic,
            medkd=__version__,
            blending=predictor.blending,
            weights=predictor.digests(),
            engine=predictor.engine_name,
            engine_version=_versions(predictor.engine_name),
            written=tuple(written),
            postprocessing=tuple(step.name for step in predictor.postprocessing),
            preprocessing=_digest(predictor.circumstances()),
        )

    def write(self, folder: Path, *, resume: bool) -> None:
        """Write the file.

        Args:
            folder: of the predictions.
            resume: the predictions that are there are kept, so they must have been made with the same settings.

        Raises:
            RunError: they were made with others.
        """
        write_settings(folder / SETTINGS_FILE, self, resume=resume)


def _digest(settings: Mapping[str, str]) -> str:
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def _versions(engines: str) -> str:
    """The versions of engines that are joined by commas; nothing where one is no package."""
    try:
        return ", ".join(version(name) for name in engines.split(", "))
    except PackageNotFoundError:
        return ""


def written_as(formats: Sequence[Format], writer: LabelMapWriter) -> list[str]:
    """Names of the formats of label maps; of DICOM-SEG with its kind, ``dicom-seg binary``."""
    return [f"{entry.name} {writer.kind}" if entry.name == "dicom-seg" else entry.name for entry in formats]
