"""Training as :class:`~medkd.core.speed.Speed` says; weights and checkpoints stay what they are without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.run import RunDescription
from medkd.core.speed import Speed

BACKEND = "inductor"
_MOST_GRAPHS = 1000  # of one function
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def check_speed(speed: Speed, device: torch.device, processes: int = 1) -> None:
    """See that what is asked for does something.

    Raises:
        RunError: it is for CUDA, and the device is another; or for one process, and there are several.
    """
    if speed.compile and processes > 1:
        raise RunError(f"--compile is for a training in one process, found {processes}; leave it out.")
    if device.type == "cuda":
        return
    for option, wanted in (("--tf32", speed.tf32 is not None), ("--cudnn-benchmark", speed.cudnn_benchmark)):
        if wanted:
            raise RunError(f"{option} is for CUDA, but the training is on {device.type}; leave it out.")


def check_compiled_taps(speed: Speed, method: str | None, taps: Iterable[str]) -> None:
    """See that nobody wants to look into a network that is compiled.

    Raises:
        RunError: the method reads features of the student.
    """
    found = next(iter(taps), None)
    if speed.compile and found is not None:
        raise RunError(
            f"--compile leaves no features of the student to read, but {method} reads its tap '{found}'; leave it out, "
            "or choose a method that needs outputs only (medkd_list methods)."
        )


def speed_lines(run: RunDescription) -> list[str]:
    """The switches that a training has, for people; none where it has none."""
    words = run.speed.options()
    return [f"speed      {' '.join(words)}"] if words else []


def lay_out(networks: Iterable[nn.Module], speed: Speed) -> None:
    """Put the weights of convolutions in the order that the switches say, in place; shapes and values stay."""
    if not speed.channels_last:
        return
    for network in networks:
        for parameter in network.parameters():
            parameter.data = laid_out(parameter.data, speed)


def laid_out(tensor: Tensor, speed: Speed) -> Tensor:
    """An image, or the weight of a convolution, in the order that the switches say."""
    order = _LAST.get(tensor.ndim) if speed.channels_last else None
    return tensor if order is None else tensor.contiguous(memory_format=order)


def in_plain_order(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state as it is without the switches: tensors that lie in another order are copied."""
    if not any(map(_differs, state.values())):
        return state
    found: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            found[name] = value.contiguous()
        else:
            found[name] = in_plain_order(value) if isinstance(value, Mapping) else value
    return found


def _differs(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_differs, value.values()))
    return isinstance(value, Tensor) and not value.is_contiguous()


def compile_in_place(network: nn.Module) -> None:
    """Let a network's calls go through ``torch.compile``; its modules and the names of its weights stay what they
    are.
    """
    network.compile(backend=BACKEND)


@contextmanager
def switched(speed: Speed) -> Iterator[None]:
    """The switches of the process, as they are wanted within this block and as they were after it.

    Raises:
        RunError: the network cannot be compiled.
    """
    with ExitStack() as stack:
        stack.enter_context(_cuda_switches(speed))
        if speed.compile:
            stack.enter_context(_compiling())
        yield


@contextmanager
def _cuda_switches(speed: Speed) -> Iterator[None]:
    places: list[tuple[Any, str, bool]] = []
    if speed.tf32 is not None:
        places += [(torch.backends.cudnn, "allow_tf32", speed.tf32)]
        places += [(torch.backends.cuda.matmul, "allow_tf32", speed.tf32)]
    if speed.cudnn_benchmark:
        places += [(torch.backends.cudnn, "benchmark", True)]
    before = [getattr(place, name) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


@contextmanager
def _compiling() -> Iterator[None]:
    """The graph of a step can be walked twice, as single terms' gradients need it; and as many networks of a kind are
    compiled as there are, since torch by itself goes on without a word after a few.
    """
    import torch._dynamo.config as tracing
    import torch._functorch.config as gradients
    from torch._dynamo.exc import TorchDynamoException

    try:
        with gradients.patch(donated_buffer=False), tracing.patch(cache_size_limit=_MOST_GRAPHS):
            yield
    except TorchDynamoException as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"torch.compile failed ({reason}); leave out --compile, or see that its compiler is installed."
        ) from error
