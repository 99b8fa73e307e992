"""INT8 after training: an exported network with quantised convolutions, calibrated on scans, judged by its label maps.

Static quantisation by ONNX Runtime (QDQ, a scale per output channel). The first convolution and the one that makes the
logits stay in float, as do norms, activations and transposed convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.dataset import CaseFiles
from medkd.core.errors import RunError
from medkd.exporting.onnx import quiet
from medkd.io.volumes import read_image
from medkd.preprocessing.pipeline import Preprocessed, preprocess_case
from medkd.runtime.package import digest_of, read_exported, write_exported
from medkd.runtime.predictor import RuntimePredictor
from medkd.runtime.window import sliding_logits

TOLERANCE = 0.005
CALIBRATION_SCANS = 8
JUDGED_SCANS = 10
_PATCHES = 32  # of all calibration scans together


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """How the quantised network compares with the float one.

    Attributes:
        loss: 1 − the mean Dice between the label maps of both, over scans and structures.
        worst: the smallest Dice of a scan's structure.
        scans: names of the scans that were compared.
        patches: on which it was calibrated.
        bytes_before: size of the float network.
        bytes_after: size of the quantised one.
    """

    loss: float
    worst: float
    scans: tuple[str, ...]
    patches: int
    bytes_before: int
    bytes_after: int


def quantise(
    folder: Path, calibration: Sequence[CaseFiles], judged: Sequence[CaseFiles], *, tolerance: float = TOLERANCE
) -> Quantised:
    """Replace the network of an exported folder by a quantised one, if it predicts nearly the same.

    Args:
        folder: made by the format ``onnx``.
        calibration: scans whose patches give the ranges of activations.
        judged: scans on which both networks are compared, without mirroring; best ones that training has not seen.
        tolerance: largest loss of Dice that is accepted.

    Raises:
        RunError: onnxruntime's quantisation is not installed, the label maps differ by more, or there is no scan.
        DataError: a scan cannot be read.
    """
    if not calibration or not judged:
        raise RunError("--int8 needs scans to calibrate and to compare on; give a folder of them with --scans.")
    float_network = RuntimePredictor.open(folder, mirror=False)
    source, target = folder / float_network.exported.network, folder / "int8.onnx"
    patches = _patches(float_network, [_prepared(float_network, case) for case in calibration[:CALIBRATION_SCANS]])
    _write(source, target, patches)
    before, after = source.stat().st_size, target.stat().st_size
    expected = [_labels(float_network, case) for case in judged[:JUDGED_SCANS]]
    target.replace(source)
    write_exported(folder, replace(read_exported(folder), digest=digest_of(source)))
    int8_network = RuntimePredictor.open(folder, mirror=False)
    dice: list[float] = []
    for case, reference in zip(judged, expected, strict=False):
        dice += _dice(_labels(int8_network, case), reference)
    if not dice:
        raise RunError(
            "--int8 cannot be judged: neither network finds a structure in the given scans; give other scans."
        )
    loss = 1 - float(np.mean(dice))
    names = tuple(case.case for case in judged[: len(expected)])
    if loss > tolerance:
        raise RunError(
            f"INT8 costs {loss:.4f} Dice against the float network on {len(names)} scans (worst structure "
            f"{min(dice):.4f}), more than --tolerance {tolerance:g}; export without --int8, or accept more."
        )
    return Quantised(
        loss=loss,
        worst=min(dice),
        scans=names,
        patches=len(patches),
        bytes_before=before,
        bytes_after=after,
    )


def _prepared(predictor: RuntimePredictor, case: CaseFiles) -> Preprocessed:
    image, geometry = read_image(case.images, case.case)
    return preprocess_case(case.case, image, geometry, predictor.plan, predictor.configuration)


def _labels(predictor: RuntimePredictor, case: CaseFiles) -> np.ndarray:
    return predictor.predict(_prepared(predictor, case)).labels


def _patches(predictor: RuntimePredictor, scans: Sequence[Preprocessed]) -> list[np.ndarray]:
    """What the network is shown of the scans, evenly chosen; each ``(1, C, *patch)``."""
    shown: list[np.ndarray] = []

    def note(batch: np.ndarray) -> np.ndarray:
        shown.extend(patch[None].copy() for patch in batch)
        return np.zeros((len(batch), predictor.labels.num_outputs, *batch.shape[2:]), np.float32)

    for scan in scans:
        sliding_logits(note, scan.image, predictor.exported.patch_size, predictor.labels.num_outputs, step_size=1.0)
    chosen = np.linspace(0, len(shown) - 1, min(_PATCHES, len(shown))).round().astype(int)
    return [shown[index] for index in chosen]


def _write(source: Path, target: Path, patches: Sequence[np.ndarray]) -> None:
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise RunError("--int8 needs the packages onnx and onnxruntime: pip install 'medkd[export]'.") from error

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives one patch after the other."""

        def __init__(self) -> None:
            self._patches: Iterator[np.ndarray] = iter(patches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next input, or None."""
            patch = next(self._patches, None)
            return None if patch is None else {"image": patch}

    graph = onnx.load(source).graph
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    options: dict[str, Any] = {"per_channel": True, "op_types_to_quantize": ["Conv"]}
    with quiet():
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[convolutions[0], convolutions[-1]] if convolutions else [],
            **options,
        )


def _dice(found: np.ndarray, reference: np.ndarray) -> list[float]:
    """Dice of every label that either map holds."""
    scores = []
    for label in np.union1d(np.unique(found), np.unique(reference)):
        if label == 0:
            continue
        one, other = found == label, reference == label
        scores.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    return scores
