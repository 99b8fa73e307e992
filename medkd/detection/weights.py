"""Weights that were trained elsewhere: ultralytics' ``best.pt``, and backbones of torchvision and timm. Nothing in a
file is executed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medkd.core.checkpoint import inert_state, load_checkpoint, read_inert
from medkd.core.errors import RunError
from medkd.detection.base import Detector
from medkd.networks.pretrained import read_weights

_LEAST_SHARE = 0.5  # of a detector's weights that a file of another detector must fit, else it is of another kind
_LEAST_BACKBONE = 30  # tensors of a whole network
_CLASSIFIERS = ("fc.", "classifier.", "head.", "conv_head.", "bn2.")
_log = logging.getLogger(__name__)


def read_detector_weights(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Weights of a whole detector, by name.

    Args:
        path: a ``.pt`` of ultralytics (``best.pt``, with the classes it was trained for), or a state dict, bare or as
            medkd's checkpoints hold it (``network``).

    Returns:
        The state dict in float32, and the names of the classes where the file tells them.

    Raises:
        RunError: the file is missing, damaged, or holds anything but tensors, plain values and ultralytics' own layers.
    """
    if not path.exists():
        raise RunError(f"There are no weights {path}; give an existing file.")
    try:
        content = load_checkpoint(path)
    except RunError as error:
        if path.suffix != ".pt" or "objects other than tensors" not in str(error):
            raise
        return _of_ultralytics(path)
    for key in ("network", "state_dict", "model"):
        content = content[key] if isinstance(content.get(key), Mapping) else content
    return _in_float32(content), None


def _of_ultralytics(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights and classes of a pickled network, without its classes being loaded."""
    content = read_inert(path)
    network = content.get("ema") or content.get("model")
    try:
        state = inert_state(network)
    except RunError as error:
        raise RunError(f"{path} is no detector of ultralytics: expected its best.pt or last.pt.") from error
    names: Any = getattr(network, "names", {})
    listed = [names[i] for i in sorted(names)] if isinstance(names, Mapping) else names
    return _in_float32(state), tuple(str(name) for name in listed)


def _in_float32(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among a file's entries."""
    state = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            state[str(name)] = value.float() if value.is_floating_point() else value
    return state


def load_into(detector: Detector, state: Mapping[str, Tensor], path: Path) -> None:
    """Give a detector all of its weights, medkd's, ultralytics' or mmdetection's.

    Raises:
        RunError: they are those of another detector, or for another number of classes.
    """
    if detector.family == "torchvision":
        from medkd.detection.tv.mmdetection import is_mmdetection, load_mmdetection

        if is_mmdetection(state):
            load_mmdetection(detector, state, path, classes=True)
            return
    try:
        detector.load_state_dict(dict(state))
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise RunError(
            f"{path} holds no {detector.spec.name} for {len(detector.spec.categories)} classes ({first[0].strip()})."
        ) from error


def start_from(detector: Detector, path: Path) -> None:
    """Let a detector start from a file: a backbone that was trained on ImageNet, or a YOLO detector for any classes.

    Backbones of torchvision's family are read by :func:`medkd.detection.tv.backbones.load_backbone_weights`, whole
    detectors of mmdetection by :func:`medkd.detection.tv.mmdetection.load_mmdetection`. A YOLO
    detector takes from another one (``yolov8n.pt``) all weights of equal name and shape; ``yolov8_r18`` and
    ``yolov8_efficientnet_es`` take the weights that torchvision and timm have for their backbones.

    Raises:
        RunError: the file is missing, unreadable, or of another architecture.
    """
    if detector.family == "torchvision":
        from medkd.detection.tv.backbones import load_backbone_weights
        from medkd.detection.tv.mmdetection import is_mmdetection, load_mmdetection

        found = read_weights(path)
        if is_mmdetection(found):
            load_mmdetection(detector, found, path)
            return
        load_backbone_weights(detector, path, found)
        return
    given, _ = read_detector_weights(path)
    own = detector.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    backbone = _backbone_of(detector, given)
    if len(fitting) < _LEAST_SHARE * len(own) and not backbone:
        raise RunError(
            f"{path} fits {len(fitting)} of the {len(own)} tensors of {detector.spec.name} and not its backbone "
            "either; give weights of "
            "this architecture."
        )
    detector.load_state_dict(own | (backbone or fitting))
    _log.info("%s starts from %s: %d of %d tensors", detector.spec.name, path, len(backbone or fitting), len(own))


def _backbone_of(detector: Detector, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a detector's first layer, where that is a whole network of torchvision or timm, and the file has
    it.

    The wrapped network has other names, but the same tensors in the same order; the file's classifier is left out.
    """
    own = _tensors(detector.state_dict(), lambda name: name.startswith("model.0."))
    theirs = list(_tensors(given, lambda name: not name.startswith(_CLASSIFIERS)).values())[: len(own)]
    alike = [value.shape for value in own.values()] == [value.shape for value in theirs]
    return dict(zip(own, theirs, strict=True)) if alike and len(own) >= _LEAST_BACKBONE else {}


def _tensors(state: Mapping[str, Tensor], wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if wanted(name) and _counts(name)}


def _counts(name: str) -> bool:
    """Older files do not have the counters of batch normalisation."""
    return not name.endswith("num_batches_tracked")
