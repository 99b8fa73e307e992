"""Networks trained elsewhere: MONAI's own weights give MONAI's own outputs, and a hostile file runs nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medkd.core.errors import MedkdError, RunError
from medkd.core.geometry import Geometry
from medkd.inference.predictor import Predictor
from medkd.models.base import open_model
from medkd.models.described import DescribedFolder

DESCRIPTION: dict[str, Any] = {
    "network": "segresnet",
    "channels": ["CT"],
    "labels": {"background": 0, "liver": 1, "spleen": 2},
    "spacing": [1.5, 1.5, 2.0],
    "normalization": ["window(-175, 250)"],
    "patch_size": [16, 16, 16],
    "transpose": [2, 1, 0],
    "train": ["case_01"],
}


def write(folder: Path, content: object, **changes: object) -> Path:
    """A folder with description and weights, as a MONAI bundle has them."""
    (folder / "models").mkdir(parents=True)
    torch.save(content, folder / "models" / "model.pt")
    (folder / "teacher.json").write_text(json.dumps({**DESCRIPTION, **changes}))
    return folder


def segresnet() -> nn.Module:
    """The network of MONAI's brain tumour bundle, with two structures."""
    from monai.networks.nets import SegResNet

    return SegResNet(3, 16, 1, 3, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)).eval()


def test_what_names_a_network_is_described_wherever_its_weights_lie(tmp_path: Path) -> None:
    """Also below a name that nnU-Net gives its checkpoints."""
    weights = "fold_0/checkpoint_best.pth"
    folder = write(tmp_path / "bundle", {}, weights=weights)
    (folder / "fold_0").mkdir()
    (folder / "models" / "model.pt").rename(folder / weights)
    model = open_model(folder, "segmentation")
    assert (model.kind, model.weights_file("given")) == ("described", folder / weights)
    (folder / "teacher.json").write_text('{"train": []}')
    assert not DescribedFolder.recognises(folder)


@pytest.mark.parametrize("wrapped", [False, True])
def test_monais_segresnet_gives_monais_logits(tmp_path: Path, wrapped: bool) -> None:
    theirs = segresnet()
    state = theirs.state_dict()
    content = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3} if wrapped else state
    model = DescribedFolder(write(tmp_path / "bundle", content)).load()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.networks[0](image), theirs(image))
    assert [tap.name for tap in model.networks[0].taps][:1] == ["enc0"]


def test_monais_mednext_loses_its_training_heads_only(tmp_path: Path) -> None:
    from monai.networks.nets.mednext import create_mednext

    theirs = create_mednext("S", 3, 1, 3, deep_supervision=True).eval()
    model = DescribedFolder(write(tmp_path / "bundle", theirs.state_dict(), network="mednext_s")).load()
    image = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.networks[0](image), theirs(image))


@pytest.mark.slow
def test_monais_swin_unetr_gives_monais_logits(tmp_path: Path) -> None:
    from inspect import signature

    from monai.networks.nets import SwinUNETR

    size = {"img_size": (64, 64, 64)} if "img_size" in signature(SwinUNETR).parameters else {}
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=48, **size).eval()
    model = DescribedFolder(
        write(tmp_path / "bundle", theirs.state_dict(), network="swin_unetr", patch_size=[64, 64, 64])
    ).load()
    image = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model.networks[0](image), theirs(image), atol=1e-5)


def test_a_case_is_predicted_in_its_own_grid(tmp_path: Path) -> None:
    predictor = Predictor.from_run(write(tmp_path / "bundle", segresnet().state_dict()), device="cpu", mirror=False)
    geometry = Geometry.from_spacing((10, 12, 14), (2.0, 1.5, 1.5))
    image = np.random.default_rng(0).normal(0, 100, (1, 10, 12, 14)).astype(np.float32)
    labels = predictor.predict_case(image, geometry, "case")
    assert labels.shape == (10, 12, 14) and labels.max() <= 2


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_hostile_weights_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "bundle", {})
    torch.save({"state_dict": {"conv.weight": Hostile()}}, folder / "models" / "model.pt", pickle_protocol=protocol)
    with pytest.raises(RunError, match=r"could run code|damaged"):
        DescribedFolder(folder).load()
    assert not (tmp_path / "hostile").exists()
    torch.load(folder / "models" / "model.pt", weights_only=False)  # proves that the file is armed
    assert (tmp_path / "hostile").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "os.system"}, "'os.system' is not one of segresnet"),
        ({"normalization": ["zscore", "zscore"]}, "normalization does not fit 1 channels"),
        ({"normalization": ["ct"]}, "intensities"),
        ({"patch_size": [16, 16, 17]}, "patch_size"),
        ({"spacing": [1.0, 1.0]}, "spacing"),
        ({"weights": "../other.pt"}, "outside of the folder"),
        ({"weights": "none.pt"}, "no weights"),
        ({"trained": []}, "Did you mean 'train'"),
        ({"labels": {"background": 0, "liver": 1}}, "does not fit the network 'segresnet'"),
    ],
)
def test_what_does_not_fit_is_one_clear_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write(tmp_path / "bundle", {"conv_final.2.conv.weight": torch.zeros(3, 16, 1, 1, 1)}, **changes)
    with pytest.raises(MedkdError, match=message) as caught:
        DescribedFolder(folder).load()
    assert "\n" not in str(caught.value)


def test_what_the_weights_were_trained_on_must_be_stated(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", {})
    description = {key: value for key, value in DESCRIPTION.items() if key != "train"}
    (folder / "teacher.json").write_text(json.dumps(description))
    with pytest.raises(MedkdError, match="'train' is missing"):
        DescribedFolder(folder).load()
