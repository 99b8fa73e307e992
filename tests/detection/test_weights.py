"""Weights that were trained elsewhere: ultralytics' files and backbones, and files that would run code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from medkd.core.checkpoint import save_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.files import write_json
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.families import register_detectors
from medkd.detection.models import DetectorWeights
from medkd.detection.plan import DetectionPlan
from medkd.detection.weights import load_into, read_detector_weights, start_from


def build(name: str, *categories: str, seed: int = 0) -> Detector:
    register_detectors(name)
    torch.manual_seed(seed)
    return DETECTORS[name].build(DetectorSpec(name, categories or ("fracture",), 64))


def check_fits(model: DetectorWeights, *categories: str) -> None:
    plan = DetectionPlan(dataset="Dataset502_Tiny", categories=categories, image_size=64, batch_size=2)
    model.check_fits(plan, "detection", DatasetDescription.detection(("grey",), categories))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("was_here"),)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ultralytics leaves after training: the pickled network."""
    path = tmp_path_factory.mktemp("theirs") / "best.pt"
    network = build("yolov8n", "fracture", "text", seed=5).network  # type: ignore[attr-defined]
    torch.save({"epoch": 3, "ema": None, "model": network.half(), "train_args": {}}, path)
    return path


def test_ultralytics_weights_are_read_with_their_classes(best: Path) -> None:
    state, names = read_detector_weights(best)
    assert names == ("fracture", "text") and state["model.0.conv.weight"].dtype == torch.float32
    detector = build("yolov8n", "fracture", "text")
    load_into(detector, state, best)
    same = build("yolov8n", "fracture", "text", seed=5).state_dict()
    torch.testing.assert_close(detector.state_dict()["model.0.conv.weight"], same["model.0.conv.weight"].half().float())
    with pytest.raises(RunError, match="holds no yolov8n for 1 classes"):
        load_into(build("yolov8n"), state, best)


def test_an_ultralytics_file_teaches_with_a_description(best: Path) -> None:
    (best.parent / "teacher.json").unlink(missing_ok=True)
    with pytest.raises(RunError, match=r'put a teacher\.json beside it, like \{"network"'):
        DetectorWeights(best)
    write_json(
        best.parent / "teacher.json",
        {"network": "yolov8n", "categories": ["fracture", "text"], "train": ["a"], "image_size": 64},
    )
    source = DetectorWeights(best)
    assert source.seen("given", ("a", "b"), best.parent) == {"a"} and source.folds() == ("given",)
    assert source.describe().spec.image_size == 64
    assert source.network("given").spec.categories == ("fracture", "text")
    check_fits(source, "fracture", "text")
    with pytest.raises(RunError, match="the same classes in another order"):
        check_fits(source, "text", "fracture")
    write_json(best.parent / "teacher.json", {"network": "yolov8n", "categories": ["text", "fracture"], "train": []})
    with pytest.raises(
        RunError, match=r"was trained for the classes fracture, text, but teacher\.json says text, fracture"
    ):
        DetectorWeights(best).network("given")


def test_files_that_could_run_code_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(RunError, match="could run code"):
        read_detector_weights(tmp_path / "evil.pt")
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(RunError, match="could run code"):
        read_detector_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "was_here").exists()
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    for name in ("cut.pt", "absent.pt"):
        with pytest.raises(RunError, match=name):
            read_detector_weights(tmp_path / name)


def test_a_checkpoint_of_medkd_is_weights_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint_final.pt", {"schema": 1, "network": {"a": torch.ones(2)}})
    assert read_detector_weights(tmp_path / "checkpoint_final.pt")[0].keys() == {"a"}


def test_a_detector_starts_from_one_for_other_classes(best: Path) -> None:
    detector, before = build("yolov8n"), build("yolov8n").state_dict()
    start_from(detector, best)
    given, after = read_detector_weights(best)[0], detector.state_dict()
    taken = [name for name in after if name in given and torch.equal(after[name], given[name])]
    assert len(taken) > 0.9 * len(after)
    kept = "model.22.cv3.0.2.weight"  # the layer that depends on the number of classes
    assert torch.equal(after[kept], before[kept]) and after[kept].shape != given[kept].shape
    with pytest.raises(RunError, match="give weights of this architecture"):
        start_from(build("yolov8_r18"), best)


def test_a_yolo_student_starts_from_torchvisions_backbone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(resnet, tmp_path / "r18.pth")
    detector = build("yolov8_r18").eval()
    start_from(detector, tmp_path / "r18.pth")
    whole = torchvision.models.resnet18(weights=None).eval()
    whole.load_state_dict(resnet)
    for module in whole.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3  # which ultralytics sets in every network that it builds
    image = torch.rand(1, 3, 64, 64)
    stem = whole.maxpool(whole.relu(whole.bn1(whole.conv1(image))))
    expected = whole.layer4(whole.layer3(whole.layer2(whole.layer1(stem))))
    found = detector.model[0](image)  # type: ignore[index, operator]
    torch.testing.assert_close(found[-1], expected)


def test_a_torchvision_detector_starts_from_its_backbone(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(resnet, tmp_path / "r18.pth")
    detector = build("retinanet_r18")
    start_from(detector, tmp_path / "r18.pth")
    own = [v for k, v in detector.state_dict().items() if k.endswith("body.conv1.weight")]
    assert len(own) == 1 and torch.equal(own[0], resnet["conv1.weight"])
