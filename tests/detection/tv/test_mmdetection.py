"""mmdetection's weights: a synthetic checkpoint with its names gives, once imported, what its network computes.

The reference is written here with functions on the checkpoint's own names, after mmdetection's configurations.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import resnet18, resnet50
from torchvision.ops import deform_conv2d

from medkd.core.errors import RunError
from medkd.core.files import write_json
from medkd.detection.base import DETECTORS, Detector, DetectorOutputs, DetectorSpec
from medkd.detection.tv.mmdetection import renamed
from medkd.detection.weights import start_from
from medkd.models.base import open_model
from tests.detection.tv.builders import make

SIZE, K = 64, 3
State = dict[str, Tensor]
STRIDES = (8, 16, 32, 64, 128)


def conv(state: State, name: str, cout: int, cin: int, side: int = 3, bias: bool = True) -> None:
    state[f"{name}.weight"] = torch.randn(cout, cin, side, side) / math.sqrt(cin * side * side)
    if bias:
        state[f"{name}.bias"] = 0.1 * torch.randn(cout)


def norm(state: State, name: str) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.1 * torch.randn(256), 0.1 * torch.randn(256)


def backbone(kind: str) -> Any:
    torch.manual_seed(0)
    network: Any = resnet18(weights=None) if kind == "r18" else resnet50(weights=None)
    if kind == "caffe":
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        network.conv1.weight.data /= 60  # its images are not divided by their deviation
    return network.eval()


def checkpoint(head: str, kind: str, coarse: str, normed_neck: bool = False, blocks: int = 4) -> State:
    """Backbone, pyramid and towers; ``head`` names the predictors."""
    state = {f"backbone.{n}": v.clone() for n, v in backbone(kind).state_dict().items() if not n.startswith("fc.")}
    widths = (128, 256, 512) if kind == "r18" else (512, 1024, 2048)
    for i, width in enumerate(widths):
        conv(state, f"neck.lateral_convs.{i}.conv", 256, width, 1, not normed_neck)
    for i in range(5):
        width = widths[-1] if i == 3 and coarse == "on_input" else 256
        conv(state, f"neck.fpn_convs.{i}.conv", 256, width, 3, not normed_neck)
    if normed_neck:
        for name in [*(f"neck.lateral_convs.{i}.gn" for i in range(3)), *(f"neck.fpn_convs.{i}.gn" for i in range(5))]:
            norm(state, name)
    for tower in ("cls", "reg"):
        for i in range(blocks):
            conv(state, f"bbox_head.{tower}_convs.{i}.conv", 256, 256, 3, head == "retina")
            if head != "retina":
                norm(state, f"bbox_head.{tower}_convs.{i}.gn")
    if head != "reppoints":
        cells = {"retina": 9}.get(head, 1)
        prefix = {"fcos": "conv"}.get(head, head)
        conv(state, f"bbox_head.{prefix}_cls", cells * K, 256)
        conv(state, f"bbox_head.{prefix}_reg", cells * 4 * (17 if head == "gfl" else 1), 256)
        if head in ("atss", "fcos"):
            conv(state, f"bbox_head.{prefix}_centerness", 1, 256)
        if head != "retina":
            for i in range(5):
                state[f"bbox_head.scales.{i}.scale"] = torch.tensor(0.8 + 0.1 * i)
        if head == "gfl":
            state["bbox_head.integral.project"] = torch.linspace(0, 16, 17)
        return state
    for part in ("cls_conv", "pts_refine_conv"):
        conv(state, f"bbox_head.reppoints_{part}", 256, 256, 3, False)
    conv(state, "bbox_head.reppoints_pts_init_conv", 256, 256)
    for part, count in (("cls_out", K), ("pts_init_out", 18), ("pts_refine_out", 18)):
        conv(state, f"bbox_head.reppoints_{part}", count, 256, 1)
    state["bbox_head.moment_transfer"] = torch.tensor([0.2, -0.1])
    return state


def module(state: State, name: str, x: Tensor, stride: int = 1, active: bool = False) -> Tensor:
    """mmcv's ConvModule: convolution, norm where there is one, activation."""
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, state.get(f"{name}.conv.bias"), stride, weight.shape[-1] // 2)
    if f"{name}.gn.weight" in state:
        x = F.group_norm(x, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"])
    return x.relu() if active else x


def plain(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], 1, weight.shape[-1] // 2)


def pyramid(state: State, kind: str, images: Tensor, coarse: str) -> list[Tensor]:
    """Images in 0 to 255, red first → five maps."""
    if kind == "caffe":
        x = images[:, [2, 1, 0]] - torch.tensor([102.9801, 115.9465, 122.7717]).view(1, 3, 1, 1)
    else:
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        x = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    body = backbone(kind)
    x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
    maps = []
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        x = stage(x)
        maps.append(x)
    sides = [module(state, f"neck.lateral_convs.{i}", maps[i + 1]) for i in range(3)]
    for i in (1, 0):
        sides[i] = sides[i] + F.interpolate(sides[i + 1], size=sides[i].shape[2:], mode="nearest")
    levels = [module(state, f"neck.fpn_convs.{i}", sides[i]) for i in range(3)]
    source = maps[3] if coarse == "on_input" else levels[2]
    levels.append(module(state, "neck.fpn_convs.3", source, 2))
    before = levels[3].relu() if kind == "caffe" else levels[3]  # relu_before_extra_convs
    levels.append(module(state, "neck.fpn_convs.4", before, 2))
    return levels


def towers(state: State, x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    found = []
    for tower in ("cls", "reg"):
        y = x
        for i in range(blocks):
            y = module(state, f"bbox_head.{tower}_convs.{i}", y, active=True)
        found.append(y)
    return found[0], found[1]


def deltas(raw: Tensor, anchor: list[float], stds: tuple[float, ...]) -> list[float]:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    dx, dy, dw, dh = (float(v) * s for v, s in zip(raw, stds, strict=True))
    x, y = (anchor[0] + anchor[2]) / 2 + dx * width, (anchor[1] + anchor[3]) / 2 + dy * height
    most = math.log(1000 / 16)
    w, h = width * math.exp(min(dw, most)), height * math.exp(min(dh, most))
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def retina(state: State, x: Tensor, level: int) -> tuple[Tensor, Tensor, None]:
    of_class, of_box = towers(state, x, 4)
    logits = plain(state, "bbox_head.retina_cls", of_class)[0]
    raw = plain(state, "bbox_head.retina_reg", of_box)[0]
    scores, boxes, stride = [], [], STRIDES[level]
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            for ratio_place, ratio in enumerate((0.5, 1.0, 2.0)):
                for octave in range(3):
                    side = 4 * 2 ** (octave / 3) * stride
                    w, h = side / math.sqrt(ratio) / 2, side * math.sqrt(ratio) / 2
                    place = ratio_place * 3 + octave
                    scores.append(logits[place * K : place * K + K, row, column])
                    anchor = [column * stride - w, row * stride - h, column * stride + w, row * stride + h]
                    boxes.append(deltas(raw[4 * place : 4 * place + 4, row, column], anchor, (1, 1, 1, 1)))
    return torch.stack(scores, 1), torch.tensor(boxes), None


def of_cells(decode: Callable[[Tensor, float, float, int], list[float]], raw: Tensor, stride: int) -> Tensor:
    boxes = []
    for row in range(raw.shape[1]):
        for column in range(raw.shape[2]):
            boxes.append(decode(raw[:, row, column], column * stride, row * stride, stride))
    return torch.tensor(boxes)


def atss(state: State, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
    of_class, of_box = towers(state, x, 4)
    raw = plain(state, "bbox_head.atss_reg", of_box)[0] * state[f"bbox_head.scales.{level}.scale"]

    def decode(values: Tensor, x: float, y: float, stride: int) -> list[float]:
        half = 4 * stride
        return deltas(values, [x - half, y - half, x + half, y + half], (0.1, 0.1, 0.2, 0.2))

    centre = plain(state, "bbox_head.atss_centerness", of_box)[0].flatten()
    return plain(state, "bbox_head.atss_cls", of_class)[0].flatten(1), of_cells(decode, raw, STRIDES[level]), centre


def gfl(state: State, x: Tensor, level: int) -> tuple[Tensor, Tensor, None]:
    of_class, of_box = towers(state, x, 4)
    raw = plain(state, "bbox_head.gfl_reg", of_box)[0] * state[f"bbox_head.scales.{level}.scale"]

    def decode(values: Tensor, x: float, y: float, stride: int) -> list[float]:
        bins = torch.arange(17)
        sides = [stride * float((part.softmax(0) * bins).sum()) for part in values.view(4, 17)]
        left, top, right, bottom = sides
        return [x - left, y - top, x + right, y + bottom]

    return plain(state, "bbox_head.gfl_cls", of_class)[0].flatten(1), of_cells(decode, raw, STRIDES[level]), None


def fcos(state: State, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
    of_class, of_box = towers(state, x, 4)
    raw = (plain(state, "bbox_head.conv_reg", of_box)[0] * state[f"bbox_head.scales.{level}.scale"]).exp()

    def decode(values: Tensor, x: float, y: float, stride: int) -> list[float]:
        x, y = x + stride / 2, y + stride / 2
        left, top, right, bottom = values.tolist()
        return [x - left, y - top, x + right, y + bottom]

    centre = plain(state, "bbox_head.conv_centerness", of_class)[0].flatten()
    return plain(state, "bbox_head.conv_cls", of_class)[0].flatten(1), of_cells(decode, raw, STRIDES[level]), centre


def reppoints(state: State, x: Tensor, level: int) -> tuple[Tensor, Tensor, None]:
    of_class, of_box = towers(state, x, 3)
    name = "bbox_head.reppoints_"
    first = plain(state, f"{name}pts_init_out", plain(state, f"{name}pts_init_conv", of_box).relu())
    base = torch.tensor([v for row in (-1.0, 0.0, 1.0) for column in (-1.0, 0.0, 1.0) for v in (row, column)])
    offset = first - base.view(1, 18, 1, 1)
    scores = deform_conv2d(of_class, offset, state[f"{name}cls_conv.weight"], padding=1).relu()
    moved = deform_conv2d(of_box, offset, state[f"{name}pts_refine_conv.weight"], padding=1).relu()
    refined = (plain(state, f"{name}pts_refine_out", moved) + first)[0]
    factors = state["bbox_head.moment_transfer"].tolist()

    def decode(values: Tensor, x: float, y: float, stride: int) -> list[float]:
        down, across = values[0::2] * stride + y, values[1::2] * stride + x
        half = float(across.std()) * math.exp(factors[0]), float(down.std()) * math.exp(factors[1])
        middle = float(across.mean()), float(down.mean())
        return [middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]]

    return plain(state, f"{name}cls_out", scores)[0].flatten(1), of_cells(decode, refined, STRIDES[level]), None


KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mmdet_retinanet_r18": (retina, {"head": "retina", "kind": "r18", "coarse": "on_input"}),
    "mmdet_gfl_r18": (gfl, {"head": "gfl", "kind": "r18", "coarse": "on_output"}),
    "mmdet_atss_r18": (atss, {"head": "atss", "kind": "r18", "coarse": "on_output"}),
    "mmdet_fcos_r50_caffe": (fcos, {"head": "fcos", "kind": "caffe", "coarse": "on_output"}),
    "reppoints_r18": (
        reppoints,
        {"head": "reppoints", "kind": "r18", "coarse": "on_input", "normed_neck": True, "blocks": 3},
    ),
}


def built(name: str, classes: int = K) -> Detector:
    return DETECTORS[name].build(DetectorSpec(name, tuple(f"c{i}" for i in range(classes)), SIZE, 4.0)).eval()


def saved(folder: Path, state: State, **told: str) -> Path:
    """As mmdetection publishes it."""
    meta = {"mmdet_version": "2.0.0", "CLASSES": ("a", "b", "c"), **told}
    torch.save({"meta": meta, "state_dict": state}, folder / "x.pth")
    return folder / "x.pth"


@pytest.mark.parametrize("name", KINDS)
def test_an_imported_checkpoint_gives_mmdetections_outputs(name: str, tmp_path: Path) -> None:
    make("retinanet_r18")  # registers the detectors
    head, parts = KINDS[name]
    state = checkpoint(**parts)
    detector = built(name)
    start_from(detector, saved(tmp_path, state))
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = detector.observe(images, DetectorOutputs(logits=torch.zeros(0)))
        levels = pyramid(state, parts["kind"], images * 255, parts["coarse"])
        expected = [head(state, x, level) for level, x in enumerate(levels)]
    assert outputs.boxes is not None
    for level, (logits, boxes, centre) in zip(outputs.levels, expected, strict=True):
        torch.testing.assert_close(
            outputs.features[level.tap], levels[outputs.levels.index(level)], rtol=1e-3, atol=1e-3
        )
        part = slice(level.start, level.stop)
        torch.testing.assert_close(outputs.logits[0, :, part], logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(outputs.boxes[0, part], boxes, rtol=1e-3, atol=1e-2)
        if centre is not None:
            assert outputs.centerness is not None
            torch.testing.assert_close(outputs.centerness[0, part], centre, rtol=1e-3, atol=1e-3)


def test_other_classes_keep_all_but_the_class_predictor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make("retinanet_r18")
    state = checkpoint(**KINDS["mmdet_gfl_r18"][1])
    name = "mmdet_gfl_r18"
    detector = DETECTORS[name].build(DetectorSpec(name, ("one",), SIZE, 2.0))
    before = detector.head.to_class.weight.clone()  # type: ignore[union-attr,operator]
    with caplog.at_level(logging.INFO, "medkd"):
        start_from(detector, saved(tmp_path, state))
    own = detector.state_dict()
    assert torch.equal(own["head.to_class.weight"], before)
    assert torch.equal(own["head.to_box.weight"], state["bbox_head.gfl_reg.weight"])
    assert "anchor_scale of 4, the plan has 2" in caplog.text and "tensors" in caplog.text


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    make("retinanet_r18")
    state = checkpoint(**KINDS["mmdet_gfl_r18"][1])
    file = saved(tmp_path, state)
    with pytest.raises(RunError, match="does not fit mmdet_atss_r18"):
        start_from(built("mmdet_atss_r18"), file)
    for name in ("gfl_r18", "faster_rcnn_r18"):  # its weights fit, but p7 is made otherwise
        with pytest.raises(RunError, match=f"architecture {name} does not have"):
            start_from(built(name), file)
    with pytest.raises(RunError, match=r"no place for bbox_head.extra"):
        start_from(built("mmdet_gfl_r18"), saved(tmp_path, {**state, "bbox_head.extra": torch.zeros(1)}))
    with pytest.raises(RunError, match=r"1 of its .* missing"):
        start_from(built("mmdet_gfl_r18"), saved(tmp_path, {k: v for k, v in state.items() if "gfl_reg.bias" not in k}))


class Strange:
    """Something that only a pickle can hold."""


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    state = checkpoint(**KINDS["mmdet_gfl_r18"][1])
    torch.save({"meta": Strange(), "state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(RunError, match="objects other than tensors"):
        start_from(built("mmdet_gfl_r18"), tmp_path / "x.pth")


def test_a_published_detector_teaches_with_a_description_beside_it(tmp_path: Path) -> None:
    state = checkpoint(**KINDS["mmdet_gfl_r18"][1])
    file = saved(tmp_path, state)
    described = {"network": "mmdet_gfl_r18", "categories": ["a", "b", "c"], "train": [], "weights": "x.pth"}
    write_json(tmp_path / "teacher.json", {**described, "image_size": 1344, "anchor_scale": 4.0, "sides": [1333, 800]})
    loaded = open_model(file, "detection").load(["given"])
    (detector,) = loaded.networks
    assert loaded.spec.sides == (1333, 800)
    assert torch.equal(detector.state_dict()["head.scales.p7.factor"], state["bbox_head.scales.4.scale"].reshape(1))
    write_json(tmp_path / "teacher.json", {**described, "categories": ["a"], "anchor_scale": 4.0})
    with pytest.raises(RunError, match=r"head.to_class"):
        open_model(file, "detection").load(["given"])


def test_deformable_backbones_have_their_names() -> None:
    make("retinanet_r18")
    own = built("reppoints_x101_32x4d_dcn").state_dict()
    body = [name for name in own if name.startswith("pyramid.bottom.body.") and "num_batches" not in name]
    assert sum(".offset." in name for name in body) == 2 * (4 + 23 + 3)
    for name in body:
        theirs = name.replace("pyramid.bottom.body.", "backbone.").replace(".offset.", ".conv_offset.")
        assert renamed(theirs, own) == name
