"""Every kind of model keeps the contract, passes the guards, and a new kind is a class and a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medkd
from medkd.core.channels import differing_channels
from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import LeakError, RunError
from medkd.core.files import write_json
from medkd.core.labels import LabelSpec
from medkd.core.plan import Plan
from medkd.core.run import DATASET_FILE, PLANS_FILE, NetworkSpec
from medkd.core.splits import Split
from medkd.detection.plan import DetectionPlan
from medkd.exporting.export import export_model
from medkd.models.base import MODEL_KINDS, Checkpoint, ModelFolder, find_model, open_model, register_model
from medkd.models.guard import choose_teacher
from medkd.models.nnunet.checkpoint import ALLOWED
from medkd.models.segmentation import SegmentationFolder, TrainedModel, shown_labels
from medkd.models.weights import load_weights
from medkd.networks import build_network
from tests.detection import stub
from tests.detection.builders import make_dataset as make_radiographs
from tests.models.test_bundle import write as write_bundle
from tests.training.builders import NAME, make_dataset
from tests.training.test_teacher_scores import make_model

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0" / "plain_unet__3d_fullres"


def _run(base: Path) -> Path:
    return Path(shutil.copytree(OLD, base / "plain_unet__3d_fullres"))


def _described(base: Path) -> Path:
    folder = make_model(base / "net", 1)
    stated = json.loads((folder / "teacher.json").read_text())
    write_json(folder / "teacher.json", {**stated, "train": ["case_00"]})
    return folder


def _bundle(base: Path) -> Path:
    return write_bundle(base / "bundle", teacher={"train": ["case_00"]})


def _nnunet(base: Path) -> Path:
    model = Path(shutil.copytree(base / "real" / "nnunet_model" / "model", base / "model"))
    shutil.rmtree(model / "fold_0" / "validation", ignore_errors=True)
    cases = [f"case_{i:02d}" for i in range(4)]
    write_json(model / "splits_final.json", [{"train": cases[:2], "val": cases[2:]}])
    return model


def _detector_run(base: Path) -> Path:
    folder = stub.make_run(base, make_radiographs(base, images=3))
    write_json(folder / "fold_0" / "split.json", {"train": ["case_00"], "val": []})
    return folder


def _detector_weights(base: Path) -> Path:
    stub.register()
    folder = base / "theirs"
    save_checkpoint(folder / "best.pt", {"network": {"threshold": torch.tensor(0.5)}})
    stated = {"network": stub.NAME, "categories": ["fracture"], "train": ["case_00"], "image_size": 96}
    write_json(folder / "teacher.json", stated)
    return folder / "best.pt"


def _exported(base: Path) -> Path:
    pytest.importorskip("onnxscript")
    folder = base / "exported"
    export_model(OLD, folder)
    record = json.loads((folder / "export.json").read_text())
    write_json(folder / "export.json", {**record, "seen": ["case_00"]})
    return folder


EXAMPLES: dict[str, Callable[[Path], Path]] = {
    "exported": _exported,
    "run": _run,
    "described": _described,
    "bundle": _bundle,
    "nnunet": _nnunet,
    "detector_run": _detector_run,
    "detector_weights": _detector_weights,
}


@pytest.fixture(params=sorted(EXAMPLES))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ModelFolder[Any]:
    if request.param == "nnunet":
        (tmp_path / "real").symlink_to(request.getfixturevalue("real_data"))
    opened = open_model(EXAMPLES[request.param](tmp_path))
    assert opened.kind == request.param
    return opened


def wanted(model: ModelFolder[Any], **changes: Any) -> tuple[Any, str, DatasetDescription]:
    """Plan, configuration and data set of a student that the model may teach, but for the ``changes``."""
    described = model.describe()
    if model.task == "detection":
        categories = changes.get("categories", described.categories)
        plan = DetectionPlan(dataset="Dataset001_X", categories=categories, image_size=96, batch_size=2)
        return plan, "detection", DatasetDescription.detection(("grey",), categories)
    channels = changes.get("channels", described.channels)
    dataset = DatasetDescription(channel_names=channels, labels=described.labels, num_training=1)
    return described.plan, described.configuration.name, dataset


def test_every_kind_has_an_example() -> None:
    # several teachers, and the stages of a cascade, have no single network; tests/training/test_merged.py and
    # tests/models/nnunet/test_cascade.py are about them; an exported detector predicts and does not teach, see
    # tests/exporting/test_detectors.py
    assert {*EXAMPLES, "several", "nnunet_cascade", "exported_detector"} == set(MODEL_KINDS)


def test_a_kind_answers_everything(model: ModelFolder[Any], tmp_path: Path) -> None:
    described, folds = model.describe(), model.teaching_folds
    assert described.networks == () and folds and model.title and model.name and model.recorded
    assert model.describe() is described
    loaded = model.load(folds[:1], checkpoint=model.checkpoint_of(folds[0]))
    assert len(loaded.networks) == 1 and loaded.folds == folds[:1]
    network = model.network(folds[0])
    assert isinstance(network, nn.Module) and not network.training
    assert all(str(value.device) == "cpu" for value in network.state_dict().values())
    assert model.weights_file(folds[0]).is_file()
    seen = model.seen(folds[0], ["case_00", "case_01", "case_02", "case_03"], tmp_path)
    assert "case_00" in seen
    assert model.remedy("Dataset001_X")
    model.check_fits(*wanted(model))


def test_a_kind_never_teaches_on_what_it_has_seen(model: ModelFolder[Any], tmp_path: Path) -> None:
    cases = [f"case_{i:02d}" for i in range(4)]
    with pytest.raises(LeakError, match="1 of the 1 cases on which fold 0"):
        choose_teacher(model, 0, Split(("case_03",), ("case_00",)), cases, tmp_path)
    teacher = choose_teacher(model, 0, Split(("case_00",), ("somebody_else",)), cases, tmp_path)
    assert teacher.fold in model.teaching_folds and "case_00" in teacher.seen


def test_a_kind_refuses_students_that_mean_something_else(model: ModelFolder[Any]) -> None:
    if model.task == "detection":
        with pytest.raises(RunError, match=r"other classes \(fracture\) than the data set \(metal\)"):
            model.check_fits(*wanted(model, categories=("metal",)))
        return
    with pytest.raises(RunError, match="number of input channels 1 differs from the data set's 2"):
        model.check_fits(*wanted(model, channels=("a", "b")))


def test_a_kind_refuses_weights_that_are_not_finite(model: ModelFolder[Any]) -> None:
    fold = model.teaching_folds[0]
    file = model.weights_file(fold)
    if model.kind == "exported":  # its weights are part of a graph, whose file may not change at all
        file.write_bytes(file.read_bytes().replace(b"image", b"inage", 1))
        with pytest.raises(RunError, match="is not the network that"):
            model.network(fold)
        return
    content = load_checkpoint(file, allowed=ALLOWED)
    weights = content.get("network") or content.get("network_weights") or content
    value = next(value for value in weights.values() if isinstance(value, Tensor) and value.is_floating_point())
    value.view(-1)[-1] = float("nan")
    torch.save(content, file)
    with pytest.raises(RunError, match="not finite"):
        model.network(fold)


def test_a_teacher_of_the_other_task_is_named(model: ModelFolder[Any], tmp_path: Path) -> None:
    other = "segmentation" if model.task == "detection" else "detection"
    with pytest.raises(RunError, match=f"which does {model.task}, but the data set .* is one for {other}"):
        find_model(str(model.path), tmp_path / "Dataset001_X", "3d_fullres", other)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=f"which does {model.task}, expected a model for {other}"):
        open_model(model.path, other)  # type: ignore[arg-type]


def test_what_is_no_model_is_refused_with_what_there_is(tmp_path: Path) -> None:
    _run(tmp_path / "results")
    with pytest.raises(RunError, match=r"Did you mean 'plain_unet__3d_fullres'\? Runs found: plain_unet__3d_fullres;"):
        find_model("plain_unet__3d", tmp_path / "results", "2d", "segmentation")
    assert find_model("plain_unet", tmp_path / "results", "3d_fullres", "segmentation").kind == "run"
    with pytest.raises(RunError, match="a MONAI bundle"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("theirs", "ours", "differs"),
    [
        ("FLAIR,T1", "T1,FLAIR", "the same channels in another order"),
        ("FLAIR,T1", "flair,t1w", None),
        ("t1c,t1n,t2f,t2w", "T1Gd,T1,FLAIR,T2", None),
        ("t1c,t1n,t2f,t2w", "T1,T1ce,FLAIR,T2", "the same channels in another order"),
        ("T1", "T2", "other channels"),
        ("CT", "MRI", "other channels"),
        ("MR", "MRI", None),
        ("MRI", "cineMRI", None),
        ("0,1", "T1,FLAIR", None),
        ("channel_0,channel_1", "T1,FLAIR", None),
        ("image", "CT", None),
        ("noNorm,zscore", "T1,FLAIR", None),
        ("image,FLAIR", "T1,ADC", "other channels"),
        ("T2,ADC", "T2,ADC,DWI", "another number of input channels"),
    ],
)
def test_channels_are_compared_by_what_their_names_mean(theirs: str, ours: str, differs: str | None) -> None:
    assert differing_channels(theirs.split(","), ours.split(",")) == differs


class Mine(SegmentationFolder):
    """A kind of model from outside: a plan and the weights of unet_tiny."""

    kind = "mine"
    title = "a model of mine"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / "mine").is_file()

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        return ("given",)

    def seen(self, fold: str, cases: Any, raw: Path) -> frozenset[str]:
        return frozenset((self.path / "mine").read_text().split())

    def weights_file(self, fold: str) -> Path:
        return self.path / "weights.pt"

    def _describe(self) -> TrainedModel:
        plan = Plan.load(self.path / PLANS_FILE)
        data = DatasetDescription.load(self.path / DATASET_FILE)
        configuration = plan.configuration("3d_fullres")
        patch = configuration.architecture("plain_unet").patch_size
        return TrainedModel(
            folds=("given",),
            plan=plan,
            configuration=configuration,
            labels=data.labels,
            channels=data.channel_names,
            patch_size=patch,
            mirror_axes=(0,),
        )

    def _load(self, folds: Any, checkpoint: Checkpoint) -> TrainedModel:
        weights = load_checkpoint(self.weights_file("given"))
        network = load_weights(SPEC, weights, str(self.path))
        return TrainedModel(**{**vars(self.describe()), "networks": [network]})


SPEC = NetworkSpec(name="unet_tiny", in_channels=1, num_outputs=3, patch_size=(16, 16, 16))


@pytest.fixture
def _mine() -> Iterator[None]:
    register_model("mine", Mine)
    yield
    del MODEL_KINDS["mine"]


@pytest.mark.usefixtures("_mine")
def test_a_kind_from_outside_teaches_and_is_guarded(tmp_path: Path) -> None:
    prepared = make_dataset(tmp_path)
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in (PLANS_FILE, DATASET_FILE):
        shutil.copy(prepared / name, folder)
    save_checkpoint(folder / "weights.pt", build_network(SPEC).state_dict())
    (folder / "mine").write_text("")
    assert open_model(folder).kind == "mine"
    options: dict[str, Any] = {"epochs": 1, "iterations_per_epoch": 2, "workers": 0, "device": "cpu", "validate": False}
    trained = medkd.train_distill(900, folder, "unet_tiny", "kd", 0, root=tmp_path, **options)
    run = json.loads((trained.parent / "run.json").read_text())
    assert trained.parent == tmp_path / "results" / NAME / "unet_tiny__3d_fullres__kd__from_theirs"
    assert run["teacher"] == str(folder) and run["mirror_axes"] == [0]
    held_out = json.loads((trained / "split.json").read_text())["val"]
    (folder / "mine").write_text(" ".join(held_out))
    with pytest.raises(LeakError):
        medkd.train_distill(900, folder, "unet_tiny", "kd", 0, root=tmp_path, tag="again", **options)
    with pytest.raises(ValueError, match="registered twice"):
        register_model("mine", Mine)


def test_kinds_are_registered_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_KINDS, "late", f"{__name__}:Mine")
    (tmp_path / "mine").touch()
    assert open_model(tmp_path).kind == "mine"


def test_labels_of_another_meaning_are_shown_as_people_write_them(tmp_path: Path) -> None:
    model = open_model(_run(tmp_path), "segmentation")
    assert isinstance(model, SegmentationFolder)
    plan, described = Plan.load(OLD / PLANS_FILE), DatasetDescription.load(OLD / DATASET_FILE)
    configuration = next(iter(plan.configurations))
    other = replace(described, labels=LabelSpec.from_names(["spleen"]))
    with pytest.raises(RunError) as refused:
        model.check_fits(plan, configuration, other)
    said = str(refused.value)
    assert "the data set's are background 0, spleen 1; name and number" in said
    assert "(" not in said.partition("its labels")[2]


def test_every_part_of_labels_is_shown() -> None:
    spec = LabelSpec((("background", (0,)), ("whole", (1, 2))), regions=True, order=(1,), ignore=3)
    assert shown_labels(spec) == "background 0, whole 1+2, painted as 1, ignored 3"
