"""Masks that are learnt on the frozen teacher before distillation begins: the first stage of MasKD and FreeKD."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import isfinite
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from medkd.core.errors import MethodError
from medkd.core.features import Target
from medkd.distillation.base import Context
from medkd.distillation.capture import Capture
from medkd.distillation.options import at_least
from medkd.distillation.pairs import WEAK, AdaptedMethod

log = logging.getLogger(__name__)
_RATE = 0.01  # of Adam, at the start of the first stage
_LOOK_EVERY = 50  # iterations


class PromptTeacher(Protocol):
    """A frozen teacher that can be asked what its loss would be with other feature maps; batches are its own
    business.
    """

    def features(self, batch: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """Its feature maps at these taps, without gradient, in float32."""

    def task_loss(self, batch: Any, replaced: Mapping[str, Tensor]) -> Tensor:
        """Its loss on the batch with these maps in place of its own; gradient flows to the maps. Follows
        :meth:`features`.
        """


class SegmentationTeacher:
    """A segmentation network; batches are ``(images, Target)``.

    With several maps the loss is the mean over maps, each put in place of the network's own one at a time: its layers
    after a coarse tap make the finer maps anew.

    Args:
        network: frozen, able to continue from its taps.
        context: tells classes from regions.
    """

    def __init__(self, network: nn.Module, context: Context) -> None:
        self._network = network
        self._regions = context.regions

    def features(self, batch: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """See :class:`PromptTeacher`."""
        self._network.eval()
        with torch.no_grad(), Capture(self._network, tuple(names), detach=True) as capture:
            self._network(batch[0])
        return {name: capture.features[name].float() for name in names}

    def task_loss(self, batch: Any, replaced: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy and Dice of the batch's labels."""
        rest: Any = self._network.forward_from
        losses = []
        for name, replacement in replaced.items():
            logits = rest(name, replacement).float()
            losses.append(labels_loss(logits, batch[1], self._regions))
        return torch.stack(losses).mean()


def labels_loss(logits: Tensor, target: Target, regions: bool) -> Tensor:
    """Cross-entropy (regions: binary) plus one minus the soft Dice over the batch, on annotated voxels."""
    if regions:
        truth, p = target.labels.float(), torch.sigmoid(logits)
        wrong = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1, keepdim=True)
    else:
        p = torch.softmax(logits, 1)
        truth = torch.zeros_like(p).scatter_(1, target.labels, 1.0)
        wrong = F.cross_entropy(logits, target.labels[:, 0], reduction="none")[:, None]
    valid = torch.ones_like(wrong) if target.valid is None else target.valid.to(wrong.dtype)
    axes = (0, *range(2, logits.ndim))
    overlap, total = (p * truth * valid).sum(axes), ((p + truth) * valid).sum(axes)
    dice = (2 * overlap + 1e-5) / (total + 1e-5)
    return (wrong * valid).sum() / valid.sum().clamp(min=1.0) + 1 - dice.mean()


def token_overlap(masks: Tensor) -> Tensor:
    """Mean over images and ordered pairs of different tokens of ``2 <M_i, M_j> / (|M_i|² + |M_j|²)``; 0 for a single
    token.

    Args:
        masks: ``(B, tokens, *spatial)`` in [0, 1].
    """
    rows = masks.flatten(2)
    number = rows.shape[1]
    if number < 2:
        return rows.sum() * 0.0
    products = rows @ rows.transpose(1, 2)
    squares = products.diagonal(dim1=1, dim2=2)
    dice = 2 * products / (squares.unsqueeze(1) + squares.unsqueeze(2)).clamp(min=1e-8)
    apart = 1 - torch.eye(number, dtype=dice.dtype, device=rows.device)
    return (dice * apart).sum() / (len(dice) * number * (number - 1))


class Prompts(nn.Module):
    """The tokens of one feature map. They are buffers: saved and loaded with the method, never seen by the student's
    optimiser.
    """

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The masked map, for the teacher to go on with, and the overlap of its masks (a scalar)."""
        raise NotImplementedError


class PromptMethod(AdaptedMethod):
    """A method with a first stage: per teacher map, tokens are learnt with which the masked map still solves the
    teacher's task.

    The first stage minimises ``task loss + Σ_l overlap_l`` (:func:`token_overlap`) over the tokens alone, with Adam and
    a rate that falls from 0.01 to 0 as half a cosine, in float32, one training batch per iteration. Afterwards the
    tokens never change.

    Args:
        context: taps, outputs and geometry.
        name: the method's name, for error texts.
        taps: see :func:`medkd.distillation.pairs.choose_pairs`.
        iterations: of the first stage, None means 100, or 2000 in the paper's variant; it is shorter where there are
            fewer batches.
        paper: whether the paper's variant is wanted.
    """

    continues_teacher = True
    prompts: nn.ModuleList
    prepared: Tensor

    def __init__(self, context: Context, name: str, taps: str, iterations: int | None, paper: bool) -> None:
        super().__init__(context, name, taps, always=paper, gain=1.0 if paper else WEAK)
        self.name, self.paper = name, paper
        own = 2000 if paper else 100
        self.iterations = int(at_least(name, "iterations", own if iterations is None else iterations, 1))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool))

    @property
    def needs_preparation(self) -> bool:
        """Whether the tokens are still to be learnt."""
        return not bool(self.prepared)

    def prepare(self, teacher: PromptTeacher, batches: Iterable[Any]) -> None:
        """Learn the tokens.

        Raises:
            MethodError: there are no batches, or the loss is not finite.
        """
        log.info("%s: learning masks on the teacher before training, at most %d iterations", self.name, self.iterations)
        tokens = {n: b.detach().clone().requires_grad_() for n, b in self.prompts.named_buffers()}
        losses = self._learn(teacher, batches, tokens)
        if not losses:
            raise MethodError(
                f"{self.name} learns masks on training batches before the first step, but was given none."
            )
        self._check_finite(losses)
        for name, buffer in self.prompts.named_buffers():
            buffer.copy_(tokens[name].detach())
        self.prepared.fill_(True)
        self._ready = True
        tenth = max(len(losses) // 10, 1)
        first, last = (float(torch.stack(part).mean()) for part in (losses[:tenth], losses[-tenth:]))
        log.info(
            "%s: %d iterations took the loss of the masked teacher from %.4f to %.4f",
            self.name,
            len(losses),
            first,
            last,
        )

    def _learn(self, teacher: PromptTeacher, batches: Iterable[Any], tokens: Mapping[str, Tensor]) -> list[Tensor]:
        """Change the tokens in place; the loss of every iteration."""
        names = list(dict.fromkeys(tap.name for _, tap in self.pairs))
        optimizer = torch.optim.Adam(tokens.values(), _RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
        losses: list[Tensor] = []
        for batch in islice(batches, self.iterations):
            with torch.enable_grad(), torch.autocast(self.prepared.device.type, enabled=False):
                loss = self._stage_one(teacher, batch, names, tokens)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            if len(losses) % _LOOK_EVERY == 0:
                self._check_finite(losses)
        return losses

    def _check_finite(self, losses: list[Tensor]) -> None:
        """Refuse losses that are no numbers; one look for many iterations, since on a GPU it waits for the device."""
        values = torch.stack(losses).tolist()
        for done, value in enumerate(values):
            if not isfinite(value):
                raise MethodError(
                    f"{self.name} cannot learn its masks: the teacher's loss became {value} after {done} iterations."
                )

    def _stage_one(self, teacher: PromptTeacher, batch: Any, names: list[str], tokens: Mapping[str, Tensor]) -> Tensor:
        features = teacher.features(batch, names)
        replaced, overlaps = {}, []
        for index, (_, tap) in enumerate(self.pairs):
            prefix = f"{index}."
            own = {name.removeprefix(prefix): t for name, t in tokens.items() if name.startswith(prefix)}
            replaced[tap.name], overlap = functional_call(self.prompts[index], own, (features[tap.name],))
            overlaps.append(overlap)
        return teacher.task_loss(batch, replaced) + torch.stack(overlaps).sum()

    def check_prepared(self) -> None:
        """Refuse to teach with tokens that nobody learnt.

        Raises:
            MethodError: the first stage did not run.
        """
        if not self._ready:
            self._ready = bool(self.prepared)
        if not self._ready:
            raise MethodError(
                f"{self.name} has not learnt its masks; call the distiller's prepare() before the first step."
            )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Restore tokens and helpers, also as a part of joined methods, and whether the tokens are learnt."""
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._ready = bool(self.prepared)  # looked up here, since on a GPU it waits for the device

    _ready = False
