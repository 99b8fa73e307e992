"""``--weights`` of segmentation networks: encoders of timm, whole networks, and the guard against leaks."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import timm
import torch

import medkd.training.segmentation_task as training
from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.run import NetworkSpec
from medkd.networks import build_network
from medkd.networks.pretrained import start_network
from medkd.training.options import TrainOptions
from tests.training.builders import NAME, make_dataset


def network(name: str, channels: int = 1) -> Any:
    return build_network(NetworkSpec(name=name, in_channels=channels, num_outputs=3, patch_size=(64, 64)))


def options(root: Path, **changes: Any) -> TrainOptions:
    values: dict[str, Any] = {"root": root, "device": "cpu", "workers": 0, "epochs": 1, "iterations_per_epoch": 1}
    return TrainOptions(**{**values, "validate": False, **changes})


@pytest.fixture(autouse=True)
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of the test's own, and no network."""

    def forbidden(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("sockets are forbidden")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)


def put_into_the_hub(cache: Path, name: str, state: dict[str, torch.Tensor]) -> Path:
    """As Hugging Face's library lays it down."""
    from safetensors.torch import save_file

    known = timm.get_pretrained_cfg(name)
    assert known is not None
    folder = cache / f"models--{str(known.hf_hub_id).replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    (folder / "snapshots" / "0123").mkdir(parents=True)
    file = folder / "snapshots" / "0123" / "model.safetensors"
    save_file(state, file)
    return file


@pytest.mark.parametrize("name", ["fcn_r18", "unet_r18"])
def test_a_network_starts_from_timms_cache(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path)
    torch.manual_seed(5)
    theirs = timm.create_model("resnet18").state_dict()
    file = put_into_the_hub(tmp_path / "hub", "resnet18", theirs)
    started: list[Any] = []
    trainer = "medkd.training.segmentation.SegmentationTrainer"
    monkeypatch.setattr(f"{trainer}.fit", lambda self, *, resume: started.append(self.network))
    fold = training.train(NAME, name, 0, options(tmp_path, configuration="2d", patch_size=(64, 64), weights="imagenet"))
    said = read_json(fold.parent / "run.json")["weights"]
    assert (said["source"], said["file"], said["origin"]) == ("imagenet", str(file), "timm resnet18")
    encoder = started[0].get_submodule(started[0].encoder_path).state_dict()
    assert torch.equal(encoder["layer3.1.conv2.weight"], theirs["layer3.1.conv2.weight"])
    expected = theirs["conv1.weight"].sum(1, keepdim=True)  # one channel instead of three
    torch.testing.assert_close(encoder["conv1.weight"], expected)


def test_networks_without_such_weights_say_so(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    with pytest.raises(RunError, match=r"no weights of 'imagenet' for unet_tiny \(there are: none"):
        training.train(NAME, "unet_tiny", 0, options(tmp_path, weights="imagenet"))
    with pytest.raises(RunError, match=r"no weights of 'coco' for fcn_r18 \(there are: imagenet"):
        training.dry_run(NAME, "fcn_r18", 0, options(tmp_path, configuration="2d", patch_size=(64, 64), weights="coco"))
    with pytest.raises(RunError, match=r"huggingface.co/timm/resnet18.*cannot be fetched"):
        training.train(
            NAME, "fcn_r18", 0, options(tmp_path, configuration="2d", patch_size=(64, 64), weights="imagenet")
        )


@pytest.mark.parametrize(("name", "library"), [("fcn_r50_d8", "resnet50c"), ("pspnet_r101", "resnet101c")])
def test_the_v1c_encoders_are_timms(name: str, library: str, tmp_path: Path) -> None:
    own = network(name, 3)
    assert (own.encoder_path, own.encoder_name) == ("net", library)
    torch.save(timm.create_model(library).state_dict(), tmp_path / "c.pth")
    start_network(own, tmp_path / "c.pth")
    with pytest.raises(RunError, match=r"does not fit the encoder of fcn_r18_d8"):
        start_network(network("fcn_r18_d8", 3), tmp_path / "c.pth")


def test_a_network_starts_from_a_whole_one_unless_that_saw_the_judged_cases(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    first = training.train(NAME, "unet_tiny", 0, options(tmp_path))
    weights = str(first / "checkpoint_final.pt")
    again = training.train(NAME, "unet_tiny", 0, options(tmp_path, weights=weights, tag="again"))
    assert read_json(again.parent / "run.json")["weights"]["source"] == "file"
    seen = read_json(again / "split.json")
    assert set(seen["teacher_train"]) >= set(seen["train"])  # of the first, for students of this one
    with pytest.raises(LeakError, match=r"--weights .* was trained on"):
        training.train(NAME, "unet_tiny", 1, options(tmp_path, weights=weights, tag="again"))
    with pytest.raises(RunError, match="does not hold all of mobile_unet"):
        training.train(NAME, "mobile_unet", 0, options(tmp_path, weights=weights, patch_size=(32, 32, 32)))


def test_weights_have_seen_what_the_description_beside_them_says(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    first = training.train(NAME, "unet_tiny", 0, options(tmp_path))
    judged = read_json(first / "split.json")["val"]
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copy(first / "checkpoint_final.pt", folder / "weights.pt")
    asked = options(tmp_path, weights=str(folder / "weights.pt"), tag="again")
    for named, error, text in (
        (judged, LeakError, "--weights .* was trained on"),
        ([f"{judged[0]}_0000.nii.gz"], RunError, "is no case of the data set"),
    ):
        write_json(folder / "teacher.json", {"train": named})
        with pytest.raises(error, match=text):
            training.train(NAME, "unet_tiny", 0, asked)
    write_json(folder / "teacher.json", {"train": judged, "weights": "other.pt"})
    training.train(NAME, "unet_tiny", 0, asked)
