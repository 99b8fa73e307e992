"""The contract of a distillation method."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Progress, Tap, Target
from medkd.core.registry import Registry
from medkd.core.serial import nearest

Variant = Literal["default", "paper"]
_MAPS = 12  # maps of one channel beside the logits: labels, masks and sums over classes
_SMALL = 2**18  # bytes for what costs next to nothing: class means, counts, small gates


@dataclass(frozen=True)
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
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    teacher_corrections: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        """The union of two needs, in order of first mention."""
        merged = ((*a, *(n for n in b if n not in a)) for a, b in zip(_fields(self), _fields(other), strict=True))
        return Needs(*merged)


def _fields(needs: Needs) -> tuple[tuple[str, ...], ...]:
    return needs.student, needs.teacher, needs.teacher_corrections


class Method(nn.Module):
    """A distillation method: turns student and teacher outputs into named, weighted loss terms.

    A subclass builds every trainable helper (connectors, adapters) in ``__init__``: helpers are optimised with the
    student, kept in training checkpoints and dropped at export. ``forward`` is called in float32 with autocast off.

    Class attributes:
        citation: authors, title or venue, year, arXiv id or DOI.
        outputs_only: True where the teacher's logits suffice.
        needs_teacher: False where the method never looks at a teacher.
        averages: True where the teacher's average over its mirrorings and folds is the target (``Outputs.average``).
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
        # four bytes for every number of the matrices and of the helpers' gradients
        return (
            int(self.per_logit * logits + self.per_feature * features)
            + maps
            + 4 * (self.pairwise(batch) + helpers)
            + _SMALL
        )

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


def build_method(
    name: str, context: Context, settings: Mapping[str, Any] | None = None, own: Registry[type[Method]] | None = None
) -> Method:
    """Build a method by name, or several joined by ``+``, whose terms are summed.

    Args:
        name: registry name, for example ``"kd"`` or ``"acf+kd"``.
        context: taps, outputs and geometry.
        settings: ``"method.parameter"`` → value; values given as text are read as the parameter's own type.
        own: methods of a branch that come before those of :data:`METHODS` with the same name.

    Raises:
        MethodError: an unknown method or parameter, a bad value, or a method that is not defined for this context.
    """
    names = [part.strip() for part in name.split("+")]
    if len(set(names)) != len(names):
        raise MethodError(f"'{name}' names a method twice; every method can be used once.")
    classes = {part: own[part] if own is not None and part in own else METHODS[part] for part in names}
    undefined = [part for part, kind in classes.items() if context.task == "detection" and not kind.detection]
    if undefined:
        raise MethodError(f"'{undefined[0]}' is not defined for detectors; see medkd_list methods for those that are.")
    chosen: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in (settings or {}).items():
        part, _, parameter = key.partition(".")
        if part not in classes or not parameter:
            raise MethodError(
                f"Setting '{key}' does not belong to '{name}'; write METHOD.PARAMETER=VALUE with one of: "
                f"{', '.join(names)}."
            )
        chosen[part][parameter] = _parse(classes[part], part, parameter, value)
    built = {part: classes[part](context, **chosen[part]) for part in names}
    return built[names[0]] if len(names) == 1 else _Sum(context, built)


def parameters_of(method: type[Method]) -> dict[str, inspect.Parameter]:
    """The keyword parameters of a method's constructor, by name."""
    return {n: p for n, p in inspect.signature(method.__init__).parameters.items() if n not in ("self", "context")}


def _parse(method: type[Method], name: str, parameter: str, value: Any) -> Any:
    known = parameters_of(method)
    if parameter not in known:
        raise MethodError(
            f"Method '{name}' has no parameter '{parameter}'.{nearest(parameter, known)} Known: "
            f"{', '.join(known) or 'none'}."
        )
    default = known[parameter].default
    if not isinstance(value, str) or isinstance(default, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    if default is None:
        return value
    raise MethodError(f"{name}.{parameter}: expected a value like {default!r}, found '{value}'.")


class _Sum(Method):
    """Several methods at once; terms are prefixed with their method's name."""

    def __init__(self, context: Context, parts: Mapping[str, Method]) -> None:
        super().__init__(context)
        self.parts = nn.ModuleDict(parts)
        self.outputs_only = all(m.outputs_only for m in parts.values())  # type: ignore[misc]
        self.needs_teacher = any(m.needs_teacher for m in parts.values())  # type: ignore[misc]
        self.averages = any(m.averages for m in parts.values())  # type: ignore[misc]
        self.continues_teacher = any(m.continues_teacher for m in parts.values())  # type: ignore[misc]

    def needs(self) -> Needs:
        total = Needs()
        for method in self._methods():
            total = total | method.needs()
        return total

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> dict[str, Tensor]:
        return {
            f"{n}.{k}": v
            for n, m in zip(self.parts, self._methods(), strict=True)
            for k, v in m(student, teacher, target).items()
        }

    def wants_average(self, progress: Progress) -> bool:
        return any(method.wants_average(progress) for method in self._methods())

    def pairwise(self, batch: int) -> int:
        return sum(m.pairwise(batch) for m in self._methods())

    def announced(self, logits: int, features: int, batch: int) -> int:
        return sum(m.announced(logits, features, batch) for m in self._methods())

    @property
    def needs_preparation(self) -> bool:
        return any(method.needs_preparation for method in self._methods())

    def prepare(self, teacher: Any, batches: Any) -> None:
        for method in self._methods():
            if method.needs_preparation:
                method.prepare(teacher, batches)

    def _methods(self) -> list[Method]:
        return [m for m in self.parts.values() if isinstance(m, Method)]


def zero_like(logits: Tensor) -> Tensor:
    """A zero that hangs on the graph, for terms without anything to teach in this batch."""
    return logits.sum() * 0.0


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of ``values`` ``(B, 1 or K, *spatial)`` over all, or over the annotated voxels only."""
    if valid is None:
        return values.mean()
    mask = valid.to(values.dtype).expand_as(values)
    return (values * mask).sum() / mask.sum().clamp(min=1.0)
