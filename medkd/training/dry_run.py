"""What a training would do and need, known before it starts: networks, pairs of taps, memory, the guard against
leaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.core.features import Tap
from medkd.core.live_memory import LivePeak
from medkd.core.run import FINAL, LATEST, RunDescription
from medkd.distillation import Distiller, Method
from medkd.distillation.capture import Capture
from medkd.distillation.pairs import PairMethod
from medkd.distillation.prompts.first_stage import PromptMethod
from medkd.networks import SegmentationNetwork
from medkd.networks.complexity import count_macs, count_parameters

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
class TapShape:
    """A tap and what it gives for one patch: ``shape`` is ``(C, *spatial)``."""

    name: str
    stage: str
    stride: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TapPair:
    """What a method compares; ``teacher`` or ``student`` is None for a feature that it takes without a partner."""

    method: str
    student: TapShape | None
    teacher: TapShape | None


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
    """What the guard found: the fold of the teacher that may teach, how many cases it has seen, and how many judge the
    student.
    """

    teacher: str
    fold: str
    seen: int
    judged: int

    def __str__(self) -> str:
        """The verdict in one sentence."""
        judged = (
            f"none of the {self.judged} on which the student is judged"
            if self.judged
            else "and a student of all cases is not judged"
        )
        return f"fold {self.fold} of {self.teacher} teaches; it has seen {self.seen} cases, {judged}"


@dataclass(frozen=True)
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
            f"student    {_cost(self.student)}{deep}{inherits}",
            *self._teaching(),
        ]
        text += [f"taps       {line}" for line in _table(self.pairs)]
        text += [f"memory     {line}" for line in self._memory()]
        if self.guard is not None:
            text.append(f"leak guard {self.guard}")
        return text

    def _teaching(self) -> Iterator[str]:
        """Teacher and method, where there are any."""
        if self.teacher is not None:
            yield f"teacher    {_cost(self.teacher)}"
        elif self.run.method and self.run.targets == "cached" and self.guard is not None:
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
    state = "finished" if (folder / FINAL).exists() else "continues" if (folder / LATEST).exists() else "new"
    with _patch_fits(run):
        cost = NetworkCost(run.network.name, count_parameters(student), count_macs(student, shape))
    method = None if distiller is None else distiller.method
    helpers = 0 if distiller is None else sum(p.numel() for p in distiller.parameters())
    pairs = () if method is None else tap_pairs(method, run.method or "none", run.network.patch_size)
    net = None if distiller is None else distiller.teacher
    teacher = None
    if net is not None and guard is not None:
        teacher = NetworkCost(guard.teacher, count_parameters(net), _attempt(lambda: count_macs(net.to("meta"), shape)))
    with _patch_fits(run):
        memory = _attempt(lambda: step_memory(run, student, loss, distiller))
    return DryRun(run, folder, state, cost, teacher, helpers, pairs, memory, guard)


def tap_pairs(method: Method, name: str, patch: tuple[int, ...]) -> tuple[TapPair, ...]:
    """The taps that a method reads, paired where it compares pairs, and what they give for a patch.

    Args:
        method: the method, or several joined.
        name: its name.
        patch: voxels per axis.
    """
    joined = getattr(method, "parts", None)
    if isinstance(joined, nn.ModuleDict):
        return tuple(pair for part, m in joined.items() if isinstance(m, Method) for pair in tap_pairs(m, part, patch))
    if isinstance(method, PairMethod):
        return tuple(TapPair(name, _shape(s, patch), _shape(t, patch)) for s, t in method.pairs)
    return _unpaired(method, name, patch)


def _unpaired(method: Method, name: str, patch: tuple[int, ...]) -> tuple[TapPair, ...]:
    """The taps of a method that compares no pairs; one on either side are shown together."""
    needs, context = method.needs(), method.context
    students = _named(context.student_taps, needs.student, patch)
    teachers = _named(context.teacher_taps, (*needs.teacher, *needs.teacher_corrections), patch)
    if len(students) == len(teachers) == 1:
        return (TapPair(name, students[0], teachers[0]),)
    alone = [TapPair(name, student, None) for student in students]
    return (*alone, *(TapPair(name, None, teacher) for teacher in teachers))


def _named(taps: Sequence[Tap], names: Sequence[str], patch: tuple[int, ...]) -> list[TapShape]:
    return [_shape(tap, patch) for tap in taps if tap.name in names]


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
    batch, spec = run.budget.batch_size, run.network
    image = torch.empty(batch, spec.in_channels, *spec.patch_size, device="meta")
    regions = bool(getattr(loss, "regions", False))
    labels = torch.empty(
        batch,
        spec.num_outputs if regions else 1,
        *spec.patch_size,
        device="meta",
        dtype=None if regions else torch.long,
    )
    half = 1.0 if run.precision == "fp32" else 0.5
    needs = None if distiller is None else distiller.method.needs()
    with LivePeak() as live:
        with nullcontext() if distiller is None else distiller.student_capture(student) as captured:
            logits = student(image)
        networks = live.alive
        total = torch.stack([*loss(logits, labels).values()]).sum()
        method = 0
        if distiller is not None and needs is not None and captured is not None:
            finest = logits if isinstance(logits, Tensor) else logits[0]
            features = list(captured.features.values())
            kept, compared = _teacher(distiller, image)
            announced = distiller.method.announced(_bytes([finest]), _bytes(features) + compared, batch)
            method = announced if distiller.needs_teacher else 0
            live.highest = max(live.highest, live.alive + method)
            total = total + sum((f.sum() for f in features), torch.zeros((), device="meta"))
            distiller.clear()
            del features, kept
        total.backward()
    saved = int((1 - half) * networks)
    return live.highest - saved + _bytes([image, labels]), method


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


def _shape(tap: Tap, patch: tuple[int, ...]) -> TapShape:
    return TapShape(
        tap.name, tap.stage, tap.stride, (tap.channels, *(-(-p // s) for p, s in zip(patch, tap.stride, strict=True)))
    )


def _cost(network: NetworkCost) -> str:
    macs = "unknown multiply-adds" if network.macs is None else f"{network.macs / 1e9:.2f} G multiply-adds per patch"
    return f"{network.name}, {network.parameters / 1e6:.3f} M parameters, {macs}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _table(pairs: Sequence[TapPair]) -> list[str]:
    """One line per pair, in columns; the method is named where there are several."""
    if not pairs:
        return ["none; outputs suffice, if anything is taught at all"]
    rows = [(_side(pair.student), _side(pair.teacher), pair.method) for pair in pairs]
    several = len({pair.method for pair in pairs}) > 1
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{s:{widths[0]}} ↔ {t:{widths[1]}}{f'  ({name})' if several else ''}".rstrip() for s, t, name in rows]


def _side(tap: TapShape | None) -> str:
    if tap is None:
        return "-"
    stride = "×".join(map(str, tap.stride))
    return f"{tap.name} ({tap.stage}, stride {stride}, {' × '.join(map(str, tap.shape))})"
