"""Networks that were trained elsewhere: PyTorch state dicts and MONAI bundles with a small description beside them.

The folder of such a model holds ``teacher.json``, see :class:`ExternalModel`, and the weights. Nothing in the folder is executed: the
network is built by name from medkd's own registry, and the weights are read as tensors and plain values only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import medkd.networks  # noqa: F401  (enters all networks into the registry)
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import PlanError, RunError
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan, Resampling
from medkd.core.run import NetworkSpec
from medkd.core.serial import load
from medkd.inference.model import TrainedModel, load_weights
from medkd.inference.nnunet.model import ALLOWED
from medkd.networks.base import NETWORKS
from medkd.preprocessing.topology import PRESETS, blocks, features_per_stage, topology

FILE = "teacher.json"
FOLD = "given"  # the only fold of a model that nobody cross-validated
NAMES = ("segresnet", "swin_unetr", "mednext_s", "mednext_b", "mednext_m", "mednext_l")
_INTERPOLATIONS = {"linear": Resampling(1, 1, 0, 0, 1, 1, force_separate_z=False), "spline": Resampling()}
_WRAPPERS = ("state_dict", "model_state_dict", "network", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


@dataclass(frozen=True)
class ExternalModel:
    """``teacher.json``: what the weights themselves do not tell. All axes are those of the network.

    Attributes:
        network: one of :data:`NAMES`, built as MONAI builds it.
        channels: name of each input channel.
        labels: name → value, or values of a region, as in ``dataset.json``.
        spacing: voxel size in mm that the network was trained on.
        normalization: scheme per channel, see :func:`medkd.preprocessing.normalisation.normalise`; for example ``window(-175, 250)``.
        patch_size: voxels per axis.
        train: the case ids that the weights were trained on; an empty list states that none of the data set's cases was among them.
        weights: the file, beside the description; MONAI bundles keep theirs in ``models/model.pt``.
        transpose: axis order that turns medkd's ``(z, y, x)`` into the network's; MONAI's ``(x, y, z)`` is ``[2, 1, 0]``.
        intensities: foreground statistics per channel; needed by ``ct``.
        use_mask_for_norm: per channel, z-score inside the non-zero mask; empty for none.
        crop: see :class:`medkd.core.plan.Configuration`.
        interpolation: ``linear`` (images and logits linear, labels nearest) or ``spline`` (nnU-Net's).
        mirror_axes: axes that training mirrored and prediction may mirror.
        regions_class_order: for regions, as in ``dataset.json``.
        batch_size: that a planned student is trained with.
    """

    network: str
    channels: tuple[str, ...]
    labels: Mapping[str, Any]
    spacing: tuple[float, ...]
    normalization: tuple[str, ...]
    patch_size: tuple[int, ...]
    train: tuple[str, ...]
    weights: str = "models/model.pt"
    transpose: tuple[int, ...] = (0, 1, 2)
    intensities: tuple[IntensityStatistics, ...] = ()
    use_mask_for_norm: tuple[bool, ...] = ()
    crop: str = "nonzero"
    interpolation: str = "linear"
    mirror_axes: tuple[int, ...] = ()
    regions_class_order: tuple[int, ...] = ()
    batch_size: int = 2
    schema: int = 1


def is_external_folder(path: Path) -> bool:
    """Whether a folder holds a ``teacher.json``."""
    return (path / FILE).is_file()


def read_external(path: Path) -> ExternalModel:
    """Read and check the description in a folder.

    Raises:
        DataError: the file is missing, or a key is missing, unknown or of the wrong form.
        RunError: the network is none of :data:`NAMES`.
        PlanError: the numbers of channels or axes disagree.
    """
    found = load(ExternalModel, path / FILE)
    if found.network not in NAMES:
        raise RunError(f"{path / FILE}: the network '{found.network}' is not one of {', '.join(NAMES)}.")
    channels, rank = len(found.channels), len(found.patch_size)
    fits = {
        "normalization": len(found.normalization) == channels,
        "intensities": len(found.intensities) in ((channels,) if "ct" in found.normalization else (0, channels)),
        "use_mask_for_norm": len(found.use_mask_for_norm) in (0, channels),
        "spacing": len(found.spacing) == rank and rank in (2, 3) and min(found.spacing) > 0,
        "patch_size": all(size > 0 and size % NETWORKS[found.network].divisor == 0 for size in found.patch_size),
        "transpose": sorted(found.transpose) == [0, 1, 2],
        "interpolation": found.interpolation in _INTERPOLATIONS,
        "mirror_axes": set(found.mirror_axes) <= set(range(rank)),
    }
    wrong = [key for key, fit in fits.items() if not fit]
    if wrong:
        raise PlanError(
            f"{path / FILE}: {', '.join(wrong)} does not fit {channels} channels, {rank} axes and the network {found.network}; "
            "see docs/nnunet-teacher.md."
        )
    return found


def describe_external(path: Path) -> TrainedModel:
    """What the description says, without the network.

    Raises:
        MedkdError: see :func:`read_external`.
    """
    found = read_external(path)
    labels = LabelSpec.from_json(found.labels, list(found.regions_class_order), str(path / FILE))
    configuration = _configuration(found, path)
    plan = Plan(path.name, found.transpose, found.intensities, {configuration.name: configuration}, f"teacher:{found.network}")
    return TrainedModel((), plan, configuration, labels, found.patch_size, found.mirror_axes, (FOLD,))


def load_external(path: Path) -> TrainedModel:
    """The network with its weights, on the CPU and in evaluation mode, and all that is needed to predict.

    Raises:
        RunError: the weights are missing, damaged, hold more than data, or belong to another network.
        MedkdError: see :func:`read_external`.
    """
    found, model = read_external(path), describe_external(path)
    file = path / found.weights
    if not file.resolve().is_relative_to(path.resolve()):
        raise RunError(f"{path / FILE}: the weights '{found.weights}' lie outside of the folder; put them beside the description.")
    if not file.exists():
        raise RunError(f"There are no weights {file}; put them there, or name their file under 'weights' in {path / FILE}.")
    spec = NetworkSpec(found.network, len(found.channels), model.labels.num_outputs, found.patch_size)
    weights = _weights(load_checkpoint(file, allowed=ALLOWED))
    if not weights:
        raise RunError(f"{file} holds no tensors by name; expected the state dict of MONAI's {found.network}.")
    if found.network.startswith("mednext"):  # the heads of deep supervision, which prediction does not use
        weights = {key: value for key, value in weights.items() if not key.startswith("net.out_blocks.")}
    return replace(model, networks=[load_weights(spec, weights, str(file))])


def _configuration(found: ExternalModel, path: Path) -> Configuration:
    rank = len(found.patch_size)
    shape = topology(found.spacing, found.patch_size)
    if shape.patch_size != found.patch_size:
        raise PlanError(
            f"{path / FILE}: patch_size {found.patch_size} must be a multiple of {shape.divisor}, so that a planned student fits it."
        )
    stages = len(shape.strides)
    architecture = Architecture(
        found.patch_size,
        found.batch_size,
        features_per_stage(stages, rank),
        shape.kernels,
        shape.strides,
        *blocks(PRESETS["plain_unet"], stages),
    )
    return Configuration(
        "2d" if rank == 2 else "3d_fullres",
        found.spacing,
        found.patch_size,
        found.normalization,
        found.use_mask_for_norm or (False,) * len(found.channels),
        False,
        {"plain_unet": architecture},
        _INTERPOLATIONS[found.interpolation],
        found.crop,
    )


def _weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, with medkd's prefix in the place of those that wrappers put before the names."""
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _weights(content[key])
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {f"net.{key}": value for key, value in tensors.items()}
