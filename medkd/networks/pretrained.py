"""First weights of segmentation networks whose encoder is one of timm or torchvision, or of a whole network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.networks.base import SegmentationNetwork

_WRAPPERS = ("state_dict", "model", "network")
_log = logging.getLogger(__name__)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pt``, ``.pth``, ``.bin`` or ``.safetensors``, by name; nothing in it is executed.

    A dictionary around the weights (``state_dict``, ``model``, ``network``) is opened.

    Raises:
        RunError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    if not file.exists():
        raise RunError(f"There is no weight file {file}; give an existing one, or train from random weights.")
    content: Any
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content = load_file(file)
        except SafetensorError as error:
            raise RunError(f"{file} is damaged or not a safetensors file ({error}); fetch it again.") from error
    else:
        content = load_checkpoint(file)
    for wrapper in _WRAPPERS:
        content = content.get(wrapper, content) if isinstance(content.get(wrapper), Mapping) else content
    return {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}


def start_network(network: SegmentationNetwork, file: Path) -> int:
    """Let a network start from a file: of its encoder's library, or of the whole network.

    The first convolution is brought to the network's number of input channels as timm does it; a classifier is left
    out.

    Returns:
        How many tensors were loaded.

    Raises:
        RunError: the file is unreadable, or holds neither.
    """
    given = read_weights(file)
    own = network.state_dict()
    if all(name in given and given[name].shape == value.shape for name, value in own.items()):
        network.load_state_dict({name: given[name] for name in own})
        return len(own)
    if not network.encoder_path:
        raise RunError(
            f"{file} does not hold all of {network.spec.name}, which has no encoder of another library either; give "
            "weights of this network."
        )
    encoder = network.get_submodule(network.encoder_path)
    count = _start_encoder(encoder, given, f"{file} does not fit the encoder of {network.spec.name}")
    _log.info("%s: %d tensors of its encoder from %s", network.spec.name, count, file)
    return count


def _start_encoder(encoder: nn.Module, given: Mapping[str, Tensor], complaint: str) -> int:
    state = encoder.state_dict()
    wanted = [name for name in state if not name.endswith("num_batches_tracked")]
    adapted = {name: _with_channels(given.get(name), state[name]) for name in wanted}
    wrong = [name for name, value in adapted.items() if value is None or value.shape != state[name].shape]
    if wrong:
        raise RunError(
            f"{complaint}: {len(wrong)} of {len(wanted)} tensors are missing or of another shape, the first is "
            f"{wrong[0]}; give a file of this architecture from the library that medkd takes it from."
        )
    encoder.load_state_dict({**state, **adapted})
    return len(wanted)


def _with_channels(given: Tensor | None, own: Tensor) -> Tensor | None:
    """A first convolution for another number of input channels."""
    if given is None or given.shape == own.shape or given.ndim != 4 or given.shape[1] != 3:
        return given
    if given.shape[0] != own.shape[0] or given.shape[2:] != own.shape[2:]:
        return given
    from timm.models import adapt_input_conv

    return adapt_input_conv(own.shape[1], given)  # type: ignore[no-any-return]
