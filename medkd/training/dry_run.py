"""What a training would do and need, known before it starts: networks, pairs of taps, memory, the guard against
leaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.live_memory import LivePeak
from medkd.core.run import FINAL, LATEST, RunDescription
from medkd.distillation import Distiller, Method
from medkd.distillation.capture import Capture
from medkd.distillation.prompts.first_stage import PromptMethod
from medkd.networks import SegmentationNetwork
from medkd.networks.complexity import count_macs, count_parameters
from medkd.training.job import protocol_lines
from medkd.training.speed import speed_lines
from medkd.training.tap_pairs import TapPair, pair_table, tap_pairs

T = TypeVar("T")
_UNKNOWN = (NotImplementedError, RuntimeError)  # what code raises that wants to see values where there are only shapes


@dataclass(frozen=True)
class NetworkCost:
    """A network at the training patch: its parameters, and multiply-adds of one patch (None where they cannot be
    counted).
    """

    name: str
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class StepMemory:
    """Estimated bytes of one training step.

    Attributes:
        weights: parameters and buffers of student, method and teacher.
        gradients: of everything that is trained.
        optimizer: its momentum.
        activations: most bytes of feature maps alive at once, the teacher's and the captured ones included.
        method: of these, what loss and gradient of the method take at most; the method announces it.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    method: int

    @property
    def total(self) -> int:
        """All together; the method's share is part of the activations."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class LeakGuard:
    """What the guard found: the fold of the teacher that may teach, how many cases it has seen (None where nobody can
    say), and how many judge the student.
    """

    teacher: str
    fold: str
    seen: int | None
    judged: int

    def __str__(self) -> str:
        """The verdict in one sentence."""
        if self.seen is None:
            return (
                f"fold {self.fold} of {self.teacher} teaches; nobody can say what it has seen, but no label judges the "
                f"student: on {self.judged} scans its agreement with the teacher is measured"
            )
        judged = (
            f"none of the {self.judged} on which the student is judged"
            if self.judged
            else "and a student of all cases is not judged"
        )
        return f"fold {self.fold} of {self.teacher} teaches; it has seen {self.seen} cases, {judged}"


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a training would do.

    Attributes:
        run: as ``run.json`` would say.
        folder: the fold folder.
        state: ``new``, ``continues`` or ``finished``.
        student: the network to be trained.
        teacher: the teacher, if any.
        helpers: trainable parameters of the method, which the exported student does not have.
        pairs: the taps that are read.
        memory: of a step, estimated; None where the teacher does not run on shapes alone.
        guard: the guard against leaks, for a distillation.
    """

    run: RunDescription
    folder: Path
    state: str
    student: NetworkCost
    teacher: NetworkCost | None
    helpers: int
    pairs: tuple[TapPair, ...]
    memory: StepMemory | None
    guard: LeakGuard | None

    def lines(self) -> list[str]:
        """For people to read."""
        budget, spec = self.run.budget, self.run.network
        patch = " × ".join(map(str, spec.patch_size))
        deep = ", deep supervision" if spec.deep_supervision else ""
        inherits = ", starts from its teacher" if self.run.init != "random" else ""
        text = [
            f"run        {self.folder} ({self.state})",
            f"budget     {budget.epochs} epochs of {budget.iterations_per_epoch} steps, {budget.batch_size} patches of "
            f"{patch}, {self.run.precision}, learning rate {budget.learning_rate:g}, seed {budget.seed}",
            *speed_lines(self.run),
            f"student    {_cost(self.student)}{deep}{inherits}",
            *self._teaching(),
            *protocol_lines(self.run),
        ]
        text += [f"taps       {line}" for line in pair_table(self.pairs)]
        text += [f"memory     {line}" for line in self._memory()]
        if self.guard is not None:
            text.append(f"leak guard {self.guard}")
        return text

    def _teaching(self) -> Iterator[str]:
        """Teacher and method, where there are any."""
        if self.teacher is not None:
            yield f"teacher    {_cost(self.teacher)}"
        elif self.run.method and self.run.targets != "live" and self.guard is not None:
            kind = "means over mirrored copies" if self.run.targets_tta else "plain predictions"
            name = self.guard.teacher
            yield f"teacher    {name}, which is not run in training; its targets ({kind}) are cached before"
        if self.run.method:
            yield f"method     {self.run.method}, {self.helpers:,} trainable parameters of its own"

    def _memory(self) -> Iterator[str]:
        if self.memory is None:
            yield "unknown: the teacher does not run on shapes alone"
            return
        m = self.memory
        parts = ", ".join(
            f"{name} {_mib(getattr(m, name))}" for name in ("weights", "gradients", "optimizer", "activations")
        )
        yield f"about {_mib(m.total)} per step: {parts}" + (
            f" (the method at most {_mib(m.method)})" if m.method else ""
        )
        yield "an estimate from the shapes; work space of the libraries and the loader's patches come on top"


def describe_run(
    run: RunDescription,
    folder: Path,
    student: SegmentationNetwork,
    loss: nn.Module,
    distiller: Distiller | None = None,
    guard: LeakGuard | None = None,
) -> DryRun:
    """Describe a training without starting it.

    Args:
        run: what would be trained.
        folder: the fold folder.
        student: the network on torch's ``meta`` device.
        loss: the supervised loss, called with logits and target.
        distiller: teacher and method; both are moved to ``meta`` and are of no further use.
        guard: what the guard against leaks found.

    Raises:
        RunError: the network cannot be trained on this patch.
    """
    shape = (1, run.network.in_channels, *run.network.patch_size)
    with _patch_fits(run):
        cost = NetworkCost(run.network.name, count_parameters(student), count_macs(student, shape))
    helpers, teacher = 0, None
    pairs: tuple[TapPair, ...] = ()
    if distiller is not None:
        helpers = sum(parameter.numel() for parameter in distiller.parameters())
        pairs = tap_pairs(distiller.method, run.method or "none", run.network.patch_size)
        if distiller.teacher is not None and guard is not None:
            teacher = _cost_of_teacher(guard.teacher, distiller.teacher, shape)
    with _patch_fits(run):
        memory = _attempt(lambda: step_memory(run, student, loss, distiller))
    return DryRun(
        run=run,
        folder=folder,
        state=_state(folder),
        student=cost,
        teacher=teacher,
        helpers=helpers,
        pairs=pairs,
        memory=memory,
        guard=guard,
    )


def _state(folder: Path) -> str:
    if (folder / FINAL).exists():
        return "finished"
    return "continues" if (folder / LATEST).exists() else "new"


def _cost_of_teacher(name: str, network: nn.Module, shape: tuple[int, ...]) -> NetworkCost:
    macs = _attempt(lambda: count_macs(network.to("meta"), shape))
    return NetworkCost(name, count_parameters(network), macs)


def step_memory(
    run: RunDescription, student: SegmentationNetwork, loss: nn.Module, distiller: Distiller | None = None
) -> StepMemory:
    """Estimate the memory of a training step by running it on torch's ``meta`` device, where tensors have a size but no
    content.

    Forward, supervised loss and backward of the student and the forward of the teacher are run as they are, so their
    activations are counted tensor by tensor. A method looks at values, so it takes no part; what it announces is added
    where its loss would be computed. Under half precision the networks' activations count half.

    Args:
        run: batch, patch and precision.
        student: on ``meta``; its gradients are thrown away.
        loss: the supervised loss.
        distiller: teacher and method, moved to ``meta`` here.
    """
    trained = list(student.parameters())
    frozen = 0
    if distiller is not None:
        trained += distiller.to("meta").parameters()
        frozen = _bytes(distiller.method.buffers()) + (0 if distiller.teacher is None else _weights(distiller.teacher))
    # every gradient is counted below, so those made on the way must not be counted as activations
    handles = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in student.parameters()]
    activations, method = _activations(run, student.train(), loss, distiller)
    for handle in handles:
        handle.remove()
    held = _bytes(trained)
    return StepMemory(held + _bytes(student.buffers()) + frozen, held, held, activations, method)


def _activations(
    run: RunDescription, student: SegmentationNetwork, loss: nn.Module, distiller: Distiller | None
) -> tuple[int, int]:
    """Most bytes alive at once, and the method's announced share of them."""
    image, labels = _batch_of(run, bool(getattr(loss, "regions", False)))
    method = 0
    with LivePeak() as live:
        with nullcontext() if distiller is None else distiller.student_capture(student) as captured:
            logits = student(image)
        networks = live.alive
        total = torch.stack([*loss(logits, labels).values()]).sum()
        if distiller is not None and captured is not None:
            finest = logits if isinstance(logits, Tensor) else logits[0]
            features = list(captured.features.values())
            kept, compared = _teacher(distiller, image)
            if distiller.needs_teacher:
                method = distiller.method.announced(_bytes([finest]), _bytes(features) + compared, len(image))
            live.highest = max(live.highest, live.alive + method)
            for feature in features:
                total = total + feature.sum()
            distiller.clear()
            del features, kept
        total.backward()
    saved = 0 if run.precision == "fp32" else networks // 2
    return live.highest - saved + _bytes([image, labels]), method


def _batch_of(run: RunDescription, regions: bool) -> tuple[Tensor, Tensor]:
    """Images and labels without content."""
    batch, spec = run.budget.batch_size, run.network
    image = torch.empty(batch, spec.in_channels, *spec.patch_size, device="meta")
    if regions:
        return image, torch.empty(batch, spec.num_outputs, *spec.patch_size, device="meta")
    return image, torch.empty(batch, 1, *spec.patch_size, device="meta", dtype=torch.long)


def _teacher(distiller: Distiller, image: Tensor) -> tuple[object, int]:
    """Run the teacher on shapes; returns what is alive of it while the method computes, and the bytes of the features
    among it.
    """
    teacher, needs = distiller.teacher, distiller.method.needs()
    if teacher is None:
        return None, 0
    with torch.no_grad(), Capture(teacher, needs.teacher, needs.teacher_corrections, detach=True) as capture:
        logits = teacher(image)
    features = [*capture.features.values(), *capture.corrections.values()]
    rest = []
    if _continues(
        distiller.method
    ):  # what its remaining layers keep for the gradient of a feature that is sent through them
        continued: Callable[[str, Tensor], Tensor] = teacher.forward_from  # type: ignore[assignment]
        rest = [continued(name, feature.requires_grad_()) for name, feature in capture.features.items()]
    return (rest, logits, features), _bytes(features)


@contextmanager
def _patch_fits(run: RunDescription) -> Iterator[None]:
    """Name the patch where torch only says that a norm refuses a single voxel."""
    try:
        yield
    except ValueError as error:
        patch = " × ".join(map(str, run.network.patch_size))
        raise RunError(
            f"'{run.network.name}' cannot be trained on a patch of {patch} ({error}); give a larger --patch-size."
        ) from error


def _continues(method: nn.Module) -> bool:
    """Whether a step sends features through the teacher's layers; methods that learn prompts do so before the first
    step only.
    """
    joined = getattr(method, "parts", None)
    if isinstance(joined, nn.ModuleDict):
        return any(_continues(m) for m in joined.values())
    return isinstance(method, Method) and method.continues_teacher and not isinstance(method, PromptMethod)


def _attempt(work: Callable[[], T]) -> T | None:
    try:
        return work()
    except _UNKNOWN:
        return None


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _weights(network: nn.Module) -> int:
    return _bytes(network.parameters()) + _bytes(network.buffers())


def _cost(network: NetworkCost) -> str:
    macs = "unknown multiply-adds" if network.macs is None else f"{network.macs / 1e9:.2f} G multiply-adds per patch"
    return f"{network.name}, {network.parameters / 1e6:.3f} M parameters, {macs}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
