"""The training loop. It knows data, optimiser, schedule, precision, checkpoint, log and validation, and nothing of
KD.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import DivergedError
from medkd.core.features import Progress
from medkd.core.precision import Precision
from medkd.core.run import LATEST, Budget
from medkd.core.speed import USUAL, Speed
from medkd.training.hooks import Hook, KeepBest, ProgressBar, SaveFinal, SaveLatest, WatchTerms, WriteLog
from medkd.training.hooks.terms import MEASURED_STEPS, gradient_norms
from medkd.training.logs import EpochRecord
from medkd.training.ranks import current
from medkd.training.speed import compile_in_place, in_plain_order, laid_out, lay_out, switched

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ABSURD_NORM = 1e6
_STEP = 0.1  # what a milestone leaves of the learning rate
OTHER_FILES = (
    "The processes that train together stand at different epochs; give every one the same command and the same --root, "
    "on a file system that all see."
)
_ROUNDING = 1e-9  # of shares of the training, such as 8 of 12 epochs


@dataclass(frozen=True, kw_only=True)
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
        schedule: ``poly`` is the decay above, ``cosine`` takes ``(1 + cos πt) / 2`` for ``(1 − t)^power``, ``steps`` a
            tenth for every milestone before ``t``.
        milestones: shares of the training, of ``steps``.
        optimizer: ``sgd``, or ``adamw`` without momentum.
        speed: torch's switches.
    """

    budget: Budget
    device: torch.device
    precision: Precision = "fp32"
    save_every: int = 10
    momentum: float = 0.99
    weight_decay: float = 3e-5
    clip: float | None = 12.0
    power: float = 0.9
    nesterov: bool = True
    floor: float = 0.0
    per_step: bool = False
    warmup: int = 0
    schedule: Literal["poly", "cosine", "steps"] = "poly"
    milestones: tuple[float, ...] = ()
    optimizer: Literal["sgd", "adamw"] = "sgd"
    speed: Speed = USUAL

    def learning_rate(self, epoch: int, step: int) -> float:
        """The learning rate of a step, counted from the start of the training."""
        b = self.budget
        done = step / (b.epochs * b.iterations_per_epoch) if self.per_step else epoch / b.epochs
        rate = self.floor + (b.learning_rate - self.floor) * self._remaining(done)
        return rate * (step + 1) / self.warmup if step < self.warmup else rate

    def _remaining(self, done: float) -> float:
        """What is left of the learning rate at a share of the training."""
        if self.schedule == "cosine":
            return (1 + cos(pi * done)) / 2
        if self.schedule == "steps":
            passed = [share for share in self.milestones if done >= share - _ROUNDING]
            return float(_STEP ** len(passed))
        return float((1 - done) ** self.power)


class Trainer:
    """Trains a network in one fold folder.

    A subclass gives the batches, the loss terms and the validation; everything random in an epoch follows from the seed
    and the epoch, so that a continued run equals an unbroken one.

    Args:
        network: what is trained.
        settings: the loop's settings.
        folder: fold folder for checkpoints and logs.

    Attributes:
        epoch: finished epochs.
        best_score: the highest validation score so far.
        method_terms: names of the loss terms that a method added to the task's own.
        ranks: this process among those that train the network together, see :mod:`medkd.training.ranks`.
        by_sample: whether the loss is the mean over samples of what each alone would give, so that several processes
            take it apart.
        hooks: what happens beside the steps, in the first of several processes; replace or extend them before
            :meth:`fit`.
        looks_at_every_step: whether the host looks at every gradient's norm, or once in an epoch.
        score_name: what the validation's score is: ``Dice``, or ``AP`` of detectors.
    """

    score_name: ClassVar[Literal["Dice", "AP"]] = "Dice"

    def __init__(self, network: nn.Module, settings: LoopSettings, folder: Path) -> None:
        self.network = network.to(settings.device)
        self.settings = settings
        self.folder = folder
        self.epoch = 0
        self.best_score: float | None = None
        self.method_terms: frozenset[str] = frozenset()
        self.looks_at_every_step = settings.device.type == "cpu"
        self.ranks = current()
        self.by_sample = False
        self.hooks: Sequence[Hook] = self.usual_hooks() if self.ranks.first else []

    def usual_hooks(self) -> list[Hook]:
        """Progress bar, logs, warnings, and checkpoints; the best weights are written before the latest checkpoint."""
        log = WriteLog()
        watch = WatchTerms(partial(log.say, warning=True))
        return [ProgressBar(), log, watch, KeepBest(log.say), SaveLatest(self.settings.save_every), SaveFinal()]

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

    def networks(self) -> tuple[nn.Module, ...]:
        """Those that run in a step."""
        return (self.network,)

    def compiled(self) -> nn.Module:
        """The part of the network that ``--compile`` compiles: what is called, and looked into by nobody."""
        return self.network

    def prepare(self) -> None:
        """What is done once before the first step; called at the start and after a continued run's state was loaded."""

    def fit(self, *, resume: bool = False) -> None:
        """Train to the end of the budget; writes latest, best and final checkpoints and the logs.

        Raises:
            DivergedError: the loss is no longer finite.
        """
        try:
            self.start(resume=resume)
            batches = self.batches(self.first_step)
            while self.epoch < self.settings.budget.epochs:
                self.begin_epoch()
                for _ in range(self.settings.budget.iterations_per_epoch):
                    self.step(next(batches))
                self.end_epoch()
            self.finish()
        finally:
            for hook in self.hooks:
                hook.close()

    @property
    def first_step(self) -> int:
        """Number of the first step of the current epoch, counted from the start of the training."""
        return self.epoch * self.settings.budget.iterations_per_epoch

    def start(self, *, resume: bool) -> None:
        """Make the optimiser, take over the state of an interrupted run, and tell the hooks.

        :meth:`start`, :meth:`begin_epoch`, :meth:`step`, :meth:`end_epoch` and :meth:`finish` are what :meth:`fit` is
        made of, for those who train several networks side by side.
        """
        lay_out(self.networks(), self.settings.speed)
        self._optimizer = self.make_optimizer()
        self._scaler = torch.amp.GradScaler(self.settings.device.type, enabled=self._scaled)
        if resume and (self.folder / LATEST).exists():
            self._load_latest()
        self.ranks.agree(str(self.epoch), self.settings.device, OTHER_FILES)  # and nobody writes before all have read
        self.folder.mkdir(parents=True, exist_ok=True)
        for hook in self.hooks:
            hook.before_train(self)
        self.prepare()
        self.ranks.equalise((self.network, self.helpers()))
        if self.settings.speed.compile:
            compile_in_place(self.compiled())

    def begin_epoch(self) -> None:
        """Everything random in an epoch follows from the seed and its number."""
        self._begun = time.monotonic()
        self._index = 0
        self._totals: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}
        self._highest: Tensor | None = None
        torch.manual_seed((self.settings.budget.seed << 20) + self.epoch)
        self.network.train()

    def step(self, batch: Any) -> dict[str, Tensor]:
        """One optimiser step of the current epoch; returns the detached loss terms."""
        epochs = self.settings.budget.epochs
        progress = Progress(self.epoch, epochs, self.first_step + self._index)
        logged = self._index == 0 and self.epoch % max(1, epochs // 20) == 0
        watched = self.epoch == 0 and self._index < MEASURED_STEPS and bool(self.method_terms)
        with switched(self.settings.speed):
            terms, norms = self._optimise(batch, progress, measure=logged or watched)
        if logged:
            self._norms = norms
        for name, term in terms.items():
            self._totals[name] = self._totals.get(name, 0.0) + term
        self._index += 1
        for hook in self.hooks:
            hook.after_step(self, terms, norms)
        return terms

    def end_epoch(self, *, seconds: float | None = None) -> EpochRecord:
        """Validate, and tell the hooks what the epoch gave.

        Args:
            seconds: that it took; None measures from its beginning.
        """
        means = {name: float(total) / self._index for name, total in self._totals.items()}
        self._check_finite(means)
        if self._highest is not None:
            self._refuse_absurd(self._highest)
        self.network.eval()
        with switched(self.settings.speed):
            loss, score = self.validate()
        is_dice = self.score_name == "Dice"
        record = EpochRecord(
            epoch=self.epoch,
            train_loss=sum(means.values()),
            validation_loss=loss,
            validation_dice=score if is_dice else None,
            learning_rate=self.settings.learning_rate(self.epoch, self.first_step),
            seconds=time.monotonic() - self._begun if seconds is None else seconds,
            terms=means,
            gradient_norms=self._norms,
            validation_score=None if is_dice else score,
        )
        self.epoch += 1
        for hook in self.hooks:
            hook.after_epoch(self, record)
        return record

    def finish(self) -> None:
        """Tell the hooks that the last epoch is over; the final weights are written."""
        for hook in self.hooks:
            hook.after_train(self)

    def _optimise(self, batch: Any, progress: Progress, *, measure: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One optimiser step; returns the detached terms and, when asked, each term's gradient norm."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(progress.epoch, progress.step)
        self._optimizer.zero_grad(set_to_none=True)
        terms = self.training_terms(batch, progress)
        norms = self._gradient_norms(terms) if measure and len(terms) > 1 else {}
        loss = torch.stack(list(terms.values())).sum()
        self._scaler.scale(loss).backward()
        self.ranks.share_gradients(self.network, self.helpers(), by_sample=self.by_sample)
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._trained(), self.settings.clip or float("inf"))
        self._check_gradient(norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        seen = {name: term.detach() for name, term in terms.items()}
        return self.ranks.mean_terms(seen) if self.by_sample else seen, norms

    def _gradient_norms(self, terms: dict[str, Tensor]) -> dict[str, float]:
        weights = [p for p in self.network.parameters() if p.requires_grad]
        return gradient_norms(terms, weights, partial(self.ranks.sum_all, mean=self.by_sample))

    def laid_out(self, images: Tensor) -> Tensor:
        """Images in the order that the network's weights have."""
        return laid_out(images, self.settings.speed)

    def own_chance(self, progress: Progress) -> AbstractContextManager[None]:
        """The context of the network's forward pass, see :meth:`medkd.training.ranks.Ranks.own_chance`."""
        return self.ranks.own_chance(self.settings.budget.seed, progress.step, self.settings.device)

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

    def make_optimizer(self) -> torch.optim.Optimizer:
        """SGD or AdamW on everything that is trained."""
        s = self.settings
        if s.optimizer == "adamw":
            return torch.optim.AdamW(self._trained(), s.budget.learning_rate, weight_decay=s.weight_decay)
        return torch.optim.SGD(
            self._trained(), s.budget.learning_rate, s.momentum, weight_decay=s.weight_decay, nesterov=s.nesterov
        )

    def _check_gradient(self, norm: Tensor) -> None:
        """Stop at an absurd gradient: on the CPU before it reaches the weights, where looking at it costs nothing;
        elsewhere at the end of the epoch, before anything of it is saved, since a look would wait for the device.

        Some CPU builds of torch return uninitialised memory as the bf16 weight gradient of convolutions on very small
        feature maps; clipping would turn it into a harmless looking step in a random direction. Steps that are not
        finite fp16's scaler skips by itself.
        """
        if self.looks_at_every_step:
            self._refuse_absurd(norm)
            return
        seen = norm.detach()
        if self._scaled:
            seen = seen.nan_to_num(nan=0.0, posinf=0.0)
        self._highest = seen if self._highest is None else torch.maximum(self._highest, seen)

    def _refuse_absurd(self, norm: Tensor) -> None:
        if not float(norm) < _ABSURD_NORM:
            hint = "use --precision fp32" if self.settings.precision == "bf16" else "lower --learning-rate"
            raise DivergedError(
                f"The gradient's norm is {float(norm):.3g} in epoch {self.epoch}, which no loss here explains; {hint}."
            )

    def _check_finite(self, means: dict[str, float]) -> None:
        bad = [name for name, value in means.items() if not isfinite(value)]
        if bad:
            raise DivergedError(
                f"The loss term '{bad[0]}' became infinite or NaN in epoch {self.epoch}; continue from the last "
                "checkpoint with a lower --learning-rate, or with --precision bf16 or fp32."
            )

    def save_weights(self, name: str) -> None:
        """Write the network's weights alone, as prediction reads them, under this name in the fold folder; of several
        processes the first one does.
        """
        if not self.ranks.first:
            return
        weights = in_plain_order(self.network.state_dict())
        content = {"schema": 1, "epoch": self.epoch, "score": self.best_score, "network": weights}
        save_checkpoint(self.folder / name, content)

    def save_latest(self) -> None:
        """Write everything that a continued run needs, and tell the hooks; of several processes the first one does."""
        if not self.ranks.first:
            return
        helpers = self.helpers()
        state = {
            "schema": 1,
            "epoch": self.epoch,
            "score": self.best_score,
            "network": in_plain_order(self.network.state_dict()),
            "method": helpers.state_dict() if helpers else {},
            "optimizer": in_plain_order(self._optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
            "hooks": {hook.name: hook.state() for hook in self.hooks if hook.name},
        }
        save_checkpoint(self.folder / LATEST, state)
        for hook in self.hooks:
            hook.after_save(self)

    def _load_latest(self) -> None:
        state = load_checkpoint(self.folder / LATEST)
        self.network.load_state_dict(state["network"])
        helpers = self.helpers()
        if helpers:
            helpers.load_state_dict(state["method"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.epoch, self.best_score = state["epoch"], state["score"]
        for hook in self.hooks:
            if hook.name in state.get("hooks", {}):
                hook.load_state(state["hooks"][hook.name])
