"""Joins a frozen teacher and a method, and gives the training loop the extra loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.distillation.base import Method
from medkd.distillation.capture import Capture
from medkd.distillation.prompts import SegmentationTeacher


class Distiller:
    """A frozen teacher and a method.

    The training loop does, per step::

        with distiller.student_capture(student):
            logits = student(image)
        terms = distiller.terms(image, logits, target)

    The teacher is in eval mode and without gradient, and is not a submodule of anything, so that it never reaches an optimiser,
    a checkpoint or an exported student. It sees the student's exact input, under whatever autocast the caller is in; the method
    itself runs in float32 with autocast off.

    Args:
        teacher: any module with ``taps`` (needed only for feature methods); None where the method needs no teacher.
        method: the distillation method, whose helpers are trained with the student.

    Raises:
        MethodError: the method needs a teacher and there is none, a wanted teacher tap does not exist, or the method sends features
            through the teacher's remaining layers and the teacher cannot be continued.
    """

    def __init__(self, teacher: nn.Module | None, method: Method) -> None:
        if method.needs_teacher and teacher is None:
            raise MethodError(f"{type(method).__name__} needs a teacher, but none was given.")
        self.method = method
        self.teacher = teacher.eval().requires_grad_(False) if teacher is not None and method.needs_teacher else None
        needs = method.needs()
        self._student: Capture | None = None
        self._captured: nn.Module | None = None
        self._teacher: Capture | None = None
        if self.teacher is not None and method.continues_teacher:
            if not hasattr(self.teacher, "forward_from"):
                raise MethodError(
                    f"{type(method).__name__} continues the teacher from a tap, which {type(teacher).__name__} does not offer."
                )
            self.teacher.remember = True  # type: ignore[assignment]  # a flag of every network that can be continued
        if self.teacher is not None:
            self._teacher = Capture(self.teacher, needs.teacher, needs.teacher_corrections, detach=True)

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher runs at all."""
        return self.method.needs_teacher

    def student_capture(self, student: nn.Module) -> Capture:
        """The context in which the student's forward pass must run; ``student`` is the bare network, not a parallel wrapper."""
        if self._student is None or self._captured is not student:
            self._student = Capture(student, self.method.needs().student)
            self._captured = student
        return self._student

    def terms(self, image: Tensor, logits: Tensor | Sequence[Tensor], target: Target) -> dict[str, Tensor]:
        """The named, weighted distillation terms of one batch; empty for a method without any.

        Args:
            image: the student's input ``(B, C, *spatial)``.
            logits: the student's output ``(B, K, *spatial)``, or a list of them with the full resolution first.
            target: labels, mask of annotated voxels, and progress.

        Raises:
            MethodError: the student did not run inside :meth:`student_capture`, or teacher and student logits differ in shape.
        """
        student = _outputs(logits, self._captured_features(), {}, None)
        teacher = self._run_teacher(image) if self.teacher is not None else Outputs(student.logits.detach())
        if teacher.logits.shape != student.logits.shape:
            raise MethodError(
                f"Teacher and student must have equal outputs, found {tuple(teacher.logits.shape)} and {tuple(student.logits.shape)}; "
                "both must be trained for the same labels and patch."
            )
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
                f"The student's tap '{missing[0]}' was not captured; run the student inside 'with distiller.student_capture(student):'."
            )
        return found

    def _run_teacher(self, image: Tensor) -> Outputs:
        assert self.teacher is not None and self._teacher is not None  # narrowed for the type checker; see __init__
        self.teacher.eval()
        with torch.no_grad(), self._teacher as capture:
            logits = self.teacher(image.detach())
        return _outputs(logits, capture.features, capture.corrections, self._forward_from(image.device.type))

    def _forward_from(self, device: str) -> Callable[[str, Tensor], Tensor] | None:
        """The teacher's continuation from a tap, under the caller's autocast; gradient flows to the feature, not to the teacher."""
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
            batches: training batches, images and targets, on the teacher's device; as many as the method wants are drawn.
        """
        if self.teacher is not None and self.needs_preparation:
            self.method.prepare(SegmentationTeacher(self.teacher, self.method.context), batches)

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
        if self.teacher is not None:
            self.teacher.to(device)
        return self


def _outputs(
    logits: Tensor | Sequence[Tensor],
    features: Mapping[str, Tensor],
    corrections: Mapping[str, Tensor],
    forward_from: Callable[[str, Tensor], Tensor] | None,
) -> Outputs:
    every = [logits] if isinstance(logits, Tensor) else list(logits)
    return Outputs(
        logits=every[0].float(),
        features={name: tensor.float() for name, tensor in features.items()},
        corrections={name: tensor.float() for name, tensor in corrections.items()},
        auxiliary=tuple(tensor.float() for tensor in every[1:]),
        forward_from=forward_from,
    )
