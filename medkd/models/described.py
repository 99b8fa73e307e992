"""Networks that were trained elsewhere: PyTorch state dicts with a small description beside them, and MONAI bundles.

The folder of such a model holds ``teacher.json``, see :class:`ExternalModel`, and the weights; a MONAI bundle describes
itself, and a ``teacher.json`` beside it overrides single keys. Nothing in the folder is executed: the network is built
by name from medkd's own registry or from a list of MONAI's classes, and the weights are read as tensors and plain
values only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import medkd.networks  # noqa: F401  (enters all networks into the registry)
from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import PlanError, RunError
from medkd.core.files import read_json
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan, Resampling
from medkd.core.run import NetworkSpec
from medkd.core.serial import from_data, load
from medkd.models.bundle import is_bundle_folder, read_bundle
from medkd.models.monai_networks import CLASSES, MonaiNetwork, check_arguments, registered
from medkd.models.nnunet.model import ALLOWED
from medkd.models.trained import TrainedModel, freeze, load_weights
from medkd.networks.base import NETWORKS, SegmentationNetwork
from medkd.preprocessing.topology import PRESETS, blocks, features_per_stage, topology

FILE = "teacher.json"
FOLD = "given"  # the only fold of a model that nobody cross-validated
NAMES = ("segresnet", "swin_unetr", "mednext_s", "mednext_b", "mednext_m", "mednext_l")
_INTERPOLATIONS = {
    "linear": Resampling(
        image_order=1,
        image_order_z=1,
        label_order=0,
        label_order_z=0,
        logits_order=1,
        logits_order_z=1,
        force_separate_z=False,
    ),
    "spline": Resampling(),
}
_WRAPPERS = ("state_dict", "model_state_dict", "network", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


@dataclass(frozen=True)
class ExternalModel:
    """``teacher.json``: what the weights themselves do not tell. All axes are those of the network.

    Attributes:
        network: one of :data:`NAMES`, built as MONAI builds it, or one of :data:`medkd.models.monai_networks.CLASSES`.
        channels: name of each input channel.
        labels: name → value, or values of a region, as in ``dataset.json``.
        spacing: voxel size in mm that the network was trained on.
        normalization: scheme per channel, see :func:`medkd.preprocessing.normalisation.normalise`; for example
            ``window(-175, 250)``.
        patch_size: voxels per axis.
        train: the case ids that the weights were trained on; an empty list states that none of the data set's cases was
            among them, None (of a bundle, which cannot say it) that nobody knows.
        weights: the file, beside the description; MONAI bundles keep theirs in ``models/model.pt``.
        transpose: axis order that turns medkd's ``(z, y, x)`` into the network's; MONAI's ``(x, y, z)`` is ``[2, 1,
            0]``.
        intensities: foreground statistics per channel; needed by ``ct``.
        use_mask_for_norm: per channel, z-score inside the non-zero mask; empty for none.
        crop: see :class:`medkd.core.plan.Configuration`.
        interpolation: ``linear`` (images and logits linear, labels nearest) or ``spline`` (nnU-Net's).
        mirror_axes: axes that training mirrored and prediction may mirror.
        regions_class_order: for regions, as in ``dataset.json``.
        batch_size: that a planned student is trained with.
        arguments: for MONAI's classes, the keyword arguments of the constructor besides channels and dimensions.
    """

    network: str
    channels: tuple[str, ...]
    labels: Mapping[str, Any]
    spacing: tuple[float, ...]
    normalization: tuple[str, ...]
    patch_size: tuple[int, ...]
    train: tuple[str, ...] | None
    weights: str = "models/model.pt"
    transpose: tuple[int, ...] = (0, 1, 2)
    intensities: tuple[IntensityStatistics, ...] = ()
    use_mask_for_norm: tuple[bool, ...] = ()
    crop: str = "nonzero"
    interpolation: str = "linear"
    mirror_axes: tuple[int, ...] = ()
    regions_class_order: tuple[int, ...] = ()
    batch_size: int = 2
    arguments: Mapping[str, Any] = field(default_factory=dict)
    schema: int = 1


def is_external_folder(path: Path) -> bool:
    """Whether a folder holds a ``teacher.json``, or is a MONAI bundle."""
    return (path / FILE).is_file() or is_bundle_folder(path)


def read_external(path: Path) -> ExternalModel:
    """Read and check the description in a folder.

    Raises:
        DataError: the file is missing, or a key is missing, unknown or of the wrong form.
        RunError: the network is none that medkd builds, or a bundle holds what medkd does not repeat.
        PlanError: the numbers of channels or axes disagree.
    """
    found = _named(_read(path), path)
    divisor = NETWORKS[found.network].divisor if found.network in NAMES else 1
    channels, rank = len(found.channels), len(found.patch_size)
    fits = {
        "normalization": len(found.normalization) == channels,
        "intensities": len(found.intensities) in ((channels,) if "ct" in found.normalization else (0, channels)),
        "use_mask_for_norm": len(found.use_mask_for_norm) in (0, channels),
        "spacing": len(found.spacing) == rank and rank in (2, 3) and min(found.spacing) > 0,
        "patch_size": all(size > 0 and size % divisor == 0 for size in found.patch_size),
        "transpose": sorted(found.transpose) == [0, 1, 2],
        "interpolation": found.interpolation in _INTERPOLATIONS,
        "mirror_axes": set(found.mirror_axes) <= set(range(rank)),
    }
    wrong = [key for key, fit in fits.items() if not fit]
    if wrong:
        raise PlanError(
            f"{path / FILE}: {', '.join(wrong)} does not fit {channels} channels, {rank} axes and the network "
            f"{found.network}; "
            "see docs/nnunet-teacher.md."
        )
    return found


def seen_by_external(path: Path) -> frozenset[str]:
    """The cases that the weights were trained on.

    Raises:
        RunError: nobody has said it.
        MedkdError: see :func:`read_external`.
    """
    train = read_external(path).train
    if train is None:
        raise RunError(
            f"{path} is a MONAI bundle, which does not say on which cases it was trained; list those of this data set "
            f"in {path / FILE}, "
            'for example {"train": ["case_01"]}, or {"train": []} where there are none.'
        )
    return frozenset(train)


def describe_external(path: Path) -> TrainedModel:
    """What the description says, without the network.

    Raises:
        RunError: regions cover each other in the order in which they are painted.
        MedkdError: see :func:`read_external`.
    """
    found = read_external(path)
    labels = LabelSpec.from_json(found.labels, list(found.regions_class_order), str(path / FILE))
    configuration = _configuration(found, path)
    plan = Plan(
        dataset=path.name,
        transpose=found.transpose,
        intensities=found.intensities,
        configurations={configuration.name: configuration},
        origin=f"teacher:{found.network}",
    )
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
        raise RunError(
            f"{path / FILE}: the weights '{found.weights}' lie outside of the folder; put them beside the description."
        )
    if not file.exists():
        raise RunError(
            f"There are no weights {file}; put them there, or name their file under 'weights' in {path / FILE}."
        )
    spec = NetworkSpec(
        name=found.network,
        in_channels=len(found.channels),
        num_outputs=model.labels.num_outputs,
        patch_size=found.patch_size,
    )
    content = load_checkpoint(file, allowed=ALLOWED)
    if found.network in CLASSES:
        return replace(model, networks=[_monai_network(spec, found.arguments, content, file)])
    weights = {f"net.{key}": value for key, value in _weights(content).items()}
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
            f"{path / FILE}: patch_size {found.patch_size} must be a multiple of {shape.divisor}, so that a planned "
            "student fits it."
        )
    stages = len(shape.strides)
    encoder, decoder = blocks(PRESETS["plain_unet"], stages)
    architecture = Architecture(
        patch_size=found.patch_size,
        batch_size=found.batch_size,
        features_per_stage=features_per_stage(stages, rank),
        kernel_sizes=shape.kernels,
        strides=shape.strides,
        blocks_encoder=encoder,
        blocks_decoder=decoder,
    )
    return Configuration(
        name="2d" if rank == 2 else "3d_fullres",
        spacing=found.spacing,
        median_shape=found.patch_size,
        normalization=found.normalization,
        use_mask_for_norm=found.use_mask_for_norm or (False,) * len(found.channels),
        batch_dice=False,
        architectures={"plain_unet": architecture},
        resampling=_INTERPOLATIONS[found.interpolation],
        crop=found.crop,
    )


def _read(path: Path) -> ExternalModel:
    if not is_bundle_folder(path):
        return load(ExternalModel, path / FILE)
    stated = read_json(path / FILE) if (path / FILE).is_file() else {}
    if not isinstance(stated, dict):
        raise RunError(f"{path / FILE}: expected an object, found {type(stated).__name__}.")
    return from_data(ExternalModel, {"train": None, **read_bundle(path, stated)}, str(path))


def _named(found: ExternalModel, path: Path) -> ExternalModel:
    """The description with medkd's own name of the network where it has one, after a look at what may be built."""
    if found.network in NAMES and not found.arguments:
        return found
    if found.network in NAMES or found.network not in CLASSES:
        known = f"{', '.join(NAMES)} (which take no arguments), or MONAI's {', '.join(CLASSES)}"
        raise RunError(f"{path}: the network '{found.network}' is not one of {known}.")
    check_arguments(found.network, found.arguments, str(path))
    name = registered(found.network, found.arguments, len(found.patch_size))
    return found if name is None else replace(found, network=name, arguments={})


def _monai_network(
    spec: NetworkSpec, arguments: Mapping[str, Any], content: Mapping[str, Any], file: Path
) -> SegmentationNetwork:
    with torch.random.fork_rng(
        devices=[]
    ):  # the initial weights are overwritten: they must not move the global generator
        network = MonaiNetwork(spec, spec.name, arguments)
    try:
        network.net.load_state_dict(_weights(content, frozenset(network.net.state_dict())))
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise RunError(f"{file} does not fit MONAI's {spec.name} with {dict(arguments)} ({detail}).") from error
    return freeze(network)


def _weights(content: Mapping[str, Any], expected: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefixes that wrappers put before the ``expected`` names."""
    if not expected & set(content):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return _weights(content[key], expected)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if tensors and not expected & set(tensors) and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
