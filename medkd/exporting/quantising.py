"""INT8 after training: an exported network with quantised convolutions, calibrated on scans, judged by its label maps.

The first convolution and the one that makes the logits (of every fold) stay in float, as do norms, activations and, in
ONNX Runtime, transposed convolutions. Where that costs more Dice than is accepted, the most sensitive convolutions stay
in float, too: as many as it takes, and no more than two thirds of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.dataset import CaseFiles
from medkd.core.errors import RunError
from medkd.core.timing import interleaved
from medkd.exporting.quantisers import convolutions, ends, write_int8
from medkd.io.volumes import read_image
from medkd.preprocessing.pipeline import Preprocessed, preprocess_case
from medkd.runtime.decoding import decode_labels
from medkd.runtime.engines import Engine, open_engine
from medkd.runtime.package import Exported, digest_of, write_exported
from medkd.runtime.predictor import RuntimePredictor
from medkd.runtime.window import sliding_logits

TOLERANCE = 0.005
CALIBRATION_SCANS = 32
JUDGED_SCANS = 10
INT8_FORMATS = ("onnx", "openvino")
_PATCHES = 32  # of all calibration scans together
_SENSITIVITY_PATCHES = 4
_MOST_IN_FLOAT = 2 / 3  # of the convolutions between the first and the last
_REPETITIONS = 7  # of both networks in turns


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """How the quantised network compares with the float one.

    Attributes:
        loss: 1 − the mean Dice between the label maps of both, over scans and structures.
        worst: the smallest Dice of a scan's structure.
        scans: names of the scans that were compared.
        patches: on which it was calibrated.
        calibrated: how many of the scans that were compared are among those that gave the patches.
        convolutions: of the network that can be quantised; in ONNX Runtime without transposed ones.
        in_float: of them that were not quantised.
        bytes_before: size of the float network.
        bytes_after: size of the quantised one.
        milliseconds_before: of the float network for a patch on this machine, the median of turns.
        milliseconds_after: of the quantised one.
    """

    loss: float
    worst: float
    scans: tuple[str, ...]
    patches: int
    calibrated: int
    convolutions: int
    in_float: int
    bytes_before: int
    bytes_after: int
    milliseconds_before: float
    milliseconds_after: float

    def text(self) -> str:
        """What it costs and gains, for people."""
        quicker = self.milliseconds_before / self.milliseconds_after
        shared = f", {self.calibrated} of which it was calibrated on," if self.calibrated else ""
        speed = f"{quicker:.2g} times faster" if quicker >= 1 else f"{1 / quicker:.2g} times slower"
        return (
            f"INT8 costs {self.loss:.4f} Dice against the float network on {len(self.scans)} scans{shared} (worst "
            f"structure {self.worst:.4f}) with {self.in_float} of {self.convolutions} convolutions in float; "
            f"{self.bytes_before / 1e6:.3g} → {self.bytes_after / 1e6:.3g} MB, "
            f"{self.milliseconds_before:.3g} → {self.milliseconds_after:.3g} ms per patch on this machine ({speed})"
        )


def quantise(
    folder: Path, calibration: Sequence[CaseFiles], judged: Sequence[CaseFiles], *, tolerance: float = TOLERANCE
) -> Quantised:
    """Replace the network of an exported folder by a quantised one, if it predicts nearly the same.

    Args:
        folder: made by the format ``onnx`` or ``openvino``.
        calibration: scans whose patches give the ranges of activations.
        judged: scans on which both networks are compared, without mirroring; best ones that training has not seen.
        tolerance: largest loss of Dice that is accepted.

    Raises:
        RunError: the package that quantises is not installed, the label maps differ by more whatever stays in float, or
            there is no scan.
        DataError: a scan cannot be read.
    """
    if not calibration or not judged:
        raise RunError("--int8 needs scans to calibrate and to compare on; give a folder of them with --scans.")
    float_network = RuntimePredictor.open(folder, mirror=False)
    source = folder / float_network.exported.network
    layers = convolutions(source)
    shown = {case.images for case in calibration[:CALIBRATION_SCANS]}
    patches = _patches(float_network, [_prepared(float_network, case) for case in calibration[:CALIBRATION_SCANS]])
    expected = [(case, _labels(float_network, case)) for case in judged[:JUDGED_SCANS]]
    before, found = _size(source), _search(float_network.exported, source, layers, patches, expected, tolerance)
    write_exported(folder, replace(float_network.exported, digest=digest_of(source)))
    slow, quick = _milliseconds(float_network.engine, found.engine, patches[0])
    return Quantised(
        loss=found.loss,
        worst=found.worst,
        scans=tuple(case.case for case, _ in expected),
        patches=len(patches),
        calibrated=len(shown & {case.images for case, _ in expected}),
        convolutions=len(layers),
        in_float=found.in_float,
        bytes_before=before,
        bytes_after=_size(source),
        milliseconds_before=slow,
        milliseconds_after=quick,
    )


@dataclass(frozen=True)
class _Try:
    """A quantised network: what it costs, how many of its convolutions are in float, and what runs it."""

    loss: float
    worst: float
    in_float: int
    engine: Engine


def _search(
    exported: Exported,
    source: Path,
    layers: Sequence[str],
    patches: Sequence[np.ndarray],
    expected: Sequence[tuple[CaseFiles, np.ndarray]],
    tolerance: float,
) -> _Try:
    """Replace a network by the first quantised one that costs no more than is accepted.

    Raises:
        RunError: there is none; the network stays as it is.
    """
    target = source.with_name(f"int8{source.suffix}")
    tries: list[_Try] = []
    for in_float in _growing(source, layers, patches):
        write_int8(source, target, patches, in_float)
        engine = open_engine(target)
        dice = _agreement(RuntimePredictor(exported, engine, mirror=False), expected)
        tries.append(_Try(1 - float(np.mean(dice)), min(dice), len(in_float), engine))
        if tries[-1].loss <= tolerance:
            break
    else:
        raise RunError(_too_much(tries, len(layers), len(expected), tolerance))
    for suffix in (".bin", source.suffix):
        if target.with_suffix(suffix).is_file():
            target.with_suffix(suffix).replace(source.with_suffix(suffix))
    return tries[-1]


def _growing(source: Path, layers: Sequence[str], patches: Sequence[np.ndarray]) -> Iterator[list[str]]:
    """Convolutions that stay in float: both ends, then more and more of the most sensitive ones.

    Raises:
        RunError: nothing is left to quantise.
    """
    outer = set(ends(source))
    kept = [name for name in layers if name in outer]
    inner = [name for name in layers if name not in outer]
    if not inner:
        raise RunError("--int8 finds no convolution between the first and the last; export without it.")
    yield kept
    ranked = _by_sensitivity(source, layers, inner, patches[:: max(1, len(patches) // _SENSITIVITY_PATCHES)])
    count = 1
    while count <= _MOST_IN_FLOAT * len(inner):
        yield [*kept, *ranked[:count]]
        count += max(1, count // 2)


def _by_sensitivity(
    source: Path, layers: Sequence[str], inner: Sequence[str], patches: Sequence[np.ndarray]
) -> list[str]:
    """Convolutions in the order of what quantising each alone changes in the logits, mean squared."""
    target = source.with_name(f"alone{source.suffix}")
    run = open_engine(source)
    wanted = [run(patch) for patch in patches]
    changes: dict[str, float] = {}
    for name in inner:
        write_int8(source, target, patches, [other for other in layers if other != name])
        engine = open_engine(target)
        apart = [np.mean((engine(patch) - logits) ** 2) for patch, logits in zip(patches, wanted, strict=True)]
        changes[name] = float(np.mean(apart))
    for suffix in (".bin", source.suffix):
        target.with_suffix(suffix).unlink(missing_ok=True)
    return sorted(inner, key=lambda name: -changes[name])


def _agreement(int8_network: RuntimePredictor, expected: Sequence[tuple[CaseFiles, np.ndarray]]) -> list[float]:
    """Dice of every scan's structures between the label maps of both networks."""
    dice: list[float] = []
    for case, reference in expected:
        dice += _dice(_labels(int8_network, case), reference)
    if not dice:
        raise RunError(
            "--int8 cannot be judged: neither network finds a structure in the given scans; give other scans."
        )
    return dice


def _too_much(tries: Sequence[_Try], layers: int, scans: int, tolerance: float) -> str:
    best = min(tries, key=lambda one: one.loss)
    return (
        f"INT8 costs {best.loss:.4f} Dice against the float network on {scans} scans (worst structure "
        f"{best.worst:.4f}) with {best.in_float} of {layers} convolutions in float, more than --tolerance "
        f"{tolerance:g}; export without --int8, or accept more."
    )


def _prepared(predictor: RuntimePredictor, case: CaseFiles) -> Preprocessed:
    image, geometry = read_image(case.images, case.case)
    return preprocess_case(case.case, image, geometry, predictor.plan, predictor.configuration)


def _labels(predictor: RuntimePredictor, case: CaseFiles) -> np.ndarray:
    prepared = _prepared(predictor, case)
    return decode_labels(
        predictor.logits(prepared.image), prepared.properties, predictor.plan, predictor.configuration, predictor.labels
    )


def _size(network: Path) -> int:
    """Bytes of a network with the weights that OpenVINO keeps beside it."""
    weights = network.with_suffix(".bin")
    return network.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def _milliseconds(before: Engine, after: Engine, patch: np.ndarray) -> tuple[float, float]:
    """Medians of both engines for one patch, in turns."""
    actions: dict[str, Callable[[], Any]] = {"before": partial(before, patch), "after": partial(after, patch)}
    taken = interleaved(actions, _REPETITIONS)
    first, second = (1000 * float(np.median(taken[name])) for name in ("before", "after"))
    return first, second


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


def _dice(found: np.ndarray, reference: np.ndarray) -> list[float]:
    """Dice of every label that either map holds."""
    scores = []
    for label in np.union1d(np.unique(found), np.unique(reference)):
        if label == 0:
            continue
        one, other = found == label, reference == label
        scores.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    return scores
