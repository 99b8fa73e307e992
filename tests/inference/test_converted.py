"""Models of torch in other engines: the same label maps, one conversion, and no engine that computes something else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="engines other than torch need the extra export")
pytest.importorskip("onnxruntime", reason="engines other than torch need the extra export")
pytest.importorskip("openvino", reason="engines other than torch need the extra export")

import medkd
from medkd.core.errors import DataError, MedkdError, RunError
from medkd.core.files import read_json, write_json
from medkd.inference import converted
from medkd.inference.folder import predict_folder
from medkd.inference.inputs import SETTINGS_FILE
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_label
from medkd.models.weights import mean_logits
from medkd.runtime.engines import Engine


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of this module, which make the same networks."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    yield


def networks_in(cache: Path) -> list[Path]:
    return sorted((cache / "medkd" / "engines").glob("*.onnx"))


def other_numbers(monkeypatch: pytest.MonkeyPatch, *engines: str) -> None:
    """These engines answer a hundredth too much."""
    own = converted.open_engine

    def opened(network: Path, engine: str, threads: int | None) -> Engine:
        run = own(network, engine, threads)  # type: ignore[arg-type]
        return (lambda batch: 1.01 * run(batch)) if engine in engines else run

    monkeypatch.setattr(converted, "open_engine", opened)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "auto"])
def test_label_maps_are_those_of_torch_and_the_engine_is_noted(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path, cache: Path, engine: str
) -> None:
    run = make_run(folds=2)
    shared = {"device": "cpu", "save_probabilities": True}
    predict_folder(scans, tmp_path / "torch", run, engine="torch", **shared)  # type: ignore[arg-type]
    threads = None if engine == "auto" else 1
    done = predict_folder(scans, tmp_path / "out", run, engine=engine, threads=threads, **shared)  # type: ignore[arg-type]
    assert len(done.predicted) == 3
    for case in done.predicted:
        ours, theirs = (read_label(tmp_path / name / f"{case}.nii.gz").array for name in ("torch", "out"))
        assert np.mean(ours != theirs) < 1e-3
        first, second = (np.load(tmp_path / name / f"{case}.npz")["probabilities"] for name in ("torch", "out"))
        assert np.abs(first.astype(float) - second.astype(float)).max() < 2e-3
    settings = read_json(tmp_path / "out" / SETTINGS_FILE)
    computed = settings["engine"]
    assert computed in (("torch", "openvino") if engine == "auto" else (engine,))
    assert settings["engine_version"] == version(computed)
    assert read_json(tmp_path / "torch" / SETTINGS_FILE)["engine"] == "torch"
    assert len(networks_in(cache)) == 1  # all three engines: converted once


def test_a_kept_network_is_not_converted_again_and_others_are(
    make_run: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randn(1, 20, 24, 18)
    expected = Predictor.from_run(make_run(folds=2), device="cpu").predict_preprocessed(image)
    Predictor.from_run(make_run(folds=2), device="cpu", engine="onnxruntime")

    def refused(*arguments: object) -> None:
        raise RunError("converted again")

    monkeypatch.setattr(converted, "export_onnx", refused)
    found = Predictor.from_run(make_run(folds=2), device="cpu", engine="openvino").predict_preprocessed(image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(RunError, match="converted again"):  # other weights
        Predictor.from_run(make_run(folds=2), [0], device="cpu", engine="openvino")


@pytest.mark.parametrize("content", [b"", b"\x08\x0a\x12", None])
def test_a_damaged_or_foreign_network_in_the_cache_is_converted_anew(
    make_run: Callable[..., Path], cache: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(folds=2)
    Predictor.from_run(run, device="cpu", engine="onnxruntime")
    (kept,) = networks_in(cache)
    right = kept.read_bytes()
    if content is None:  # sound, and of other weights: only the comparison with torch can tell
        import onnx

        model = onnx.load_from_string(right)
        tensor = next(entry for entry in model.graph.initializer if len(entry.dims) == 5)
        tensor.raw_data = np.frombuffer(tensor.raw_data, np.float32)[::-1].tobytes()
        content = model.SerializeToString()
    kept.write_bytes(content)
    monkeypatch.setattr(converted, "export_onnx", lambda networks, channels, patch, path: path.write_bytes(right))
    assert Predictor.from_run(run, device="cpu", engine="onnxruntime").engine_name == "onnxruntime"
    assert networks_in(cache) == [kept] and kept.read_bytes() == right


def test_an_engine_that_computes_something_else_is_not_used(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(folds=2)
    Predictor.from_run(run, device="cpu", engine="onnxruntime")
    monkeypatch.setattr(converted, "export_onnx", lambda *more: None)  # the network is there
    monkeypatch.setattr(converted._Conversion, "_known", lambda self: None)
    monkeypatch.setattr(converted._Conversion, "_is_faster", lambda self, found: True)
    other_numbers(monkeypatch, "openvino")
    with pytest.raises(
        RunError, match=r"--engine openvino is of no use here, --engine torch is: .*differ by [0-9.]+ % of their spread"
    ):
        Predictor.from_run(run, device="cpu", engine="openvino")
    assert Predictor.from_run(run, device="cpu", engine="auto").engine_name == "onnxruntime"
    other_numbers(monkeypatch, "onnxruntime")
    with caplog.at_level(logging.WARNING):
        assert Predictor.from_run(run, device="cpu", engine="auto").engine_name == "torch"
    said = [
        record.message
        for record in caplog.records
        if record.name == converted.__name__ and record.levelname == "WARNING"
    ]
    assert len(said) == 1 and said[0].startswith(
        "torch predicts, since no other engine can: openvino computes other logits"
    )


def test_an_engine_that_is_not_installed_is_one_sentence(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    run = make_run(folds=2)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(converted._Conversion, "_known", lambda self: None)
    monkeypatch.setattr(converted._Conversion, "_is_faster", lambda self, found: True)
    with pytest.raises(RunError, match="needs the package openvino, which is not installed: pip install openvino"):
        Predictor.from_run(run, device="cpu", engine="openvino")
    assert Predictor.from_run(run, device="cpu", engine="auto").engine_name == "onnxruntime"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "openvino", "precision": "bf16"}, "--engine openvino computes in fp32, not in bf16"),
        ({"threads": 2}, "--threads belongs to --engine onnxruntime or openvino"),
        ({"engine": "torch", "threads": 2}, "--threads belongs to --engine onnxruntime or openvino"),
        ({"engine": "auto", "threads": 2}, "--threads belongs to --engine onnxruntime or openvino"),
        ({"engine": "tensorrt"}, "--engine expects torch, auto, openvino or onnxruntime, found 'tensorrt'"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_anything_is_loaded(
    make_run: Callable[..., Path], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        medkd.load(make_run(folds=0), device="cpu", **options)


@pytest.mark.parametrize("faster", ["torch", "openvino"])
def test_auto_takes_the_faster_and_keeps_to_it(
    make_run: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    run = make_run(folds=2)
    for path in (cache / "medkd" / "engines").glob("*.json"):
        path.unlink()
    own = converted.open_engine
    wait = {"torch": 0.2, "openvino": 0.0}[faster]

    def slow(network: Path, engine: str, threads: int | None) -> Engine:
        compute = own(network, engine, threads)  # type: ignore[arg-type]

        def waited(batch: np.ndarray) -> np.ndarray:
            time.sleep(wait)
            return compute(batch)

        return waited

    def slow_torch(networks: object, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2 - wait)
        return mean_logits(networks, x)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(converted, "open_engine", slow)
        patched.setattr(converted, "mean_logits", slow_torch)
        assert Predictor.from_run(run, device="cpu", engine="auto").engine_name == faster
    monkeypatch.setattr(converted._Conversion, "_is_faster", lambda self, found: 1 / 0)  # it is not asked again
    assert Predictor.from_run(run, device="cpu", engine="auto").engine_name == faster


def test_auto_leaves_other_arithmetic_to_torch(make_run: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        predictor = Predictor.from_run(make_run(folds=1), device="cpu", engine="auto", precision="bf16")
    assert predictor.engine_name == "torch" and "this is bf16 on cpu" in caplog.text


def test_to_go_on_needs_the_same_engine_in_any_version(
    make_run: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    run, out = make_run(folds=2), tmp_path / "out"
    predict_folder(scans, out, run, device="cpu", engine="onnxruntime")
    settings = read_json(out / SETTINGS_FILE)
    write_json(out / SETTINGS_FILE, {**settings, "engine_version": "0.1"})
    (out / "case_1.nii.gz").unlink()
    done = predict_folder(scans, out, run, device="cpu", engine="onnxruntime", resume=True)
    assert done.predicted == ["case_1"]
    with pytest.raises(RunError, match="made with other settings or weights"):
        predict_folder(scans, out, run, device="cpu", resume=True)


@pytest.mark.parametrize("trouble", ["no package", "full disk", "cannot compute"])
def test_auto_lets_torch_predict_whatever_is_wrong(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    run, converted_networks = make_run(folds=3), []

    def full(*more: object) -> None:
        converted_networks.append(more)
        raise DataError("the disk is full")

    def opened(*more: object) -> Engine:
        def cannot(batch: np.ndarray) -> np.ndarray:
            raise RuntimeError("no such operator")

        return cannot

    if trouble == "no package":
        monkeypatch.setattr(converted, "is_installed", lambda package: False)
    if trouble == "cannot compute":
        monkeypatch.setattr(converted, "open_engine", opened)
    else:
        monkeypatch.setattr(converted, "export_onnx", full)
    with caplog.at_level(logging.WARNING):
        assert Predictor.from_run(run, device="cpu", engine="auto").engine_name == "torch"
    words = {"no package": "not installed", "full disk": "the disk is full", "cannot compute": "no such operator"}
    assert words[trouble] in caplog.text
    assert bool(converted_networks) == (trouble == "full disk")  # nothing is converted for an engine that is not there
    with pytest.raises(MedkdError, match=words[trouble]):
        Predictor.from_run(run, device="cpu", engine="onnxruntime")


def test_oldest_networks_leave_the_cache(tmp_path: Path) -> None:
    import os

    from medkd.core.cache import forget_oldest, used

    for number in range(4):
        for ending in ("onnx", "json"):
            path = tmp_path / f"{number}.{ending}"
            path.write_bytes(b"12345")
            os.utime(path, (number, number))
    used(tmp_path / "0.onnx")
    forget_oldest(tmp_path, 29)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "0.onnx", "3.json", "3.onnx"]
    forget_oldest(tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "0.onnx"]
