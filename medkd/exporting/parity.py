"""Whether an exported model predicts what the model predicts that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkd.core.errors import RunError
from medkd.core.geometry import Geometry
from medkd.inference.predictor import Predictor
from medkd.runtime.predictor import RuntimePredictor

MOST_DIFFERENT = 1e-4
"""Share of foreground voxels that may differ: rounding decides at a border, nothing else."""


@dataclass(frozen=True)
class Parity:
    """How a case was predicted by both.

    Attributes:
        case: its name.
        voxels: of the scan.
        differing: voxels with another label.
        foreground: voxels that either calls a structure.
        logits: largest difference of the logits.
    """

    case: str
    voxels: int
    differing: int
    foreground: int
    logits: float

    @property
    def holds(self) -> bool:
        """Whether the label maps are equal up to rounding."""
        return self.differing <= max(1, MOST_DIFFERENT * max(self.foreground, self.voxels / 100))


def synthetic_scan(channels: int, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """A smooth random scan ``(channels, z, y, x)`` float32 with structures of all sizes."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed)
    scan = np.zeros((channels, *shape), np.float32)
    for channel in scan:
        for sigma in (1.0, 3.0, 8.0):
            field = gaussian_filter(noise.standard_normal(shape), sigma)
            channel += (field / field.std()).astype(np.float32)
    return scan * 100


def check_parity(
    predictor: Predictor, exported: RuntimePredictor, image: np.ndarray, geometry: Geometry, case: str
) -> Parity:
    """Predict one scan with both.

    Args:
        predictor: of the model that was exported.
        exported: the exported one, with the same step size and mirroring.
        image: ``(C, z, y, x)``.
        geometry: its grid.
        case: its name, for the text.

    Raises:
        RunError: the label maps differ by more than rounding.
    """
    from medkd.preprocessing.pipeline import preprocess_case

    prepared = preprocess_case(case, image, geometry, predictor.plan, predictor.configuration)
    ours, theirs = predictor.predict(prepared).labels, exported.predict(prepared).labels
    first = predictor.predict_preprocessed(prepared.image).numpy()
    distance = float(np.abs(first - exported.logits(prepared.image)).max())
    found = Parity(case, ours.size, int((ours != theirs).sum()), int(((ours > 0) | (theirs > 0)).sum()), distance)
    if not found.holds:
        raise RunError(
            f"The exported network predicts case {case} otherwise than the model: {found.differing} of {found.voxels} "
            f"voxels have another label (logits differ by up to {found.logits:.2g}); nothing was exported."
        )
    return found


def scan_for(exported: RuntimePredictor, scan: Sequence[Path] | None) -> tuple[np.ndarray, Geometry, str]:
    """The scan that both predict: the given files, or a synthetic one that needs several tiles."""
    if scan is not None:
        from medkd.io.volumes import read_image

        image, geometry = read_image(scan, scan[0].name)
        return image, geometry, scan[0].name
    description, plan = exported.exported, exported.plan
    planned = exported.configuration
    spacing = (planned.spacing[0],) * (3 - planned.rank) + tuple(planned.spacing)
    patch = (4,) * (3 - planned.rank) + tuple(description.patch_size)
    shape = [max(4, round(side * 1.2)) for side in patch]
    shape = [shape[axis] for axis in plan.transpose_back]
    native = tuple(spacing[axis] for axis in plan.transpose_back)
    image = synthetic_scan(len(description.channel_names), shape)
    return image, Geometry.from_spacing(tuple(shape), native), "a synthetic scan"
