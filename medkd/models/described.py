"""Networks that were trained elsewhere: PyTorch state dicts with a small description beside them.

The folder holds a ``teacher.json``, see :class:`~medkd.models.description.ExternalModel`, and the weights. Nothing in
it is executed: the network is built by name from medkd's own registry or from a list of MONAI's classes, and the
weights are read as tensors and plain values only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import DataError, RunError
from medkd.core.files import lies_within, read_json
from medkd.core.run import NetworkSpec
from medkd.core.serial import load
from medkd.models.base import Checkpoint
from medkd.models.description import FILE, FOLD, ExternalModel, checked, model_of
from medkd.models.monai_networks import CLASSES, MonaiNetwork
from medkd.models.nnunet.checkpoint import ALLOWED
from medkd.models.segmentation import ImportedFolder, TrainedModel
from medkd.models.stated import named_cases
from medkd.models.weights import freeze, load_weights
from medkd.networks.base import SegmentationNetwork

_WRAPPERS = ("state_dict", "model_state_dict", "network", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def describes_detector(folder: Path) -> bool:
    """Whether the ``teacher.json`` in a folder lists ``categories``, as that of a detector does."""
    return _lists(folder, "categories")


def _lists(folder: Path, key: str) -> bool:
    try:
        stated = read_json(folder / FILE)
    except DataError:
        return False  # opening it says what is wrong
    return isinstance(stated, Mapping) and key in stated


class DescribedFolder(ImportedFolder):
    """A folder with a ``teacher.json`` that describes a segmentation network."""

    kind = "described"
    title = f"a folder with weights and a {FILE}"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there is a ``teacher.json`` that names a ``network``; without one it may be incomplete, but neither
        describe a detector by its ``categories``, nor lie where it only states what a model of nnU-Net has seen.
        """
        if not (path / FILE).is_file() or describes_detector(path):
            return False
        return _lists(path, "network") or not any(path.glob("fold_*/checkpoint_*.pth"))

    def read(self) -> ExternalModel:
        """The description, checked.

        Raises:
            DataError: the file is missing, or a key is missing, unknown or of the wrong form.
            RunError: the network is none that medkd builds.
            PlanError: the numbers of channels or axes disagree.
        """
        return checked(self._read(), self.path)

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """The one that was given."""
        return (FOLD,)

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """The cases that the description lists; they must be named as the data set names its own."""
        train = self.read().train
        if train is None:
            raise RunError(self._unknown())
        return named_cases(train, cases, self.path / FILE)

    def weights_file(self, fold: str) -> Path:
        """The file that the description names."""
        return self.path / self.read().weights

    def _read(self) -> ExternalModel:
        return load(ExternalModel, self.path / FILE)

    def _unknown(self) -> str:
        return f"{self.path / FILE} does not say on which cases the weights were trained; list them under 'train'."

    def _describe(self) -> TrainedModel:
        return model_of(self.read(), self.path)

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedModel:
        found = self.read()
        model = model_of(found, self.path)
        if "\0" in found.weights:
            raise RunError(f"{self.path / FILE}: 'weights' holds a null character, which no name may; correct it.")
        file = self.path / found.weights
        if not lies_within(file, self.path):
            raise RunError(
                f"{self.path / FILE}: the weights '{found.weights}' lie outside of the folder; put them beside the "
                "description."
            )
        if not file.exists():
            raise RunError(
                f"There are no weights {file}; put them there, or name their file under 'weights' in "
                f"{self.path / FILE}."
            )
        spec = NetworkSpec(
            name=found.network,
            in_channels=len(found.channels),
            num_outputs=model.labels.num_outputs,
            patch_size=found.patch_size,
        )
        return replace(model, networks=[_network(spec, found, file)])


def _network(spec: NetworkSpec, found: ExternalModel, file: Path) -> SegmentationNetwork:
    content = load_checkpoint(file, allowed=ALLOWED)
    if found.network in CLASSES:
        return _monai_network(spec, found.arguments, content, file)
    weights = {f"net.{key}": value for key, value in _weights(content).items()}
    if not weights:
        raise RunError(f"{file} holds no tensors by name; expected the state dict of MONAI's {found.network}.")
    if found.network.startswith("mednext"):  # the heads of deep supervision, which prediction does not use
        weights = {key: value for key, value in weights.items() if not key.startswith("net.out_blocks.")}
    return load_weights(spec, weights, str(file))


def _monai_network(
    spec: NetworkSpec, arguments: Mapping[str, Any], content: Mapping[str, Any], file: Path
) -> SegmentationNetwork:
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: the global generator stays
        network = MonaiNetwork(spec, spec.name, arguments)
    try:
        network.net.load_state_dict(_weights(content, frozenset(network.net.state_dict())))
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise RunError(f"{file} does not fit MONAI's {spec.name} with {dict(arguments)} ({detail}).") from error
    return freeze(network)


def _weights(content: Mapping[str, Any], expected: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefixes that wrappers put before the ``expected`` names."""
    tensors = _tensors_in(content, expected)
    for prefix in _PREFIXES:
        if not expected.isdisjoint(tensors):
            break
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _tensors_in(content: Mapping[str, Any], expected: frozenset[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, out of the entries that wrap them."""
    if expected.isdisjoint(content):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return _tensors_in(content[key], expected)
    tensors = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[str(key)] = value
    return tensors
