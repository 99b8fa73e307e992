"""The training loop. It knows data, optimiser, schedule, precision, checkpoint, log and validation, and nothing of
KD.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import RunError
from medkd.core.features import Progress
from medkd.core.run import BEST, FINAL, LATEST, Budget
from medkd.training.logs import EpochRecord, RunLog

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ABSURD_NORM = 1e6
_SAVE_SECONDS = 300.0  # a killed run loses at most about five minutes, whatever save_every says


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs; the constants are nnU-Net's.

    Attributes:
        budget: epochs, steps per epoch, learning rate, seed.
        device: where the network lives.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        save_every: epochs between latest checkpoints.
        momentum: of SGD.
        weight_decay: L2 penalty.
        clip: largest gradient norm; None does not clip.
        power: of the polynomial decay ``floor + (lr − floor) · (1 − t)^power``, t the share of the training that is
            done.
        nesterov: Nesterov's form of the momentum.
        floor: learning rate at the end.
        per_step: change the learning rate with every step instead of every epoch.
        warmup: steps over which the learning rate rises linearly to what it would be without.
    """

    budget: Budget
    device: torch.device
    precision: str = "fp32"
    save_every: int = 10
    momentum: float = 0.99
    weight_decay: float = 3e-5
    clip: float | None = 12.0
    power: float = 0.9
    nesterov: bool = True
    floor: float = 0.0
    per_step: bool = False
    warmup: int = 0

    def learning_rate(self, epoch: int, step: int) -> float:
        """The learning rate of a step, counted from the start of the training."""
        b = self.budget
        done = step / (b.epochs * b.iterations_per_epoch) if self.per_step else epoch / b.epochs
        rate = self.floor + (b.learning_rate - self.floor) * (1 - done) ** self.power
        return rate * (step + 1) / self.warmup if step < self.warmup else rate


class Trainer:
    """Trains a network in one fold folder.

    A subclass gives the batches, the loss terms and the validation; everything random in an epoch follows from the seed
    and the epoch, so that a continued run equals an unbroken one.

    Args:
        network: what is trained.
        settings: the loop's settings.
        folder: fold folder for checkpoints and logs.

    Attributes:
        score_name: what the validation's score is: ``Dice``, or ``AP`` of detectors.
    """

    score_name: ClassVar[Literal["Dice", "AP"]] = "Dice"

    def __init__(self, network: nn.Module, settings: LoopSettings, folder: Path) -> None:
        self.network = network.to(settings.device)
        self.settings = settings
        self.folder = folder
        self.epoch = 0
        self.best_score: float | None = None

    def batches(self, first_step: int) -> Iterator[Any]:
        """The training batches from a step to the end of the run."""
        raise NotImplementedError

    def training_terms(self, batch: Any, progress: Progress) -> dict[str, Tensor]:
        """The weighted loss terms of one batch; their sum is minimised."""
        raise NotImplementedError

    def validate(self) -> tuple[float | None, float | None]:
        """Validation loss and score (higher is better), or None for either where there is nothing to validate on."""
        raise NotImplementedError

    def helpers(self) -> nn.Module | None:
        """A module that is trained with the network but is not part of it."""
        return None

    def prepare(self) -> None:
        """What is done once before the first step; called at the start and after a continued run's state was loaded."""

    def fit(self, *, resume: bool = False) -> None:
        """Train to the end of the budget; writes latest, best and final checkpoints and the logs.

        Raises:
            RunError: the loss is no longer finite.
        """
        budget = self.settings.budget
        self._optimizer = self._make_optimizer()
        self._scaler = torch.amp.GradScaler(self.settings.device.type, enabled=self._scaled)
        if resume and (self.folder / LATEST).exists():
            self._load_latest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        log = RunLog(self.folder, self.epoch)
        total = budget.epochs * budget.iterations_per_epoch
        batches = self.batches(self.epoch * budget.iterations_per_epoch)
        saved = time.monotonic()
        with tqdm(total=total, initial=self.epoch * budget.iterations_per_epoch, unit="step", disable=None) as bar:
            while self.epoch < budget.epochs:
                record = self._run_epoch(batches, bar)
                self.epoch += 1
                log.add(record)
                self._keep_best(record, log)
                if (
                    self.epoch % self.settings.save_every == 0
                    or self.epoch == budget.epochs
                    or time.monotonic() - saved > _SAVE_SECONDS
                ):
                    self._save_latest()
                    log.draw()
                    saved = time.monotonic()
        self._save_weights(FINAL)
        log.close()

    def _run_epoch(self, batches: Iterator[Any], bar: tqdm) -> EpochRecord:
        budget, begun = self.settings.budget, time.monotonic()
        torch.manual_seed((budget.seed << 20) + self.epoch)
        rate = self.settings.learning_rate(self.epoch, self.epoch * budget.iterations_per_epoch)
        self.network.train()
        totals: dict[str, Tensor] = {}
        norms: dict[str, float] = {}
        for index in range(budget.iterations_per_epoch):
            progress = Progress(self.epoch, budget.epochs, self.epoch * budget.iterations_per_epoch + index)
            measure = index == 0 and self.epoch % max(1, budget.epochs // 20) == 0
            terms, measured = self._step(next(batches), progress, measure)
            norms.update(measured)
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term
            bar.update()
        means = {name: float(value) / budget.iterations_per_epoch for name, value in totals.items()}
        bar.set_postfix_str(f"epoch {self.epoch + 1}/{budget.epochs} loss {sum(means.values()):.3f}")
        self._check_finite(means)
        self.network.eval()
        loss, score = self.validate()
        dice, precision = (score, None) if self.score_name == "Dice" else (None, score)
        return EpochRecord(
            self.epoch, sum(means.values()), loss, dice, rate, time.monotonic() - begun, means, norms, precision
        )

    def _step(self, batch: Any, progress: Progress, measure: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One optimiser step; returns the detached terms and, when asked, each term's gradient norm."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(progress.epoch, progress.step)
        self._optimizer.zero_grad(set_to_none=True)
        terms = self.training_terms(batch, progress)
        norms = self._gradient_norms(terms) if measure and len(terms) > 1 else {}
        loss = torch.stack(list(terms.values())).sum()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._trained(), self.settings.clip or float("inf"))
        self._check_gradient(norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return {name: term.detach() for name, term in terms.items()}, norms

    def _gradient_norms(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """How hard each term pulls at the network's weights: terms of very different norm are badly scaled."""
        weights = [p for p in self.network.parameters() if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            grads = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            norms[name] = float(
                torch.stack([g.float().square().sum() for g in grads if g is not None] or [torch.zeros(())])
                .sum()
                .sqrt()
            )
        return norms

    def autocast(self) -> torch.autocast:
        """The autocast context of the chosen precision."""
        dtype = _DTYPES.get(self.settings.precision)
        return torch.autocast(self.settings.device.type, dtype=dtype, enabled=dtype is not None)

    @property
    def _scaled(self) -> bool:
        return self.settings.precision == "fp16" and self.settings.device.type == "cuda"

    def _trained(self) -> list[nn.Parameter]:
        helpers = self.helpers()
        return [p for m in (self.network, *([helpers] if helpers else [])) for p in m.parameters() if p.requires_grad]

    def _make_optimizer(self) -> torch.optim.SGD:
        s = self.settings
        return torch.optim.SGD(
            self._trained(), s.budget.learning_rate, s.momentum, weight_decay=s.weight_decay, nesterov=s.nesterov
        )

    def _check_gradient(self, norm: Tensor) -> None:
        """Stop at an absurd gradient on the CPU, where looking at it costs nothing (fp16's scaler skips such steps by
        itself).

        Some CPU builds of torch return uninitialised memory as the bf16 weight gradient of convolutions on very small
        feature maps; clipping would turn it into a harmless looking step in a random direction.
        """
        if self.settings.device.type == "cpu" and not float(norm) < _ABSURD_NORM:
            hint = "use --precision fp32" if self.settings.precision == "bf16" else "lower --learning-rate"
            raise RunError(
                f"The gradient's norm is {float(norm):.3g} in epoch {self.epoch}, which no loss here explains; {hint}."
            )

    def _check_finite(self, means: dict[str, float]) -> None:
        bad = [name for name, value in means.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise RunError(
                f"The loss term '{bad[0]}' became infinite or NaN in epoch {self.epoch}; continue from the last "
                "checkpoint with a lower "
                "--learning-rate, or with --precision bf16 or fp32."
            )

    def _keep_best(self, record: EpochRecord, log: RunLog) -> None:
        score = record.validation_score if record.validation_dice is None else record.validation_dice
        if score is not None and (self.best_score is None or score > self.best_score):
            self.best_score = score
            self._save_weights(BEST)
            log.say(f"new best validation {self.score_name} {self.best_score:.4f}")

    def _save_weights(self, name: str) -> None:
        content = {"schema": 1, "epoch": self.epoch, "score": self.best_score, "network": self.network.state_dict()}
        save_checkpoint(self.folder / name, content)

    def _save_latest(self) -> None:
        helpers = self.helpers()
        state = {
            "schema": 1,
            "epoch": self.epoch,
            "score": self.best_score,
            "network": self.network.state_dict(),
            "method": helpers.state_dict() if helpers else {},
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        save_checkpoint(self.folder / LATEST, state)

    def _load_latest(self) -> None:
        state = load_checkpoint(self.folder / LATEST)
        self.network.load_state_dict(state["network"])
        helpers = self.helpers()
        if helpers:
            helpers.load_state_dict(state["method"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.epoch, self.best_score = state["epoch"], state["score"]
