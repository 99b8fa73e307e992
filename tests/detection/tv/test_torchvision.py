"""The detectors against torchvision's own, with the same weights on the same images."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

from medkd.detection.base import Detector
from tests.detection.tv.builders import batch, make

SIZE = 128  # p7 has one cell, so that torchvision's strides are powers of two


class _Backbone(nn.Module):
    """Our pyramid as torchvision wants its backbone; the images come normalised, so that is undone."""

    out_channels = 256

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.pyramid = detector.pyramid

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return OrderedDict(self.pyramid(images * self.pyramid.std + self.pyramid.mean))


def _tower(theirs: nn.Module, ours: nn.Module, flat: bool) -> None:
    """Copy a tower of ours into torchvision's, whose blocks are nested or flat."""
    for i, block in enumerate(ours.blocks):
        convolution, norm = (theirs[3 * i], theirs[3 * i + 1]) if flat else (theirs[i][0], theirs[i][1])
        convolution.weight.data, norm.weight.data, norm.bias.data = (
            block[0].weight.data,
            block[1].weight.data,
            block[1].bias.data,
        )


def _copy(theirs: nn.Module, ours: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict())


def _reference(name: str, ours: Detector) -> nn.Module:
    k, settings = (
        len(ours.spec.categories),
        {"min_size": SIZE, "max_size": SIZE, "score_thresh": 0.001, "nms_thresh": 0.5, "detections_per_img": 9999},
    )
    if name == "retinanet_r18":
        scale = ours.spec.anchor_scale
        sizes = tuple(tuple(s * scale * 2 ** (o / 3) for o in range(3)) for s in ours.pyramid.strides)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
        head = RetinaNetHead(256, 9, k, norm_layer=lambda c: nn.GroupNorm(32, c))
        head.regression_head._loss_type = "giou"
        theirs: nn.Module = RetinaNet(_Backbone(ours), k, anchor_generator=anchors, head=head, **settings)
    else:
        theirs = FCOS(_Backbone(ours), k, **settings)
        head = theirs.head
        _copy(head.regression_head.bbox_ctrness, ours.head.to_centerness)
    flat = name == "fcos_r18"
    _tower(head.classification_head.conv, ours.head.class_tower, flat)
    _tower(head.regression_head.conv, ours.head.box_tower, flat)
    _copy(head.classification_head.cls_logits, ours.head.to_class)
    _copy(head.regression_head.bbox_reg, ours.head.to_box)
    return theirs


def _ready(name: str) -> tuple[Detector, Tensor, list[dict[str, Tensor]]]:
    """A detector whose predictions differ from place to place, a batch with boxes in all images, and it in
    torchvision's form.
    """
    ours = make(name, size=SIZE).eval()
    images, boxes, classes = batch(SIZE)
    boxes[1], classes[1] = torch.tensor([[5.0, 60, 90, 120], [20, 20, 44, 52]]), torch.tensor([1, 0])
    if not ours.two_stage:
        for layer in (ours.head.to_box, ours.head.to_class, ours.head.to_centerness):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.03)
    return ours, images, [{"boxes": b, "labels": c} for b, c in zip(boxes, classes, strict=True)]


@pytest.mark.parametrize("name", ["retinanet_r18", "fcos_r18"])
def test_losses_and_detections_of_dense_heads_are_torchvisions(name: str) -> None:
    ours, images, targets = _ready(name)
    theirs = _reference(name, ours)
    theirs.training = True  # to be given losses; all its modules stay in eval mode
    for module in theirs.modules():
        if module is not theirs:
            module.eval()
    expected = theirs(list(images), targets)
    terms, _, _ = ours.losses(images, [t["boxes"] for t in targets], [t["labels"] for t in targets])
    names = {"class": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(
        {k: expected[names[k]].item() for k in terms}, rel=1e-4
    )
    theirs.eval()
    for own, found in zip(ours.detect(images, 0.001, 0.5, 9999), theirs(list(images)), strict=True):
        wide = (found["boxes"][:, 2:] - found["boxes"][:, :2]).amin(1) >= 0.01  # theirs keep boxes that lie outside
        assert len(own.boxes) == int(wide.sum()) > 20
        assert torch.allclose(own.scores, found["scores"][wide], atol=1e-5)
        assert torch.allclose(own.boxes.sum(0), found["boxes"][wide].sum(0), rtol=1e-3)


def test_losses_and_detections_of_faster_rcnn_are_torchvisions() -> None:
    ours, images, targets = _ready("faster_rcnn_r18")
    scale = ours.spec.anchor_scale
    anchors = AnchorGenerator(tuple((2 * scale * s,) for s in ours.pyramid.strides), ((0.5, 1.0, 2.0),) * 5)
    pool = MultiScaleRoIAlign(list(ours.pyramid.names[:4]), 7, 2)
    theirs = FasterRCNN(
        _Backbone(ours), 3, min_size=SIZE, max_size=SIZE, rpn_anchor_generator=anchors, box_roi_pool=pool
    )
    theirs.rpn.head, theirs.roi_heads.box_head, theirs.roi_heads.box_predictor = (
        ours.proposer.head,
        ours.scorer.box_head,
        ours.scorer.box_predictor,
    )
    for part, own in ((theirs.rpn, ours.proposer), (theirs.roi_heads, ours.scorer)):
        part.fg_bg_sampler = own.fg_bg_sampler
        own.fg_bg_sampler.batch_size_per_image, own.fg_bg_sampler.positive_fraction = 10**5, 0.5  # all are drawn
    theirs.rpn._pre_nms_top_n, theirs.rpn._post_nms_top_n = ours.proposer._pre_nms_top_n, ours.proposer._post_nms_top_n
    theirs.train()
    theirs.transform.eval()  # in training it draws a size, if only from one
    ours.train()
    ours.pyramid.eval()
    shifted = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in targets]
    expected = theirs(list(images), shifted)
    terms, _, _ = ours.losses(images, [t["boxes"] for t in targets], [t["labels"] for t in targets])
    names = {
        "objectness": "loss_objectness",
        "proposal": "loss_rpn_box_reg",
        "class": "loss_classifier",
        "box": "loss_box_reg",
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(
        {k: expected[names[k]].item() for k in terms}, rel=1e-4
    )
    theirs.eval()
    ours.eval()
    theirs.roi_heads.score_thresh, theirs.roi_heads.nms_thresh = 0.05, 0.5
    for own, found in zip(ours.detect(images, 0.05, 0.5, 100), theirs(list(images)), strict=True):
        assert len(own.boxes) == len(found["boxes"]) > 3
        assert torch.allclose(own.scores, found["scores"], atol=1e-5) and torch.equal(own.classes + 1, found["labels"])
        assert torch.allclose(own.boxes, found["boxes"], atol=1e-3)


def test_anchors_are_torchvisions_where_the_size_is_a_multiple_of_all_strides() -> None:
    detector = make("retinanet_r18", size=SIZE)
    neck = {
        n: torch.zeros(1, 1, SIZE // s, SIZE // s)
        for n, s in zip(detector.pyramid.names, detector.pyramid.strides, strict=True)
    }
    levels = detector.grid.levels(neck)
    sizes = tuple(tuple(s * 2.0 * 2 ** (o / 3) for o in range(3)) for s in detector.pyramid.strides)
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    (expected,) = generator(ImageList(torch.zeros(1, 3, SIZE, SIZE), [(SIZE, SIZE)]), list(neck.values()))
    assert torch.equal(detector.grid.anchors(levels, torch.device("cpu")), expected)
    assert [(lv.start, lv.stop) for lv in levels][1] == (16 * 16 * 9, 16 * 16 * 9 + 8 * 8 * 9)


def test_strides_stay_powers_of_two_for_other_sizes() -> None:
    """Of 96 pixels, p6 has two cells of 64 and not of 48 pixels."""
    detector = make("gfl_r18", size=96)
    anchors = detector.grid.on_level("p6", (2, 2), torch.device("cpu"))
    assert ((anchors[:, 0] + anchors[:, 2]) / 2).tolist() == [0, 64, 0, 64]
    assert ((anchors[:, 1] + anchors[:, 3]) / 2).tolist() == [0, 0, 64, 64]
