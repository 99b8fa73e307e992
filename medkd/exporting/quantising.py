"""INT8 after training: an exported network with quantised convolutions, calibrated on scans, judged by its label maps.

Static quantisation, by ONNX Runtime (QDQ, a scale per output channel) of ``model.onnx`` and by NNCF of OpenVINO's
``model.xml``. The first convolution and the one that makes the logits stay in float, as do norms, activations and, in
ONNX Runtime, transposed convolutions.
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
from medkd.exporting.onnx import quiet
from medkd.io.volumes import read_image
from medkd.preprocessing.pipeline import Preprocessed, preprocess_case
from medkd.runtime.decoding import decode_labels
from medkd.runtime.engines import Engine
from medkd.runtime.package import digest_of, read_exported, write_exported
from medkd.runtime.predictor import RuntimePredictor
from medkd.runtime.window import sliding_logits

TOLERANCE = 0.005
CALIBRATION_SCANS = 8
JUDGED_SCANS = 10
INT8_FORMATS = ("onnx", "openvino")
_PATCHES = 32  # of all calibration scans together
_REPETITIONS = 7  # of both networks in turns


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
        milliseconds_before: of the float network for a patch on this machine, the median of turns.
        milliseconds_after: of the quantised one.
    """

    loss: float
    worst: float
    scans: tuple[str, ...]
    patches: int
    bytes_before: int
    bytes_after: int
    milliseconds_before: float
    milliseconds_after: float

    def text(self) -> str:
        """What it costs and gains, for people."""
        quicker = self.milliseconds_before / self.milliseconds_after
        speed = f"{quicker:.2g} times faster" if quicker >= 1 else f"{1 / quicker:.2g} times slower"
        return (
            f"INT8 costs {self.loss:.4f} Dice against the float network on {len(self.scans)} scans (worst structure "
            f"{self.worst:.4f}); {self.bytes_before / 1e6:.3g} → {self.bytes_after / 1e6:.3g} MB, "
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
        RunError: the package that quantises is not installed, the label maps differ by more, or there is no scan.
        DataError: a scan cannot be read.
    """
    if not calibration or not judged:
        raise RunError("--int8 needs scans to calibrate and to compare on; give a folder of them with --scans.")
    float_network = RuntimePredictor.open(folder, mirror=False)
    source = folder / float_network.exported.network
    patches = _patches(float_network, [_prepared(float_network, case) for case in calibration[:CALIBRATION_SCANS]])
    expected = [_labels(float_network, case) for case in judged[:JUDGED_SCANS]]
    before = _size(source)
    write = _write_openvino if source.suffix == ".xml" else _write_onnx
    write(source, patches)
    write_exported(folder, replace(read_exported(folder), digest=digest_of(source)))
    int8_network = RuntimePredictor.open(folder, mirror=False)
    dice: list[float] = []
    for case, reference in zip(judged, expected, strict=False):
        dice += _dice(_labels(int8_network, case), reference)
    if not dice:
        raise RunError(
            "--int8 cannot be judged: neither network finds a structure in the given scans; give other scans."
        )
    slow, quick = _milliseconds(float_network.engine, int8_network.engine, patches[0])
    found = Quantised(
        loss=1 - float(np.mean(dice)),
        worst=min(dice),
        scans=tuple(case.case for case in judged[: len(expected)]),
        patches=len(patches),
        bytes_before=before,
        bytes_after=_size(source),
        milliseconds_before=slow,
        milliseconds_after=quick,
    )
    if found.loss > tolerance:
        raise RunError(
            f"INT8 costs {found.loss:.4f} Dice against the float network on {len(found.scans)} scans (worst structure "
            f"{found.worst:.4f}), more than --tolerance {tolerance:g}; export without --int8, or accept more."
        )
    return found


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


def _write_onnx(network: Path, patches: Sequence[np.ndarray]) -> None:
    """Quantise ``model.onnx`` in its place."""
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

    graph = onnx.load(network).graph
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    options: dict[str, Any] = {"per_channel": True, "op_types_to_quantize": ["Conv"]}
    target = network.with_name("int8.onnx")
    with quiet():
        quantization.quantize_static(
            network,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_ends(convolutions),
            **options,
        )
    target.replace(network)


def _write_openvino(network: Path, patches: Sequence[np.ndarray]) -> None:
    """Quantise ``model.xml`` and its weights in their place."""
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise RunError(
            "--int8 of OpenVINO needs the packages nncf and openvino: pip install 'medkd[export]'."
        ) from error
    import logging

    with quiet():
        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(str(network))
        convolutions = []
        for part in model.get_ordered_ops():
            if part.get_type_name() in ("Convolution", "GroupConvolution"):
                convolutions.append(part.get_friendly_name())
        made = nncf.quantize(
            model,
            nncf.Dataset(list(patches)),
            subset_size=len(patches),
            preset=nncf.QuantizationPreset.MIXED,  # activations below zero are few behind a leaky ReLU, and keep theirs
            ignored_scope=nncf.IgnoredScope(names=_ends(convolutions)),
        )
        target = network.with_name("int8.xml")
        openvino.save_model(made, str(target), compress_to_fp16=True)
    for suffix in (".bin", ".xml"):
        target.with_suffix(suffix).replace(network.with_suffix(suffix))


def _ends(convolutions: Sequence[str]) -> list[str]:
    """The first convolution, which sees the scan, and the last, which makes the logits: they stay in float."""
    return list(dict.fromkeys([*convolutions[:1], *convolutions[-1:]]))


def _dice(found: np.ndarray, reference: np.ndarray) -> list[float]:
    """Dice of every label that either map holds."""
    scores = []
    for label in np.union1d(np.unique(found), np.unique(reference)):
        if label == 0:
            continue
        one, other = found == label, reference == label
        scores.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    return scores
