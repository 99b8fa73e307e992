"""Starting a detector on a small ResNet from one on a large ResNet: exact where both are alike, else near it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medkd.core.errors import RunError
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.families import register_detectors
from medkd.detection.inheritance import inherit
from medkd.detection.layers import chart_pair

register_detectors("fcos_r18")


def _make(name: str, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return DETECTORS[name].build(DetectorSpec(name, ("fracture", "metal"), 64)).eval()


def _pictures(count: int, seed: int) -> Tensor:
    """Blurred noise, so that neighbouring pixels have something to do with each other."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, 64, mode="bilinear")


def _settled(name: str) -> Detector:
    """Running statistics and scales of batch normalisation that are not those of random weights."""
    detector = _make(name, 3)
    for norm in (module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.3
        nn.init.uniform_(norm.weight, 0.3, 0.8)
        nn.init.normal_(norm.bias, std=0.2)
    detector.train()
    with torch.no_grad():
        for seed in range(8):
            _maps(detector, _pictures(6, seed))
    return detector.eval()


def _maps(detector: Detector, images: Tensor) -> Tensor:
    """All maps of the pyramid."""
    return torch.cat([values.flatten(1) for values in detector.pyramid(images).values()], 1)  # type: ignore[operator]


def _scores(detector: Detector, images: Tensor) -> Tensor:
    """What comes from the maps."""
    maps = detector.pyramid(images)  # type: ignore[operator]
    if detector.two_stage:
        found = detector.proposer.head(list(maps.values()))  # type: ignore[operator, union-attr]
        return torch.cat([values.flatten(1) for part in found for values in part], 1)
    outputs = detector.predict(maps)  # type: ignore[operator]
    return torch.cat([outputs.logits.flatten(1), outputs.boxes.flatten(1) / 64], 1)


def _error(found: Tensor, answer: Tensor) -> float:
    return float((found - answer).square().mean() / answer.var())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcos", "faster_rcnn"])
def test_a_student_of_the_teachers_shape_becomes_the_teacher(kind: str) -> None:
    teacher, student = _settled(f"{kind}_r18"), _make(f"{kind}_r18", 1)
    fits = inherit(student, teacher, _pictures(4, 50))
    assert all(fit.explained > 0.999 for fit in fits)
    new = _pictures(3, 60)
    with torch.no_grad():
        assert _error(_maps(student, new), _maps(teacher, new)) < 1e-4
        assert _error(_scores(student, new), _scores(teacher, new)) < 1e-4
    own, given = student.state_dict(), teacher.state_dict()
    for name in own:
        if name.startswith(("scorer.", "head.scales.")):
            assert torch.equal(own[name], given[name])


@pytest.mark.slow
def test_a_shallower_backbone_of_other_blocks_repeats_what_its_teacher_gives_for_the_images() -> None:
    """Sums of bottlenecks by blocks of two convolutions, and a quarter of the channels."""
    teacher, student = _settled("retinanet_r50"), _make("retinanet_r18", 1)
    images = _pictures(6, 50)
    with torch.no_grad():
        maps, scores = _maps(teacher, images), _scores(teacher, images)
        random = _error(_maps(student, images), maps)
        fits = {fit.layer: fit.explained for fit in inherit(student, teacher, images)}
        assert _error(_maps(student, images), maps) < 0.2 < random
        assert _error(_scores(student, images), scores) < 0.2
    assert fits["pyramid.bottom.body.layer4.1.conv2"] > 0.9


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        (
            "retinanet_r18",
            "fcos_r50",
            "the student is a retinanet_r18 and the teacher a fcos_r50; choose another teacher",
        ),
        ("retinanet_r18", "retinanet_swin_t", "but retinanet_swin_t has swin_t; choose others"),
        ("fcos_r50", "fcos_r18", "nowhere deeper than its teacher, but pyramid.bottom.body.layer1.0.downsample.0"),
        ("fcos_r101", "fcos_r50", "nowhere deeper than its teacher, but pyramid.bottom.body.layer3.6.conv1"),
        ("yolov8n", "fcos_r50", "the student is a yolov8n and the teacher a fcos_r50"),
    ],
)
def test_pairs_that_do_not_fit_are_one_sentence(student: str, teacher: str, text: str) -> None:
    register_detectors(student)
    with pytest.raises(RunError, match=rf"{text}.* use --init random\.$"):
        chart_pair(_make(student), _make(teacher))
