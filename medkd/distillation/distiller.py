"""Joins a frozen teacher and a method, and gives the training loop the extra loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Progress, Target
from medkd.distillation.averaging import logits_of, mean_of, mirrorings, probabilities_of
from medkd.distillation.base import METHODS, Method
from medkd.distillation.capture import Capture
from medkd.distillation.completion import completed
from medkd.distillation.prompts.first_stage import SegmentationTeacher


class Distiller:
    """A frozen teacher and a method.

    The training loop does, per step::

        with distiller.student_capture(student):
            logits = student(image)
        terms = distiller.terms(image, logits, target)

    The teacher is in eval mode and without gradient, and is not a submodule of anything, so that it never reaches an
    optimiser, a checkpoint or an exported student. It sees the student's exact input, under whatever autocast the
    caller is in; the method itself runs in float32 with autocast off.

    Where several processes have a part of every batch each, :attr:`gather` makes the whole of a tensor's parts. Teacher
    and student then see this process' part, and the method everything; ``logits``, ``target`` and ``cached`` of
    :meth:`terms` are the whole batch's, ``image`` this process' own.

    Args:
        teacher: any module with ``taps`` (needed only for feature methods); None where the method needs no teacher.
        method: the distillation method, whose helpers are trained with the student.
        cached: the teacher's outputs are given to every call of :meth:`terms`, and no teacher is needed.
        partners: further networks of the same outputs that only take part in averages: other folds of the teacher.
        confidence: voxels where the teacher's largest probability is lower are left out of the method's terms, see
            :func:`medkd.distillation.completion.completed`.

    Raises:
        MethodError: the method needs a teacher and there is none, or more of it than the outputs that are cached, a
            wanted teacher tap does not exist, or the method sends features through the teacher's remaining layers and
            the teacher cannot be continued.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        method: Method,
        *,
        cached: bool = False,
        partners: Sequence[nn.Module] = (),
        confidence: float = 0.0,
    ) -> None:
        _check_source(method, teacher, cached)
        self._confidence = confidence
        self.gather: Callable[[Tensor], Tensor] | None = None
        self.method = method
        self.partners = [_frozen(network) for network in partners]
        self.teacher = _frozen(teacher) if teacher is not None and method.needs_teacher else None
        self._student: Capture | None = None
        self._captured: nn.Module | None = None
        self._teacher: Capture | None = None
        if self.teacher is not None:
            if method.continues_teacher:
                _make_continuable(self.teacher, method)
            needs = method.needs()
            self._teacher = Capture(self.teacher, needs.teacher, needs.teacher_corrections, detach=True)

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher runs at all."""
        return self.method.needs_teacher

    @property
    def by_sample(self) -> bool:
        """Whether the terms of a batch without gaps in its labels are the mean of those of its samples."""
        return self.method.by_sample and self._confidence == 0

    def student_capture(self, student: nn.Module) -> Capture:
        """The context in which the student's forward pass must run; ``student`` is the bare network, not a parallel
        wrapper.
        """
        if self._student is None or self._captured is not student:
            self._student = Capture(student, self.method.needs().student)
            self._captured = student
        return self._student

    def terms(
        self, image: Tensor, logits: Tensor | Sequence[Tensor], target: Target, cached: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The named, weighted distillation terms of one batch; empty for a method without any.

        Args:
            image: the student's input ``(B, C, *spatial)``.
            logits: the student's output ``(B, K, *spatial)``, or a list of them with the full resolution first.
            target: labels, mask of annotated voxels, and progress.
            cached: the teacher's logits ``(B, K, *spatial)``, where it does not run.

        Raises:
            MethodError: the student did not run inside :meth:`student_capture`, or teacher and student logits differ in
                shape.
        """
        student = outputs_of(logits, self._captured_features(), {}, None)
        if cached is not None:
            teacher = Outputs(logits=cached.float(), average=cached.float())
        else:
            teacher = (
                self._taught(image, target.progress)
                if self.teacher is not None
                else Outputs(logits=student.logits.detach())
            )
        if teacher.logits.shape != student.logits.shape:
            raise MethodError(
                f"Teacher and student must have equal outputs, found {tuple(teacher.logits.shape)} and "
                f"{tuple(student.logits.shape)}; "
                "both must be trained for the same labels and patch."
            )
        if cached is not None or self.teacher is not None:
            target = completed(target, teacher.logits, self.method.context.regions, self._confidence)
        with torch.autocast(image.device.type, enabled=False):
            terms = self.method(student, teacher, target)
        self.clear()
        return terms

    def _captured_features(self) -> Mapping[str, Tensor]:
        wanted = self.method.needs().student
        found = self._student.features if self._student is not None else {}
        missing = [name for name in wanted if name not in found]
        if missing:
            raise MethodError(
                f"The student's tap '{missing[0]}' was not captured; run the student inside 'with "
                "distiller.student_capture(student):'."
            )
        return found if self.gather is None else {name: self.gather(found[name]) for name in wanted}

    def _taught(self, image: Tensor, progress: Progress) -> Outputs:
        """What the teacher says of the whole batch."""
        if self.gather is None:
            return self.run_teacher(image, progress)
        if self.method.continues_teacher:  # which continues what it remembers: the whole batch
            return self.run_teacher(self.gather(image), progress)
        return _gathered(self.run_teacher(image, progress), self.gather)

    def run_teacher(self, image: Tensor, progress: Progress) -> Outputs:
        """What the teacher says of a batch of images, without a gradient."""
        assert self.teacher is not None  # narrowed for the type checker; see __init__
        self.teacher.eval()
        wanted = self.method.wants_average(progress) and self._other_passes > 0
        # These come first: a method may continue from what the last pass left behind.
        others = self.other_probabilities(image) if wanted else None
        outputs = self.plain_pass(image)
        if others is None:
            return outputs
        regions, count = self.method.context.regions, self._other_passes
        mean = (count * others + probabilities_of(outputs.logits, regions)) / (count + 1)
        return replace(outputs, average=logits_of(mean, regions))

    def plain_pass(self, image: Tensor) -> Outputs:
        """What the teacher says of the images as they are; whoever shares a teacher overrides it."""
        assert self.teacher is not None and self._teacher is not None  # narrowed for the type checker; see __init__
        with torch.no_grad(), self._teacher as capture:
            logits = self.teacher(image.detach())
        return outputs_of(logits, capture.features, capture.corrections, self.forward_from(image.device.type))

    @property
    def _other_passes(self) -> int:
        """Forwards of an average besides the teacher's plain one."""
        return len(mirrorings(self.method.context.mirror_axes)) * (1 + len(self.partners)) - 1

    @torch.no_grad()
    def other_probabilities(self, image: Tensor) -> Tensor:
        """Mean probabilities over all mirrorings of teacher and partners, without the teacher's plain pass."""
        return mean_of(self._mirrored_probabilities(image))

    def _mirrored_probabilities(self, image: Tensor) -> Iterator[Tensor]:
        flips = mirrorings(self.method.context.mirror_axes)
        for network in (*self.partners, self.teacher):
            if network is None:
                continue
            for flip in flips:
                if network is self.teacher and not flip:
                    continue
                found = outputs_of(network(image.flip(flip)), {}, {}, None).logits
                yield probabilities_of(found.flip(flip), self.method.context.regions)

    def forward_from(self, device: str) -> Callable[[str, Tensor], Tensor] | None:
        """The teacher's continuation from a tap, under the caller's autocast; gradient flows to the feature, not to the
        teacher.
        """
        if not self.method.continues_teacher:
            return None
        rest: Callable[[str, Tensor], Tensor] = self.teacher.forward_from  # type: ignore[union-attr, assignment]
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def run(tap: str, feature: Tensor) -> Tensor:
            with torch.autocast(device, dtype=dtype, enabled=enabled):
                return rest(tap, feature).float()

        return run

    def clear(self) -> None:
        """Forget captured tensors; :meth:`terms` does this itself."""
        for capture in (self._student, self._teacher):
            if capture is not None:
                capture.clear()

    @property
    def needs_preparation(self) -> bool:
        """Whether :meth:`prepare` must run before the first step; false once a prepared state was loaded."""
        return self.method.needs_preparation

    def prepare(self, batches: Iterable[tuple[Tensor, Target]]) -> None:
        """Run the method's first stage, where it has one that has not run: see :meth:`Method.prepare`.

        Args:
            batches: training batches, images and targets, on the teacher's device; as many as the method wants are
                drawn.
        """
        if self.teacher is not None and self.needs_preparation:
            self.method.prepare(SegmentationTeacher(self.teacher, self.method.context), map(self._completed, batches))

    def _completed(self, batch: tuple[Tensor, Target]) -> tuple[Tensor, Target]:
        """A batch of the first stage, with the teacher's predictions where there are no labels."""
        image, target = batch
        if target.labelled is None or self.teacher is None:
            return batch
        with torch.no_grad():
            logits = outputs_of(self.teacher(image), {}, {}, None).logits
        return image, completed(target, logits, self.method.context.regions)

    def parameters(self) -> list[nn.Parameter]:
        """The method's trainable helpers, for the optimiser; the teacher's are never among them."""
        return [p for p in self.method.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        """State of the method's helpers, for training checkpoints; nothing of the teacher."""
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the helpers exactly."""
        self.method.load_state_dict(state)

    def to(self, device: torch.device | str) -> Distiller:
        """Move teacher and helpers to a device, in place."""
        self.method.to(device)
        for network in (self.teacher, *self.partners):
            if network is not None:
                network.to(device)
        return self


def _check_source(method: Method, teacher: nn.Module | None, cached: bool) -> None:
    """Refuse a method that needs more of a teacher than there is."""
    if cached and not method.outputs_only:
        raise MethodError(
            f"{_beyond_outputs(method)} needs more of the teacher than its outputs, and cached targets hold nothing "
            "else; use --targets live."
        )
    if method.needs_teacher and teacher is None and not cached:
        raise MethodError(f"{type(method).__name__} needs a teacher, but none was given.")


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _make_continuable(teacher: nn.Module, method: Method) -> None:
    """Tell the teacher to remember what a continuation from a tap needs."""
    if not hasattr(teacher, "forward_from"):
        raise MethodError(
            f"{type(method).__name__} continues the teacher from a tap, which {type(teacher).__name__} does not offer."
        )
    teacher.remember = True  # type: ignore[assignment]  # a flag of every network that can be continued


def _beyond_outputs(method: Method) -> str:
    """Name of the method, or of that of several joined, which needs more than outputs."""
    kinds = [type(part) for part in method.modules() if isinstance(part, Method) and not part.outputs_only]
    for name in METHODS:
        if METHODS[name] is kinds[-1]:
            return name
    return kinds[-1].__name__


def outputs_of(
    logits: Tensor | Sequence[Tensor],
    features: Mapping[str, Tensor],
    corrections: Mapping[str, Tensor],
    forward_from: Callable[[str, Tensor], Tensor] | None,
) -> Outputs:
    """One forward pass in float32: logits, or a list of them with the full resolution first, and what was captured."""
    every = [logits] if isinstance(logits, Tensor) else list(logits)
    return Outputs(
        logits=every[0].float(),
        features={name: tensor.float() for name, tensor in features.items()},
        corrections={name: tensor.float() for name, tensor in corrections.items()},
        auxiliary=tuple(tensor.float() for tensor in every[1:]),
        forward_from=forward_from,
    )


def _gathered(outputs: Outputs, gather: Callable[[Tensor], Tensor]) -> Outputs:
    return replace(
        outputs,
        logits=gather(outputs.logits),
        features={name: gather(tensor) for name, tensor in outputs.features.items()},
        corrections={name: gather(tensor) for name, tensor in outputs.corrections.items()},
        auxiliary=tuple(gather(tensor) for tensor in outputs.auxiliary),
        average=None if outputs.average is None else gather(outputs.average),
    )
