from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from medkd.core.checkpoint import save_checkpoint
from medkd.core.errors import RunError
from medkd.detection.sources import sources_of
from medkd.detection.tv import backbones
from medkd.detection.tv.backbones import Pyramid, load_backbone_weights
from medkd.models.pretrained import find_source
from tests.detection.tv.builders import make


class _Holder(nn.Module):
    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.pyramid = Pyramid(backbone, 3)


def test_weights_of_torchvision_are_loaded_by_name_and_the_classifier_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torchvision.models import resnet18

    original = resnet18(weights=None)
    save_checkpoint(tmp_path / "r18.pth", {"state_dict": {f"module.{k}": v for k, v in original.state_dict().items()}})
    detector = make("fcos_r18", seed=4)
    with caplog.at_level(logging.INFO):
        count = load_backbone_weights(detector, tmp_path / "r18.pth")
    assert count == 100 and "100 tensors" in caplog.text
    images = torch.rand(1, 3, 64, 64)
    body = detector.pyramid.bottom.eval()
    original.eval()
    x = original.layer2(original.layer1(original.maxpool(original.relu(original.bn1(original.conv1(images))))))
    assert torch.equal(body(images)[1], x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "name"),
    [("pvt_v2_b5", "pvt_v2_b5"), ("efficientnet_es", "efficientnet_es"), ("resnest50", "resnest50d")],
)
def test_weights_of_timm_are_loaded_although_it_renames_its_stages(tmp_path: Path, backbone: str, name: str) -> None:
    import timm
    from safetensors.torch import save_file

    original = timm.create_model(name, pretrained=False)
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    holder = _Holder(backbone)
    load_backbone_weights(holder, tmp_path / "w.safetensors")
    own = {k.replace(".", "_"): v for k, v in holder.pyramid.bottom.body.state_dict().items()}
    given = {k.replace(".", "_"): v for k, v in original.state_dict().items()}
    assert len(own) > 50 and all(torch.equal(v, given[k]) for k, v in own.items())


def test_files_that_do_not_fit_are_refused_with_a_sentence(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    detector = make("fcos_r18")
    with pytest.raises(RunError, match="There is no weight file"):
        load_backbone_weights(detector, tmp_path / "none.pth")
    state = resnet18(weights=None).state_dict()
    del state["layer3.0.conv1.weight"]
    save_checkpoint(tmp_path / "short.pth", state)
    with pytest.raises(RunError, match=r"does not fit the backbone r18: 1 of 100 .* layer3\.0\.conv1\.weight"):
        load_backbone_weights(detector, tmp_path / "short.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="not a safetensors file"):
        load_backbone_weights(detector, tmp_path / "bad.safetensors")
    with pytest.raises(RunError, match="has no torchvision backbone"):
        load_backbone_weights(nn.Linear(1, 1), tmp_path / "short.pth")


@pytest.mark.parametrize("backbone", ["r18", "swin_t", "pvt_v2_b2", "efficientnet_es"])
def test_without_a_network_the_download_says_what_to_do(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", unreachable)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # for 23 s between tries
    source = sources_of(f"retinanet_{backbone}")
    with pytest.raises(RunError, match=r"https://.*cannot be fetched.*--weights PATH"):
        find_source("imagenet", source, f"retinanet_{backbone}")


def test_every_backbone_has_a_source() -> None:
    for backbone in backbones._BACKBONES:  # Caffe's come with mmdetection's detectors alone
        assert ("imagenet" in sources_of(f"any_{backbone}")) != backbone.endswith("_caffe")
    assert sources_of("yolov8n")["coco"].name == "yolov8n.pt" and sources_of("of_somebody_else") == {}
    with pytest.raises(RunError, match=r"no weights of 'coco' for gfl_r50.*imagenet"):
        find_source("coco", sources_of("gfl_r50"), "gfl_r50")


def test_images_are_normalised_as_imagenet_is() -> None:
    pyramid = Pyramid("r18", 3).eval()
    seen: list[torch.Tensor] = []
    pyramid.bottom.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pyramid(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 64))
    assert seen[0].abs().max() < 1e-6
    assert not [k for k in pyramid.state_dict() if k in ("mean", "std")]


def test_batch_normalisation_is_trained() -> None:
    detector = make("faster_rcnn_r18").train()
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.training and m.weight.requires_grad for m in norms)
    assert not [m for m in detector.modules() if "Frozen" in type(m).__name__]


def test_two_stage_detectors_see_strides_4_to_64_and_dense_ones_8_to_128() -> None:
    images = torch.rand(1, 3, 96, 96)
    assert [tuple(m.shape[2:]) for m in Pyramid("r18", 2)(images.expand(2, -1, -1, -1)).values()] == [
        (n, n) for n in (24, 12, 6, 3, 2)
    ]
    assert [tuple(m.shape[2:]) for m in Pyramid("r18", 3)(images.expand(2, -1, -1, -1)).values()] == [
        (n, n) for n in (12, 6, 3, 2, 1)
    ]
