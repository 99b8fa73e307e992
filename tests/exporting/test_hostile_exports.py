"""Exports that are corrupt, truncated, hostile or put together from two: one sentence each, with torch and without."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medkd
from medkd.cli.predict import main as predict
from medkd.core.errors import MedkdError, RunError
from medkd.core.files import read_json, write_json
from medkd.exporting.export import export_model
from medkd.runtime.package import FILE, RECORD, digest_of, read_exported, write_exported
from medkd.runtime.predictor import RuntimePredictor

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"
SCAN = OLD / "scan_0000.nii.gz"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("exports")
    for format in ("onnx", "openvino"):
        export_model(STUDENT, folder / format, format=format, scan=[SCAN])
    return {format: folder / format for format in ("onnx", "openvino")}


@pytest.fixture(params=["onnx", "openvino"])
def copy(request: pytest.FixtureRequest, exports: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exports[request.param], tmp_path / "copy"))


def sentence(folder: Path) -> str:
    """What opening and predicting says; it must be one sentence."""
    with pytest.raises(MedkdError) as caught:
        medkd.load(folder, threads=1).predict(SCAN)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 700, text
    return text


def predicted(folder: Path) -> np.ndarray:
    found: Any = medkd.load(folder, threads=1).predict(SCAN)
    return np.asarray(found.labels)


def edit(folder: Path, **changes: Any) -> None:
    """Change the description as a text editor would."""
    write_json(folder / FILE, {**read_json(folder / FILE), **changes})


def with_spacing(sound: dict[str, Any], value: float) -> dict[str, Any]:
    """A plan with another size of voxels along the first axis."""
    name = sound["configuration"]
    planned = sound["plan"]["configurations"][name]
    changed = {**planned, "spacing": [value, *planned["spacing"][1:]]}
    return {"plan": {**sound["plan"], "configurations": {name: changed}}}


def network(folder: Path) -> Path:
    return folder / read_json(folder / FILE)["network"]


def weights(folder: Path) -> Path:
    beside = network(folder).with_suffix(".bin")
    return beside if beside.is_file() else network(folder)


def with_its_digest(folder: Path) -> None:
    """State the hash of the network that is there now, as a stranger would."""
    write_exported(folder, replace(read_exported(folder), digest=digest_of(network(folder))))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_truncated_networks(copy: Path, share: float) -> None:
    content = weights(copy).read_bytes()
    weights(copy).write_bytes(content[: int(share * len(content))])
    assert "changed, truncated or replaced" in sentence(copy)
    with_its_digest(copy)
    assert sentence(copy)


def test_a_network_with_flipped_bytes(copy: Path) -> None:
    content = bytearray(network(copy).read_bytes())
    for place in range(0, min(len(content), 4000), 97):
        content[place] ^= 0xFF
    network(copy).write_bytes(bytes(content))
    assert "changed, truncated or replaced" in sentence(copy)
    with_its_digest(copy)
    assert "damaged, or no network" in sentence(copy)


def test_a_missing_network_or_description(copy: Path) -> None:
    network(copy).unlink()
    assert "copy the whole exported folder" in sentence(copy)
    (copy / FILE).unlink()
    assert "is not a medkd run folder" in sentence(copy)


def test_descriptions_that_lead_elsewhere_or_say_nonsense(copy: Path) -> None:
    sound = read_json(copy / FILE)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"network": "/etc/passwd"}, "'network' must be"),
        ({"network": "../model.onnx"}, "'network' must be"),
        ({"patch_size": [16, 16]}, "'patch_size'"),
        ({"patch_size": [0, -3, 10**9]}, "patch_size"),
        ({"patch_size": "large"}, "patch_size"),
        ({"step_size": 0}, "step"),
        ({"step_size": float("1e-9")}, "step"),
        ({"mirror_axes": [0, 7]}, "mirror_axes"),
        ({"mirror_axes": [0, 0]}, "mirror_axes"),
        ({"regions_class_order": [1, 2]}, "regions_class_order"),
        ({"schema": 99}, "schema 99"),
        ({"plan": {**sound["plan"], "schema": 99}}, "schema 99"),
        *((with_spacing(sound, value), "spacing") for value in (0, -1, 1e-9, 1e9)),
        ({"blending": "magic"}, "blending"),
        ({"configuration": "3d_lowres"}, "3d_lowres"),
        ({"labels": {}}, "label"),
        ({"labels": {"background": 0, "liver": 10**9}}, "label"),
        ({"plan": {}}, "plan"),
        ({"plan": {**sound["plan"], "transpose": [0, 1, 7]}}, "transpose"),
        ({"plan": {**sound["plan"], "orientation": "RRS"}}, "orientation"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"digest": 5}, "digest"),
        ({"channel_names": []}, "channel"),
    ]
    for change, word in wrong:
        write_json(copy / FILE, {**sound, **change})
        assert word in sentence(copy), change
    for text in ("", "null", "[]", json.dumps(sound)[:-40], '{"a":' * 10**5, "\x00\xff"):
        (copy / FILE).write_text(text, encoding="latin-1")
        assert sentence(copy), text[:20]


def test_descriptions_that_make_sense_and_are_of_another_export(copy: Path) -> None:
    """Only the checksum can tell them: names exchanged, other axes mirrored, regions painted in another order."""
    sound = read_json(copy / FILE)
    small, large = (sound["labels"][name] for name in ("small", "large"))
    reversed_names = dict(reversed(sound["labels"].items()))
    for change in (
        {"labels": {**sound["labels"], "small": large, "large": small}},
        {"labels": reversed_names},
        {"mirror_axes": sound["mirror_axes"][:1]},
        {"made_from": {**sound["made_from"], "folds": ["4"]}},
        {"checksum": "00" * 32},
        with_spacing(sound, 1.7),
    ):
        write_json(copy / FILE, {**sound, **change})
        assert "does not say what was exported" in sentence(copy), change
    write_json(copy / FILE, {key: value for key, value in sound.items() if key != "checksum"})  # as older ones are
    assert predicted(copy).any()


def test_numbers_that_json_does_not_know(copy: Path) -> None:
    text = (copy / FILE).read_text()
    for value in ("NaN", "Infinity", "-Infinity"):
        (copy / FILE).write_text(text.replace('"step_size": 0.5', f'"step_size": {value}'))
        assert "step_size: expected a finite number" in sentence(copy)


def test_files_in_the_place_of_the_network(copy: Path) -> None:
    path = network(copy)
    kept = path.rename(copy / path.name.upper())
    assert f"has no {path.name}" in sentence(copy)
    for target in ("/dev/zero", path, "/etc/hostname"):
        path.symlink_to(target)
        assert "has no" in (said := sentence(copy)) or "changed, truncated or replaced" in said
        path.unlink()
    os.mkfifo(path)
    assert "has no" in sentence(copy)
    path.unlink()
    path.symlink_to(kept)  # the same bytes elsewhere, as stores of files keep them
    assert predicted(copy).any()


def test_the_network_of_another_export(copy: Path, tmp_path: Path) -> None:
    """Of the same shapes, with other weights."""
    export_model(OLD / "plain_unet__3d_fullres", tmp_path / "other", format=read_json(copy / RECORD)["format"])
    for path in (tmp_path / "other").glob("model.*"):
        shutil.copy(path, copy / path.name)
    assert "changed, truncated or replaced" in sentence(copy)


def test_networks_of_another_model(copy: Path, tmp_path: Path) -> None:
    """A sound network with the right hash that does not do what the description says."""
    import torch

    from medkd.exporting.openvino import export_openvino
    from medkd.models.onnx import export_onnx

    export: Callable[..., None] = export_onnx if network(copy).suffix == ".onnx" else export_openvino
    patch = read_json(copy / FILE)["patch_size"]
    for module, channels, shape in (
        (torch.nn.Conv3d(1, 7, 1), 1, patch),  # other outputs
        (torch.nn.Conv3d(2, 3, 1), 2, patch),  # other inputs
        (torch.nn.Conv3d(1, 3, 1), 1, [side * 2 for side in patch]),  # another patch
        (torch.nn.Conv3d(1, 3, 3), 1, patch),  # a smaller output
        (torch.nn.Flatten(), 1, patch),  # no image at all
    ):
        export([module], channels, shape, network(copy))
        with_its_digest(copy)
        assert "export" in sentence(copy)


def test_the_command_says_the_same(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = weights(copy).read_bytes()
    weights(copy).write_bytes(content[: len(content) // 2])
    assert predict(["-i", str(SCAN), "-o", str(tmp_path / "out"), "-m", str(copy)]) == 1
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ") and "\n" not in text and not (tmp_path / "out").exists()


def test_values_that_are_not_finite_are_said(copy: Path) -> None:
    predictor = RuntimePredictor.open(copy)
    shape = (1, *predictor.exported.patch_size)
    broken = RuntimePredictor(
        predictor.exported, lambda batch: np.full((len(batch), 3, *shape[1:]), np.nan, np.float32)
    )
    with pytest.raises(RunError, match="not finite"):
        broken.logits(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    whole = RuntimePredictor(predictor.exported, lambda batch: np.zeros((len(batch), 3, *shape[1:]), np.int64))
    with pytest.raises(RunError, match="of the type int64"):
        whole.logits(np.random.default_rng(0).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("format", ["nnunet", "bundle", "triton"])
def test_truncated_weights_of_other_formats(exports: dict[str, Path], tmp_path: Path, format: str) -> None:
    from medkd.models.base import open_model

    folder = tmp_path / format
    export_model(STUDENT, folder, format=format, scan=[SCAN])
    chain = folder / "segmentation" / "1" if format == "triton" else folder
    for file in folder.rglob("*.*"):
        if file.suffix in (".onnx", ".pth"):
            file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(MedkdError) as caught:
        open_model(chain, "segmentation").load()
    assert "\n" not in str(caught.value)


def test_ensembles_are_one_network_or_one_sentence(tmp_path: Path) -> None:
    """Several folds are exported as the mean of their logits; several models with a comma are refused."""
    with pytest.raises(MedkdError) as caught:
        export_model(f"{STUDENT},{STUDENT}", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
