"""What the predictions of a folder were made with, written beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medkd.core.checkpoint import weights_digest
from medkd.core.errors import RunError
from medkd.core.serial import load, save
from medkd.inference.inputs import SETTINGS_FILE
from medkd.inference.predictor import Predictor


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
    schema: int = 1

    @classmethod
    def of(cls, predictor: Predictor, run: Path, checkpoint: str) -> PredictSettings:
        """What a predictor predicts with."""
        return cls(
            run=str(run),
            folds=tuple(predictor.folds),
            checkpoint=checkpoint,
            step_size=predictor.settings.step_size,
            mirror_axes=predictor.mirror_axes if predictor.settings.mirror else (),
            precision=predictor.precision,
            medkd=medkd_version(),
            blending=predictor.settings.blending,
            weights=tuple(weights_digest(network.state_dict()) for network in predictor.networks),
        )

    def write(self, folder: Path, *, resume: bool) -> None:
        """Write the file.

        Args:
            folder: of the predictions.
            resume: the predictions that are there are kept, so they must have been made with the same settings.

        Raises:
            RunError: they were made with others.
        """
        path = folder / SETTINGS_FILE
        if resume and path.exists():
            old = load(PredictSettings, path)
            if replace(old, medkd=self.medkd, run=self.run) != self:
                raise RunError(
                    f"{path} says that the predictions there were made with other settings or weights; "
                    "choose another folder, or leave out --continue."
                )
        save(path, self)


def medkd_version() -> str:
    """The version that is installed."""
    try:
        return version("medkd")
    except PackageNotFoundError:
        return "unknown"
