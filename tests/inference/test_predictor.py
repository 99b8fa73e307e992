"""The predictor of a run folder: folds, devices, precision, and the way back to the native grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.core import arithmetic
from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import RunError
from medkd.core.geometry import Geometry
from medkd.core.run import FINAL
from medkd.inference import predictor as predictor_module
from medkd.inference.export import logits_to_labels
from medkd.inference.folder import predict_folder
from medkd.inference.predictor import Predictor, pick_device
from medkd.models.run import SegmentationRun
from medkd.preprocessing.pipeline import preprocess_case
from tests.inference.conftest import LABELS


def test_folds_are_averaged_as_logits(make_run: Callable[..., Path]) -> None:
    run = make_run(folds=2)
    image = torch.randn(1, 20, 24, 18)
    single = [Predictor.from_run(run, [f]).predict_preprocessed(image) for f in (0, 1)]
    both = Predictor.from_run(run)
    assert both.folds == ("0", "1")
    torch.testing.assert_close(both.predict_preprocessed(image), (single[0] + single[1]) / 2)
    assert (single[0] - single[1]).abs().max() > 0.01


@pytest.mark.parametrize("rank", [2, 3])
def test_a_case_comes_back_in_its_native_grid(make_run: Callable[..., Path], rank: int) -> None:
    predictor = Predictor.from_run(make_run(rank=rank, spacing=1.5), [0])
    geometry = Geometry.from_spacing((9, 30, 25), (2.0, 1.0, 1.1))
    image = np.random.default_rng(0).normal(size=(1, 9, 30, 25)).astype(np.float32)
    labels = predictor.predict_case(image, geometry, "a")
    assert labels.shape == (9, 30, 25) and set(np.unique(labels)) <= {0, 1, 2}
    prepared = preprocess_case("a", image, geometry, predictor.plan, predictor.configuration)
    logits = predictor.predict_preprocessed(prepared.image)
    assert logits.shape == (3, *prepared.image.shape[1:])
    assert (
        logits_to_labels(logits, prepared.properties, predictor.plan, predictor.configuration, LABELS) == labels
    ).all()


def centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.flatten(2).mean(2).view(*logits.shape[:2], *[1] * (logits.ndim - 2))


@pytest.mark.parametrize("rank", [2, 3])
def test_large_cases_are_labelled_while_the_window_slides(
    make_run: Callable[..., Path], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_run(make_run(rank=rank, spacing=1.5), [0], device="cpu")
    geometry = Geometry.from_spacing((40, 30, 25), (2.0, 1.0, 1.1))
    image = np.random.default_rng(0).normal(size=(1, 40, 30, 25)).astype(np.float32)
    own = predictor._forward
    # all classes equally often: random weights prefer one
    monkeypatch.setattr(predictor, "_forward", lambda x: centred(own(x)))
    expected = predictor.predict_case(image, geometry, "a")
    monkeypatch.setattr(predictor_module, "WHOLE_BYTES", 0)
    monkeypatch.setattr(predictor_module, "predict_logits", lambda *more, **settings: 1 / 0)
    found = predictor.predict_case(image, geometry, "a")
    assert len(np.unique(expected)) == 3 and np.mean(found != expected) < 1e-4


@pytest.mark.parametrize("whole", [0, 2**28])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, bad: float, whole: int
) -> None:
    predictor = Predictor.from_run(make_run(), [0], device="cpu", precision="bf16")
    own = predictor._forward
    monkeypatch.setattr(predictor, "_forward", lambda x: own(x).index_fill(1, torch.tensor([1]), bad))
    monkeypatch.setattr(predictor_module, "WHOLE_BYTES", whole)
    image = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    with pytest.raises(RunError, match=r"values that are not finite.* --precision fp32 instead of bf16") as caught:
        predictor.predict_case(image, Geometry.from_spacing((20, 20, 20), (1.0, 1.0, 1.0)), "a")
    assert "\n" not in str(caught.value)


def test_logits_that_need_all_slices_are_whole(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.from_run(make_run(), [0], device="cpu")
    monkeypatch.setattr(predictor_module, "WHOLE_BYTES", 0)
    monkeypatch.setattr(predictor_module, "predict_rows", lambda *more, **settings: 1 / 0)
    geometry, image = Geometry.from_spacing((20, 20, 20), (1.0, 1.0, 1.0)), np.ones((1, 20, 20, 20), np.float32)
    with pytest.raises(ZeroDivisionError):
        predictor.predict_case(image, geometry, "a")
    cubic = replace(predictor.configuration.resampling, logits_order=3)
    predictor.configuration = replace(predictor.configuration, resampling=cubic)
    assert predictor.predict_case(image, geometry, "a").shape == (20, 20, 20)


def test_wrong_arithmetic_is_told_before_a_prediction(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(folds=1)
    monkeypatch.setattr(arithmetic, "_wrong_maps", lambda training: () if training else ((2, 3, 4),))
    monkeypatch.setattr(arithmetic, "half_cost", lambda precision: 9.0)
    Predictor.from_run(run, device="cpu")
    assert not caplog.records
    Predictor.from_run(run, device="cpu", precision="bf16")
    assert "wrong in bf16 on this processor; use --precision fp32." in caplog.text
    assert "slow in bf16: a known convolution takes 9.0 times as long" in caplog.text
    assert Predictor.from_run(run, device="cpu", precision="auto").precision == "fp32"


def test_prediction_leaves_global_state_alone(make_run: Callable[..., Path]) -> None:
    run, state, threads = make_run(), torch.get_rng_state(), torch.get_num_threads()
    predictor = Predictor.from_run(run)
    predictor.predict_preprocessed(torch.randn(1, 16, 16, 16, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert all(not p.requires_grad for net in predictor.networks for p in net.parameters())


def test_bf16_is_near_fp32(make_run: Callable[..., Path]) -> None:
    run, image = make_run(folds=1), torch.randn(1, 20, 20, 20)
    full = Predictor.from_run(run, precision="fp32").predict_preprocessed(image)
    half = Predictor.from_run(run, precision="bf16").predict_preprocessed(image)
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.1


def test_folds_without_weights_are_refused_by_name(make_run: Callable[..., Path]) -> None:
    run = make_run(folds=2)
    with pytest.raises(RunError, match=r"fold 4 has no .*: 0, 1"):
        SegmentationRun(run).load([4])
    with pytest.raises(RunError, match="finish the training"):
        SegmentationRun(run).load(checkpoint="best")


def test_weights_of_another_network_are_refused(make_run: Callable[..., Path]) -> None:
    run = make_run(folds=1)
    path = run / "fold_0" / FINAL
    weights = load_checkpoint(path)["network"]
    weights.pop(next(iter(weights)))
    save_checkpoint(path, {"network": weights})
    with pytest.raises(RunError, match=r"fold_0.*does not fit the network 'plain_unet'"):
        Predictor.from_run(run)


@pytest.mark.parametrize("step", [0, -0.5, 1.5, float("nan")])
def test_a_step_that_is_no_share_of_the_patch_is_refused_before_any_case(
    make_run: Callable[..., Path], tmp_path: Path, step: float
) -> None:
    with pytest.raises(RunError, match="--step-size expects a share of the patch above 0 and at most 1, found"):
        predict_folder(tmp_path / "none", tmp_path / "out", make_run(folds=1), step_size=step, device="cpu")
    assert not (tmp_path / "out").exists()


def test_unknown_devices_are_refused() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(RunError, match="Unknown device 'gpu'"):
        pick_device("gpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(make_run: Callable[..., Path]) -> None:
    run, image = make_run(), torch.randn(1, 30, 20, 20)
    on_cpu = Predictor.from_run(run, device="cpu").predict_preprocessed(image)
    on_gpu = Predictor.from_run(run, device="cuda", precision="fp32").predict_preprocessed(image)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=1e-3)
