"""Several processes that train one network together (``torchrun``): who is who, and all that they say to each other.

What is trained is what one process would train: every process ("rank") reads its own part of each batch, runs student
and teacher on it, and gets the others' outputs (:meth:`Ranks.gathered`). So each sees the outputs of the whole batch,
takes the whole loss, of the labels and of any method, and sends it back through its own part. The student's gradients
are then summed over the ranks (:meth:`Ranks.share_gradients`), and every rank takes the same step. Where the loss is
the mean of what every sample alone would give (``by_sample``), nothing is gathered: each takes the loss of its own
samples, and the gradients are averaged.

``DistributedDataParallel`` does only the latter, which is another loss wherever a term is no mean over samples: Dice
over the batch, voxels or scans without labels, norms and relations over the batch, memories; that is most methods. It
would also stand between the network and those that capture its features, and sum once per backward pass, while
clipping, fp16's scaler and the measured gradients of single terms need the sum at one moment, after the backward pass
and before anything looks at it. One sum of everything does that in a few lines.

Without ``torchrun`` nothing of this happens, and :mod:`torch.distributed` is not asked for anything.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from medkd.core.device import pick_device
from medkd.core.errors import RunError, first_line, ran_out_of_memory
from medkd.core.processes import started_together, whole_variable

if TYPE_CHECKING:
    from medkd.training.job import TrainingTask
    from medkd.training.options import RunOptions
    from medkd.training.pulse import Pulse

_log = logging.getLogger(__name__)
_PATIENCE = timedelta(days=2)  # of one that waits while another works; who is dead is known from the pulse
_GO_ON = "give --continue to go on from the last checkpoint, with any number of processes that divides the batch"
_TOLD = (
    "Process {number} (of 0 to {last}) was told to end (SIGTERM), as torchrun does when another one ended or you stop "
    "it; look at what the others say, and {remedy}."
)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together; one that trains alone is the first of one.

    Attributes:
        number: of this process, from 0.
        count: of all.
        local: number on this machine.
        beside: of those on this machine.

    >>> list(Ranks(number=1, count=2).part(4)), Ranks().first
    ([2, 3], True)
    """

    number: int = 0
    count: int = 1
    local: int = 0
    beside: int = 1

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0

    def part(self, size: int) -> range:
        """The samples of a batch that are this rank's."""
        own = size // self.count
        return range(self.number * own, (self.number + 1) * own)

    def check_batch(self, size: int) -> None:
        """See that a batch can be divided.

        Raises:
            RunError: it cannot.
        """
        if size % self.count:
            raise RunError(
                f"Expected a batch that {self.count} processes can share evenly, found {size} samples; give "
                f"--batch-size {-(-size // self.count) * self.count}, or start another number of processes."
            )

    def gathered(self, part: Tensor) -> Tensor:
        """The whole of what every rank has a part of, along the first axis and in the order of the ranks; only this
        rank's part has a gradient.
        """
        if self.alone:
            return part
        import torch.distributed as dist

        own = _bytes(part)
        found = [torch.empty_like(own) for _ in range(self.count)]
        self._say(dist.all_gather, found, own)
        parts = [other.view(part.dtype).view(part.shape) for other in found]
        parts[self.number] = part
        return torch.cat(parts)

    def gathered_rows(self, part: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """The same of parts of different lengths.

        Args:
            part: of this rank.
            counts: rows of every rank, where all know them; else they are asked for, and the host waits.
        """
        if self.alone:
            return part
        if counts is None:
            counts = self.gathered(torch.tensor([len(part)], device=part.device)).tolist()
        most = max(counts)
        if most == 0:
            return part
        filled = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
        parts = self.gathered(filled).split(most)
        return torch.cat([other[:count] for other, count in zip(parts, counts, strict=True)])

    def gathered_lists(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors of all samples of the whole batch, of any length each, from those of this rank's samples."""
        if self.alone:
            return tuple(parts)
        own = torch.tensor([len(part) for part in parts], device=parts[0].device)
        lengths = self.gathered(own).tolist()
        size = len(parts)
        counts = [sum(lengths[rank * size : (rank + 1) * size]) for rank in range(self.count)]
        return self.gathered_rows(torch.cat(list(parts)), counts).split(lengths)

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the ranks, in place; equal on all, to the last bit."""
        if not self.alone:
            import torch.distributed as dist

            self._say(dist.all_reduce, numbers)
        return numbers

    def sum_all(self, tensors: Sequence[Tensor], *, mean: bool = False) -> None:
        """Sum every tensor over the ranks, in place and in one go, or take the mean."""
        if self.alone or not tensors:
            return
        flat = self.sum(torch.cat([tensor.flatten() for tensor in tensors]))
        if mean:
            flat /= self.count
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view(tensor.shape))

    def share_gradients(self, network: nn.Module, helpers: nn.Module | None, *, by_sample: bool) -> None:
        """Give all ranks the gradients of the whole batch.

        The network's are summed, since every rank has those of its own samples. The helpers', which see the outputs of
        the whole batch on every rank, are there already; their mean keeps differences of rounding from growing.

        Args:
            network: that is trained.
            helpers: trained modules of the method.
            by_sample: every rank took the loss of its own samples, so that all gradients are means.
        """
        if self.alone:
            return
        self.sum_all(_gradients(network), mean=by_sample)
        self.sum_all(_gradients(helpers), mean=True)

    def mean_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss terms of the whole batch, of those of every rank's own samples."""
        if self.alone or not terms:
            return terms
        values = torch.stack([term.float() for term in terms.values()])
        self.sum_all([values], mean=True)
        return dict(zip(terms, values.unbind(), strict=True))

    def equalise(self, modules: Iterable[nn.Module | None]) -> None:
        """Give all ranks the first one's weights and buffers."""
        if self.alone:
            return
        import torch.distributed as dist

        for module in modules:
            for value in [] if module is None else [*module.parameters(), *module.buffers()]:
                if value.numel():
                    flat = _bytes(value)
                    self._say(dist.broadcast, flat, 0)
                    value.data.copy_(flat.view(value.dtype).view(value.shape))

    def agree(self, content: str, device: torch.device, sentence: str) -> None:
        """Wait for all, and see that they stand at the same place.

        Raises:
            RunError: with this sentence, where the ranks' contents differ.
        """
        if self.alone:
            return
        digest = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=7).digest(), "big")
        every = self.gathered(torch.tensor([digest], device=device))
        if bool((every != every[0]).any()):
            raise RunError(sentence)

    def wait(self, device: torch.device) -> None:
        """Wait until all are here."""
        if not self.alone:
            self.sum(torch.zeros(1, device=device)).cpu()

    @contextmanager
    def own_chance(self, seed: int, step: int, device: torch.device) -> Iterator[None]:
        """A block in which random numbers are this rank's own (dropout of other samples is other dropout); afterwards
        they are again the same for all.
        """
        if self.alone:
            yield
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.number]).generate_state(1)[0]))
            yield

    def _say(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Send something to the others; one that is gone is a sentence. That memory ran out says whoever trains."""
        try:
            call(*arguments)
        except RuntimeError as error:  # of gloo and NCCL, and of what cannot be sent
            if ran_out_of_memory(error):
                raise
            raise RunError(
                f"The {self.count} processes that train together lost each other, since one of them ended or the "
                f"network failed ({first_line(error)}); look at what the others say, and {_GO_ON}."
            ) from error


def current() -> Ranks:
    """This process among those that ``torchrun``, or whatever sets the same variables, started."""
    count = started_together()
    if count == 1:
        return Ranks()
    number = whole_variable("RANK")
    local, beside = whole_variable("LOCAL_RANK", number), whole_variable("LOCAL_WORLD_SIZE", count)
    return Ranks(number=number, count=count, local=local, beside=beside)


def own_device(asked: str | None) -> torch.device:
    """The device of this process: with several, on CUDA each has a GPU of its own.

    Raises:
        RunError: it is not there, or all would take the same.
    """
    device, ranks = pick_device(asked), current()
    if ranks.alone or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise RunError(f"Processes train together on cuda and cpu, found --device {asked}; start one process.")
    if device.index is not None:
        raise RunError(
            f"Expected --device cuda, since each of the {ranks.count} processes takes the GPU of its own number, found "
            f"{asked}; leave the number out."
        )
    if ranks.local >= torch.cuda.device_count():
        raise RunError(
            f"{ranks.beside} processes were started on this machine, but torch sees {torch.cuda.device_count()} GPUs; "
            "start one per GPU, or give --device cpu."
        )
    return torch.device("cuda", ranks.local)


def refuse_several(command: str) -> None:
    """See that this is the only process.

    Raises:
        RunError: there are others.
    """
    count = current().count
    if count > 1:
        raise RunError(f"{command} works in one process, but {count} were started; start it without torchrun.")


@contextmanager
def together(task: TrainingTask[Any, Any, Any], options: RunOptions) -> Iterator[None]:
    """A training of this process, with the others where there are any: they are connected before it, and one that ends
    in it ends them all.

    Args:
        task: what is trained.
        options: of the training.

    Raises:
        RunError: it is trained by one process only, or the others cannot be reached.
    """
    ranks = current()
    if ranks.alone:
        yield
        return
    if not task.in_several_processes:
        raise RunError(
            f"A network for {task.name} is trained by one process, but {ranks.count} were started; start the command "
            "without torchrun."
        )
    from medkd.training.pulse import told_to_end

    pulse = _connected(ranks, own_device(options.device))
    pulse.watching = True
    try:
        with told_to_end(_TOLD.format(number=ranks.number, last=ranks.count - 1, remedy=_GO_ON)):
            yield
    except BaseException:
        pulse.fail()
        raise
    finally:
        pulse.watching = False


@contextmanager
def one_after_another(asked: str | None) -> Iterator[None]:
    """A block that the first process is through before the others begin it: what it makes, they find."""
    ranks, device = current(), own_device(asked)
    if not ranks.first:
        ranks.wait(device)
    yield
    if ranks.first:
        ranks.wait(device)


_pulse: Pulse | None = None


def _connected(ranks: Ranks, device: torch.device) -> Pulse:
    """Connect this process with the others, once in its life."""
    global _pulse
    if _pulse is not None:
        return _pulse
    import torch.distributed as dist

    from medkd.training.pulse import Pulse, message_of

    own: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.first:
        _log.info("waiting for %d processes", ranks.count)
    try:
        dist.init_process_group("nccl" if own else "gloo", timeout=_PATIENCE, **own)
        _pulse = Pulse.begin(ranks.number, ranks.count, lambda death: message_of(death, ranks.count, _GO_ON))
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(
            f"The {ranks.count} processes cannot reach each other ({first_line(error)}); start them by torchrun, with "
            "--rdzv-endpoint HOST:PORT where they are on several machines."
        ) from error
    atexit.register(_pulse.leave)
    if ranks.first:
        _log.info("%d processes train together", ranks.count)
    else:
        logging.getLogger("medkd").setLevel(logging.ERROR)  # what the first one says suffices
    return _pulse


def _gradients(module: nn.Module | None) -> list[Tensor]:
    """Those that the backward pass left; the same parameters on every rank, since all have the same loss."""
    found = []
    for parameter in [] if module is None else module.parameters():
        if parameter.grad is not None:
            found.append(parameter.grad)
    return found


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, which can be sent whatever its numbers are."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
