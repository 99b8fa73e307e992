"""Saving, logs, best weights and warnings hang on the loop, and others can be hung beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.core.checkpoint import load_checkpoint
from medkd.core.features import Progress
from medkd.core.run import BEST, FINAL, LATEST, Budget
from medkd.training.hooks import Hook
from medkd.training.logs import EpochRecord, read_log
from medkd.training.trainer import LoopSettings, Trainer


class Line(Trainer):
    """Fits a line; ``scores`` are those of its epochs, ``extra`` a term that a method adds, of the network's output."""

    def __init__(self, folder: Path, scores: list[float], extra: Any = None, **settings: Any) -> None:
        torch.manual_seed(0)
        budget = Budget(len(scores), 4, 2, 1e-2, 7)
        values: dict[str, Any] = {"save_every": 1, **settings}
        super().__init__(nn.Linear(3, 1), LoopSettings(budget=budget, device=torch.device("cpu"), **values), folder)
        self.scores, self.extra = scores, extra

    def batches(self, first_step: int) -> Iterator[Tensor]:
        for step in range(first_step, 10_000):
            yield torch.randn(8, 3, generator=torch.Generator().manual_seed(step))

    def training_terms(self, batch: Tensor, progress: Progress) -> dict[str, Tensor]:
        out = self.network(batch)
        terms = {"fit": (out - 1).square().mean()}
        if self.extra is not None:
            self.method_terms = frozenset({"kd.term"})
            terms["kd.term"] = self.extra(out)
        return terms

    def validate(self) -> tuple[float | None, float | None]:
        return 1.0, self.scores[self.epoch]


class Average(Hook):
    """An exponential average of the weights, kept over a kill."""

    name = "average"

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def before_train(self, trainer: Trainer) -> None:
        if not self.weights:
            self.weights = {name: value.clone() for name, value in trainer.network.state_dict().items()}

    def after_step(self, trainer: Trainer, terms: Mapping[str, Tensor], norms: Mapping[str, float]) -> None:
        for name, value in trainer.network.state_dict().items():
            self.weights[name] = 0.9 * self.weights[name] + 0.1 * value

    def state(self) -> dict[str, Any]:
        return dict(self.weights)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.weights = dict(state)


class Calls(Hook):
    """Writes down when it is called; stops the training after an epoch."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[str] = []
        self.stop_after = stop_after

    def before_train(self, trainer: Trainer) -> None:
        self.calls.append("before")

    def after_step(self, trainer: Trainer, terms: Mapping[str, Tensor], norms: Mapping[str, float]) -> None:
        self.calls.append("step")

    def after_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        self.calls.append(f"epoch {record.epoch}")
        if record.epoch == self.stop_after:
            raise KeyboardInterrupt

    def after_save(self, trainer: Trainer) -> None:
        self.calls.append("saved")

    def after_train(self, trainer: Trainer) -> None:
        self.calls.append("after")

    def close(self) -> None:
        self.calls.append("close")


def test_a_hook_is_called_at_every_station_and_closed_after_an_error(tmp_path: Path) -> None:
    trainer, calls = Line(tmp_path, [0.1, 0.2]), Calls()
    trainer.hooks = [*trainer.hooks, calls]
    trainer.fit()
    steps = ["step"] * 4
    assert calls.calls == ["before", *steps, "saved", "epoch 0", *steps, "saved", "epoch 1", "after", "close"]
    trainer, calls = Line(tmp_path / "b", [0.1, 0.2]), Calls(stop_after=0)
    trainer.hooks = [*trainer.hooks, calls]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert calls.calls[-2:] == ["epoch 0", "close"] and not (tmp_path / "b" / FINAL).exists()


def test_an_average_of_the_weights_needs_no_change_of_the_loop_and_survives_a_kill(tmp_path: Path) -> None:
    found = []
    for name, stops in (("whole", [None]), ("broken", [1, None])):
        for stop in stops:
            trainer, average = Line(tmp_path / name, [0.1] * 4), Average()
            trainer.hooks = [average, *trainer.hooks, Calls(stop)]
            if stop is None:
                trainer.fit(resume=True)
            else:
                with pytest.raises(KeyboardInterrupt):
                    trainer.fit()
        found.append(average.weights)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert not torch.equal(found[0]["weight"], trainer.network.state_dict()["weight"])


def test_a_training_without_hooks_writes_nothing(tmp_path: Path) -> None:
    trainer = Line(tmp_path, [0.5])
    trainer.hooks = []
    trainer.fit()
    assert list(tmp_path.iterdir()) == []


def test_a_score_of_zero_is_no_news_and_an_equal_one_neither(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Line(tmp_path, [0.0, 0.0, 0.3, 0.3, 0.2]).fit()
    news = [record.getMessage() for record in caplog.records if "new best" in record.getMessage()]
    assert news == ["new best validation Dice 0.3000"]
    assert load_checkpoint(tmp_path / BEST)["epoch"] == 3


def test_an_untrained_network_has_best_weights_too(tmp_path: Path) -> None:
    Line(tmp_path, [0.0, 0.0]).fit()
    assert load_checkpoint(tmp_path / BEST)["epoch"] == 1


def test_the_latest_checkpoint_is_written_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    trainer, calls = Line(tmp_path, [0.1] * 5, save_every=2), Calls()
    trainer.hooks = [*trainer.hooks, calls]
    trainer.fit()
    assert calls.calls.count("saved") == 3 and load_checkpoint(tmp_path / LATEST)["epoch"] == 5


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (lambda out: 0 * out.mean(), "'kd.term' was 0 on average in the first epoch"),
        (lambda out: 1e-6 * out.square().mean(), "'kd.term' was "),
        (lambda out: out.detach().square().mean(), "'kd.term' had no gradient for the student in the first 3 steps"),
        (lambda out: (0 * out + 3).mean(), "'kd.term' had no gradient"),
    ],
)
def test_a_term_that_teaches_nothing_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extra: Any, words: str
) -> None:
    Line(tmp_path, [0.1] * 3, extra).fit()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and words in warnings[0] and "\n" not in warnings[0]
    assert warnings[0] in (tmp_path / "training_log.txt").read_text()


def test_terms_that_teach_are_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Line(tmp_path, [0.1] * 3, lambda out: 0.1 * out.square().mean()).fit()
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [bool(record.gradient_norms) for record in read_log(tmp_path)] == [True, True, True]


def test_the_bar_stays_out_of_redirected_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a command that ran before in this process left a handler that writes to a stream that is closed by now
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    Line(tmp_path, [0.1]).fit()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
