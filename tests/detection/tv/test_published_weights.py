"""Weights that fit in names and shapes but mean something else are refused, mmdetection's and those of classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18, resnet50

from medkd.core.errors import RunError
from medkd.detection.base import Detector
from medkd.detection.tv.published_weights import check_units
from medkd.detection.weights import start_from
from tests.detection.tv.builders import make
from tests.detection.tv.test_mmdetection import KINDS, State, built, checkpoint, saved


@pytest.fixture(scope="module")
def fcos_state() -> State:
    make("retinanet_r18")  # registers the detectors
    return checkpoint(**KINDS["mmdet_fcos_r50_caffe"][1])


@pytest.fixture(scope="module")
def imported(fcos_state: State) -> Detector:
    return built("mmdet_fcos_r50_caffe")


PLAIN = """model = dict(backbone=dict(type='ResNet', depth=50, style='caffe'), neck=dict(type='FPN',
    add_extra_convs='on_output', relu_before_extra_convs=True), bbox_head=dict(type='FCOSHead', num_classes=3))"""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("num_classes", "norm_on_bbox=True, num_classes"), "norm_on_bbox=True"),
        (("num_classes", "centerness_on_reg = True, num_classes"), "centerness_on_reg=True"),
        (("'caffe'", "'pytorch'"), "style=pytorch"),
        (("convs=True", "convs=False"), "relu_before_extra_convs=False"),
        (("on_output", "on_lateral"), "add_extra_convs=on_lateral"),
    ],
)
def test_equal_tensors_of_another_configuration_are_refused(
    tmp_path: Path, imported: Detector, changed: tuple[str, str], said: str
) -> None:
    text, state = PLAIN.replace(*changed), {"bbox_head.x": torch.zeros(1)}
    assert text != PLAIN
    for key in ("config", "cfg"):  # of its second and third version
        with pytest.raises(RunError, match=f"was trained with {said}, but mmdet_fcos_r50_caffe has"):
            start_from(imported, saved(tmp_path, state, **{key: text}))
        with pytest.raises(RunError, match="does not fit"):  # the next check
            start_from(imported, saved(tmp_path, state, **{key: f"{PLAIN}\n# {said}"}))


def test_towers_have_the_biases_of_the_file_or_none(tmp_path: Path, imported: Detector, fcos_state: State) -> None:
    detector: Any = imported
    names = [name for name in detector.state_dict() if "tower" in name and name.endswith(".0.bias")]
    start_from(detector, saved(tmp_path, fcos_state))
    assert len(names) == 8 and all(not detector.state_dict()[name].any() for name in names)
    biased = dict(fcos_state)
    for tower in ("cls", "reg"):
        for block in range(4):
            biased[f"bbox_head.{tower}_convs.{block}.conv.bias"] = torch.full((256,), 0.5)
    with pytest.raises(RunError, match=r"biases in its towers.*norm_on_bbox"):
        start_from(detector, saved(tmp_path, biased))
    start_from(detector, saved(tmp_path, biased, config=PLAIN))
    assert all((detector.state_dict()[name] == 0.5).all() for name in names)
    with pytest.raises(RunError, match="missing"):
        start_from(
            detector,
            saved(tmp_path, {k: v for k, v in biased.items() if "cls_convs.2.conv.bias" not in k}, config=PLAIN),
        )


def test_anchors_of_another_size_are_refused(tmp_path: Path) -> None:
    make("retinanet_r18")
    for name, own in (("mmdet_retinanet_r18", 4), ("mmdet_gfl_r18", 8)):
        file = saved(tmp_path, {"bbox_head.x": torch.zeros(1)}, config=f"octave_base_scale={12 - own}")
        with pytest.raises(RunError, match=f"octave_base_scale={12 - own}, but {name} has octave_base_scale={own}"):
            start_from(built(name), file)


@pytest.mark.parametrize("share", [1.0, 0.02, 60.0])
def test_a_backbone_for_images_in_other_units_is_refused(share: float) -> None:
    """The first filters and their norm share a factor in any way: networks that compute the same are one case."""
    torch.manual_seed(0)
    for kind, right, wrong in (("torchvision's", "r50", "r50_caffe"), ("Caffe's", "r101_caffe", "r101")):
        state = resnet18(weights=None).state_dict()
        state["conv1.weight"] *= share / (60 if kind == "Caffe's" else 1)
        state["bn1.running_var"] *= share**2
        check_units(right, Path("x.pth"), state)
        with pytest.raises(RunError, match=f"images in {kind} units, but {wrong} takes"):
            check_units(wrong, Path("x.pth"), state)


def test_files_of_classifiers_and_of_detectors_tell_their_units(
    tmp_path: Path, imported: Detector, fcos_state: State
) -> None:
    torch.save(resnet50(weights=None).state_dict(), tmp_path / "classifier.pth")
    scaled = {**fcos_state, "backbone.conv1.weight": 60 * fcos_state["backbone.conv1.weight"]}
    for file in (tmp_path / "classifier.pth", saved(tmp_path, scaled)):
        with pytest.raises(RunError, match=r"images in torchvision's units, but r50_caffe takes Caffe's"):
            start_from(imported, file)
