"""A network, a method, a detector and a format that stand in a module of the user's own, by the commands alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataset_conversion.registry import CONVERTERS
from medkd.cli.overview import main as medkd
from medkd.core.files import read_json, write_json
from medkd.detection.base import DETECTORS
from medkd.distillation import METHODS
from medkd.models.base import MODEL_KINDS
from medkd.networks import NETWORKS
from medkd.tasks import TASKS
from tests.dataset_conversion.trees import write_pair
from tests.detection.builders import make_dataset as make_radiographs
from tests.training.builders import make_dataset

SEGMENTATION = '''
import medkd
from torch import nn
from medkd.distillation import Method
from medkd.networks import SegmentationNetwork


@medkd.register_network("own_network", ranks=(3,), citation="nobody, nowhere")
class OwnNetwork(SegmentationNetwork):
    def __init__(self, spec):
        super().__init__(spec)
        self.layers = nn.Sequential(nn.Conv3d(spec.in_channels, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Conv3d(4, spec.num_outputs, 1)

    def forward(self, x):
        return self.head(self.layers(x))


@medkd.register_method("own_method")
class OwnMethod(Method):
    """The teacher's logits, squared."""

    citation = "nobody, nowhere"
    outputs_only = True

    def __init__(self, context, weight=0.1):
        super().__init__(context)
        self.weight = weight

    def forward(self, student, teacher, target):
        return {"mse": self.weight * (student.logits - teacher.logits).square().mean()}
'''

DETECTION = """
import medkd
from medkd.detection.tv.dense_models import FCOS


@medkd.register_detector("own_detector", about="FCOS by another name")
def build(spec):
    return FCOS(spec, "r18")
"""

CONVERSION = """
import medkd
from dataset_conversion import CONVERTERS


@medkd.register_converter("own_format", summary="one folder deeper", settings={"deeper": "the folder"})
def convert(source, folder, options):
    return CONVERTERS["msd"].convert(source / options.settings["deeper"], folder, options)
"""

SHORT = ["--epochs", "1", "--iterations-per-epoch", "2", "--workers", "0", "--device", "cpu"]


@contextmanager
def another_process() -> Iterator[None]:
    """What is imported and registered here is forgotten afterwards, as if a process had ended."""
    before, path = set(sys.modules), list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medkd.models.base.MODEL_KINDS", dict(MODEL_KINDS))
        for registry in (NETWORKS, METHODS, DETECTORS, CONVERTERS, TASKS):
            patch.setattr(registry, "_entries", dict(registry._entries))
            patch.setattr(registry, "_modules", dict(registry._modules))
        yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def run(*words: object) -> int:
    with another_process():
        return medkd([str(word) for word in words])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the user's modules, named as nothing else is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text(SEGMENTATION)
    (tmp_path / "my_detectors.py").write_text(DETECTION)
    (tmp_path / "my_formats.py").write_text(CONVERSION)
    return tmp_path


def test_a_network_and_a_method(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed = make_dataset(here, cases=4)
    runs = here / "results" / preprocessed.name
    common = ["--root", here, *SHORT, "--no-validate"]
    assert run("train", 900, "own_network", 0, *common) == 1
    assert "for one of your own give --import MODULE" in capsys.readouterr().err

    mine = ["--import", "my_parts"]
    assert run("train", 900, "own_network", 0, *common, *mine) == 0
    teacher = runs / "own_network__3d_fullres"
    assert read_json(teacher / "run.json")["modules"] == {"own_network": "my_parts"}

    named = ["own_network", "own_network", "own_method"]
    distil = ["train_distill", 900, *named, 0, *common, "--set", "own_method.weight=1"]
    assert run(*distil, *mine, "--dry-run") == 0
    assert run(*distil, *mine) == 0
    student = runs / "own_network__3d_fullres__own_method__from_own_network"
    modules = read_json(student / "run.json")["modules"]
    assert modules == {"own_network": "my_parts", "own_method": "my_parts"}
    capsys.readouterr()

    scan = make_scan(here)
    predict = ["predict", "-i", scan, "-o", here / "out", "-m", student, "-f", 0, "--device", "cpu", "--no-tta"]
    assert run(*predict) == 1
    expected = f"{student} was trained with the network 'own_network' of the module 'my_parts'; give --import my_parts"
    assert expected in capsys.readouterr().err
    assert "my_parts" not in sys.modules and not (here / "out").exists()
    assert run(*predict, *mine) == 0
    assert (here / "out" / "scan.nii.gz").exists()

    # a student cannot be taught by it either without a word
    assert run("train_distill", 900, "own_network", "unet_tiny", "kd", 0, *common) == 1
    assert "give --import my_parts" in capsys.readouterr().err

    assert run("list", "methods", *mine) == 0
    assert "own_method" in capsys.readouterr().out


def test_a_strangers_run_imports_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a run folder names, be it importable and harmful."""
    preprocessed = make_dataset(here, cases=4)
    assert run("train", 900, "unet_tiny", 0, "--root", here, *SHORT, "--no-validate") == 0
    folder = here / "results" / preprocessed.name / "unet_tiny__3d_fullres"
    content = read_json(folder / "run.json")
    assert content["modules"] == {}
    content["network"]["name"], content["modules"] = "theirs", {"theirs": "my_trap"}
    write_json(folder / "run.json", content)
    (here / "my_trap.py").write_text("raise SystemExit('the trap was sprung')")
    predict = ["predict", "-i", make_scan(here), "-o", here / "out", "-m", folder, "-f", 0, "--device", "cpu"]
    assert run(*predict) == 1
    assert "of the module 'my_trap'; give --import my_trap if you trust it" in capsys.readouterr().err
    del content["modules"]  # as runs were before there were modules
    write_json(folder / "run.json", content)
    assert run(*predict) == 1
    assert "Unknown network 'theirs'" in capsys.readouterr().err


def test_a_detector(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    raw = make_radiographs(here, images=8, size=64)
    assert run("plan_and_preprocess", "-d", 502, "--root", here, "--image-size", 64, "--no-verify") == 0
    train = ["train", 502, "own_detector", 0, "--root", here, *SHORT, "--batch-size", 2, "--no-validate"]
    assert run(*train) == 1
    assert "own_detector" in capsys.readouterr().err
    assert run(*train, "--import", "my_detectors") == 0
    folder = here / "results" / raw.name / "own_detector__detection"
    assert read_json(folder / "run.json")["modules"] == {"own_detector": "my_detectors"}
    predict = ["predict", "-i", raw / "imagesTr", "-o", here / "boxes", "-m", folder, "-f", 0, "--device", "cpu"]
    assert run(*predict) == 1
    assert "detector 'own_detector' of the module 'my_detectors'; give --import" in capsys.readouterr().err
    assert run(*predict, "--import", "my_detectors") == 0
    assert (here / "boxes" / "predictions.json").exists()


def test_a_format(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = here / "source"
    for seed in (0, 1):
        name = f"case_{seed}.nii.gz"
        write_pair(source / "inner" / "imagesTr" / name, source / "inner" / "labelsTr" / name, seed, [1])
    words = ["own_format", source, "-d", 31, "--deeper", "inner", "--root", here, "--channels", "CT"]
    with pytest.raises(SystemExit):
        run("convert", *words)
    assert "invalid choice: 'own_format'" in capsys.readouterr().err
    for number, place in ((31, 0), (32, len(words))):  # before the format or after it
        command = [*words[:place], "--import", "my_formats", *words[place:]]
        command[command.index(31)] = number
        assert run("convert", *command) == 0
        assert (here / "raw" / f"Dataset{number:03d}_source" / "dataset.json").exists()


def make_scan(folder: Path) -> Path:
    """One scan as the data set's cases are."""
    from medkd.core.geometry import Geometry
    from medkd.io.volumes import write_volume
    from tests.training.builders import boxes_case

    image, _ = boxes_case(7)
    path = folder / "scans" / "scan_0000.nii.gz"
    path.parent.mkdir(exist_ok=True)
    write_volume(path, image[0], Geometry.from_spacing(image.shape[1:], (1.0, 1.0, 1.0)))
    return path
