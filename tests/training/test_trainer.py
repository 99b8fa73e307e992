from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.core.features import Progress
from medkd.core.run import BEST, FINAL, LATEST, Budget
from medkd.training import logs
from medkd.training.logs import LOG_FILE, PICTURE, read_log
from medkd.training.trainer import LoopSettings, Trainer


class _Line(Trainer):
    """Fits a line; dropout makes it depend on torch's generator, the helper is trained but not part of the network."""

    def __init__(
        self,
        folder: Path,
        epochs: int = 6,
        stop_after: int | None = None,
        poison: int | None = None,
        poison_with: float = float("nan"),
    ) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Dropout(0.3), nn.Linear(3, 1))
        self.helper = nn.Linear(1, 1)
        self.seen: list[Progress] = []
        self._stop_after, self._poison, self._poison_with = stop_after, poison, poison_with
        super().__init__(
            network,
            LoopSettings(budget=Budget(epochs, 4, 2, 1e-2, 7), device=torch.device("cpu"), save_every=1),
            folder,
        )

    def helpers(self) -> nn.Module:
        return self.helper

    def batches(self, first_step: int) -> Iterator[Any]:
        for step in range(first_step, 10_000):
            yield torch.randn(8, 3, generator=torch.Generator().manual_seed(step))

    def training_terms(self, batch: Any, progress: Progress) -> dict[str, Tensor]:
        self.seen.append(progress)
        if self._stop_after is not None and progress.step >= self._stop_after:
            raise KeyboardInterrupt
        out = self.helper(self.network(batch))
        factor = self._poison_with if progress.step == self._poison else 1.0
        return {"fit": factor * (out - batch.sum(1, keepdim=True)).square().mean(), "small": 1e-3 * out.abs().mean()}

    def validate(self) -> tuple[float | None, float | None]:
        return 1.0, -abs(self.epoch - 3.0)


@pytest.mark.parametrize("killed_at", [4, 9, 15, 23])
def test_a_killed_and_continued_run_equals_an_unbroken_one_bit_for_bit(tmp_path: Path, killed_at: int) -> None:
    unbroken = _Line(tmp_path / "a")
    unbroken.fit()
    with pytest.raises(KeyboardInterrupt):
        _Line(tmp_path / "b", stop_after=killed_at).fit()
    continued = _Line(tmp_path / "b")
    continued.fit(resume=True)
    for module in ("network", "helper"):
        a, b = getattr(unbroken, module).state_dict(), getattr(continued, module).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    timeless = [
        [(r.epoch, r.train_loss, r.learning_rate, r.gradient_norms) for r in read_log(tmp_path / f)] for f in "ab"
    ]
    assert timeless[0] == timeless[1]
    assert continued.seen[0].step == killed_at // 4 * 4


@pytest.mark.parametrize(("pause", "expected"), [(0.0, [1, 2, 3, 4, 5, 6, 6]), (1e9, [6])])
def test_curves_are_drawn_after_a_pause_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float, expected: list[int]
) -> None:
    """Of short epochs, drawing each would take longer than the steps."""
    drawn: list[int] = []
    monkeypatch.setattr(logs, "_PAUSE", pause)
    monkeypatch.setattr(logs, "_draw", lambda records, path: drawn.append(len(records)))
    _Line(tmp_path).fit()
    assert drawn == expected


def test_helpers_are_trained_and_saved_for_continuing_but_never_exported(tmp_path: Path) -> None:
    trainer = _Line(tmp_path)
    before = trainer.helper.weight.clone()
    trainer.fit()
    assert not torch.equal(before, trainer.helper.weight)
    assert torch.equal(load_checkpoint(tmp_path / LATEST)["method"]["weight"], trainer.helper.weight)
    for name in (FINAL, BEST):
        content = load_checkpoint(tmp_path / name)
        assert "method" not in content and set(content["network"]) == set(trainer.network.state_dict())


def test_best_is_the_epoch_with_the_highest_score(tmp_path: Path) -> None:
    _Line(tmp_path).fit()
    assert load_checkpoint(tmp_path / BEST)["epoch"] == 4 and load_checkpoint(tmp_path / BEST)["score"] == 0


def test_learning_rate_decays_by_the_poly_rule_and_logs_are_left(tmp_path: Path) -> None:
    _Line(tmp_path).fit()
    records = read_log(tmp_path)
    assert [r.learning_rate for r in records] == pytest.approx([1e-2 * (1 - e / 6) ** 0.9 for e in range(6)])
    assert (tmp_path / PICTURE).stat().st_size > 1000 and list((tmp_path / "tensorboard").iterdir())
    assert records[0].train_loss == pytest.approx(sum(records[0].terms.values()))


def test_gradient_norms_are_those_of_each_term_alone(tmp_path: Path) -> None:
    trainer = _Line(tmp_path, epochs=1)
    trainer.fit()
    fresh = _Line(tmp_path / "x")
    torch.manual_seed(7 << 20)
    terms = fresh.training_terms(next(fresh.batches(0)), Progress())
    grads = torch.autograd.grad(terms["fit"], list(fresh.network.parameters()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    assert read_log(tmp_path)[0].gradient_norms["fit"] == pytest.approx(float(norm), rel=1e-5)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nan in epoch 2"):
        _Line(tmp_path, poison=9).fit()
    assert load_checkpoint(tmp_path / LATEST)["epoch"] == 2


def test_an_absurd_gradient_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    trainer = _Line(tmp_path, poison=9, poison_with=1e9)
    with pytest.raises(RunError, match="--learning-rate"):
        trainer.fit()
    assert all(p.abs().max() < 10 for p in trainer.network.parameters())


@pytest.mark.parametrize("poison_with", [1e9, float("nan")])
def test_an_absurd_gradient_that_nobody_looked_at_is_not_saved(tmp_path: Path, poison_with: float) -> None:
    """As on a GPU, where the norms of an epoch are looked at together."""
    trainer = _Line(tmp_path, poison=9, poison_with=poison_with)
    trainer.looks_at_every_step = False
    with pytest.raises(RunError, match="in epoch 2"):
        trainer.fit()
    assert load_checkpoint(tmp_path / LATEST)["epoch"] == 2


def test_a_log_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    _Line(tmp_path).fit()
    text = (tmp_path / LOG_FILE).read_text()
    (tmp_path / LOG_FILE).write_text(text[:-30])
    assert len(read_log(tmp_path)) == 5
