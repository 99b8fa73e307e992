"""The contract of a distillation method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Progress, Tap, Target
from medkd.core.registry import Registry

Variant = Literal["default", "paper"]  # medkd's own scale and form of a method, or the original's
_MAPS = 12  # maps of one channel beside the logits: labels, masks and sums over classes
_FLOAT = 4  # bytes of a number in float32
_SMALL = 2**18  # bytes for what costs next to nothing: class means, counts, small gates


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a method knows when it is built.

    Attributes:
        student_taps: taps the student publishes, encoder → decoder.
        teacher_taps: taps the teacher publishes.
        num_outputs: output channels ``K`` (classes with background, or regions).
        regions: sigmoid regions instead of softmax classes.
        spacing: voxel size in mm per axis of the patch.
        patch_size: training patch, in voxels.
        task: what the networks do; a detector's ``num_outputs`` is ``K`` with ``regions`` (dense heads) or ``K + 1``
            without (two-stage).
        mirror_axes: axes of the patch that the teacher's training mirrored.
    """

    student_taps: tuple[Tap, ...]
    teacher_taps: tuple[Tap, ...]
    num_outputs: int
    regions: bool
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    task: Literal["segmentation", "detection"] = "segmentation"
    mirror_axes: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Spatial dimensions, 2 or 3."""
        return len(self.patch_size)


@dataclass(frozen=True)
class Needs:
    """Names of the taps a method wants captured.

    Attributes:
        student: student taps whose features are wanted.
        teacher: teacher taps whose features are wanted.
        teacher_corrections: teacher taps whose block correction (output − input) is wanted.

    >>> Needs(student=("stage2",)) | Needs(student=("stage2", "stage3"), teacher=("stage5",))
    Needs(student=('stage2', 'stage3'), teacher=('stage5',), teacher_corrections=())
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    teacher_corrections: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        """The union of two needs, in order of first mention."""
        return Needs(
            _joined(self.student, other.student),
            _joined(self.teacher, other.teacher),
            _joined(self.teacher_corrections, other.teacher_corrections),
        )


def _joined(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    """Names of both, each once, in order of first mention."""
    return tuple(dict.fromkeys((*first, *second)))


class Method(nn.Module):
    """A distillation method: turns student and teacher outputs into named, weighted loss terms.

    A subclass builds every trainable helper (connectors, adapters) in ``__init__``: helpers are optimised with the
    student, kept in training checkpoints and dropped at export. ``forward`` is called in float32 with autocast off.

    Class attributes:
        citation: authors, title or venue, year, arXiv id or DOI.
        outputs_only: True where the teacher's logits suffice.
        needs_teacher: False where the method never looks at a teacher.
        averages: True where the teacher's average over its mirrorings and folds is the target (``Outputs.average``).
        by_sample: True where every term is the mean over the samples of what each sample alone would give, as long as
            every voxel is annotated; several processes then need not see each other's outputs.
        continues_teacher: True where student features go through the teacher's remaining layers
            (``Outputs.forward_from``).
        detection: True where the same formula is defined for detectors, on their necks' features or their class logits.
        per_logit: most bytes that loss and gradient take for every byte of the logits, see :meth:`announced`.
        per_feature: the same for every byte of the features compared, of both networks.
        bound: what the method does to stay there, in words.
    """

    citation: ClassVar[str] = ""
    outputs_only: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    averages: ClassVar[bool] = False
    by_sample: ClassVar[bool] = False
    continues_teacher: ClassVar[bool] = False
    detection: ClassVar[bool] = False
    per_logit: ClassVar[float] = 6.0
    per_feature: ClassVar[float] = 6.0
    bound: ClassVar[str] = "a few copies of the features and logits"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def needs(self) -> Needs:
        """The taps to capture; nothing by default."""
        return Needs()

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; gradient reaches the student and the helpers only."""
        raise NotImplementedError

    def wants_average(self, progress: Progress) -> bool:
        """Whether this step's target is the teacher's average, which costs a forward for every mirroring of every
        fold.
        """
        return False

    def pairwise(self, batch: int) -> int:
        """Most numbers in matrices whose size the patch does not decide (pairs of places, memories); 0 for methods
        without.
        """
        return 0

    def announced(self, logits: int, features: int, batch: int) -> int:
        """Most bytes that loss and gradient take at once, beyond their inputs; a bound, not a forecast.

        A method that continues the teacher takes the teacher's layers besides.

        Args:
            logits: bytes of the student's logits.
            features: bytes of the captured features of both networks.
            batch: samples.
        """
        helpers = sum(p.numel() for p in self.parameters())
        maps = _MAPS * logits // self.context.num_outputs if self.per_logit else 0
        copies = int(self.per_logit * logits + self.per_feature * features)
        numbers = self.pairwise(batch) + helpers  # of the matrices, and of the helpers' gradients
        return copies + maps + _FLOAT * numbers + _SMALL

    @property
    def needs_preparation(self) -> bool:
        """Whether :meth:`prepare` must run before the first step; never after a prepared state was loaded."""
        return False

    def prepare(self, teacher: Any, batches: Any) -> None:
        """Optional first stage, run once before training.

        Args:
            teacher: the frozen teacher as a :class:`medkd.distillation.prompts.first_stage.PromptTeacher`.
            batches: training batches, as that teacher takes them.
        """


METHODS: Registry[type[Method]] = Registry("method", MethodError, "medkd.methods")


def zero_like(logits: Tensor) -> Tensor:
    """A zero that hangs on the graph, for terms without anything to teach in this batch."""
    return logits.sum() * 0.0


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of ``values`` ``(B, 1 or K, *spatial)`` over all, or over the annotated voxels only."""
    if valid is None:
        return values.mean()
    mask = valid.to(values.dtype).expand_as(values)
    return (values * mask).sum() / mask.sum().clamp(min=1.0)
