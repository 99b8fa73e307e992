"""A third task is a package and a row: one that tells bright pictures from dark ones comes from a module of the user's,
and the commands do it without another file being touched.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import medkd as face
from medkd.core.errors import DataError, RunError
from medkd.core.files import read_json, write_json
from medkd.tasks import TASKS, every_task, task_of_dataset, task_of_predictions
from tests.test_outside import run as command

TASK = '''
"""Bright or dark: the mean of a picture's numbers against a threshold, which training finds."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from medkd import RunError
from medkd.core.paths import Root
from medkd.models.base import ModelFolder, register_model
from medkd.tasks import Task, register_task
from medkd.training.options import RunOptions


def read(path):
    return json.loads(Path(path).read_text())


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))


def brightness(path):
    values = read(path)
    return sum(values) / len(values)


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    margin: float = 0.0


def add_options(parser, step):
    if step == "train":
        parser.add_argument("--margin", type=float, help="brightness: added to the threshold")
    if step == "prepare":
        parser.add_argument("--scale", type=float, help="brightness: what numbers are divided by")


def prepare(dataset, *, root=None, scale=1.0, **shared):
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    raw = place.raw / name
    means = {path.stem: brightness(path) / scale for path in sorted((raw / "imagesTr").glob("*.json"))}
    plan = {"task": "brightness", "dataset": name, "scale": scale, "means": means}
    write(place.preprocessed / name / "plans.json", plan)
    write(place.preprocessed / name / "dataset.json", read(raw / "dataset.json"))
    return plan


def train(dataset, network, fold, options):
    place = Root.resolve(options.root)
    name = place.dataset_name(dataset)
    plan, truth = read(place.preprocessed / name / "plans.json"), read(place.raw / name / "labelsTr" / "labels.json")
    groups = {kind: [plan["means"][case] for case in truth if truth[case] == kind] for kind in ("dark", "bright")}
    threshold = (max(groups["dark"]) + min(groups["bright"])) / 2 + options.margin
    folder = place.results / name / f"{network}__brightness" / f"fold_{fold}"
    write(folder.parent / "threshold.json", {"threshold": threshold, "scale": plan["scale"]})
    write(folder / "validation" / "summary.json", {"task": "brightness", "right": 1.0})
    return folder


class Threshold(ModelFolder):
    kind, title, task = "threshold", "a threshold", "brightness"

    @classmethod
    def recognises(cls, path):
        return (path / "threshold.json").exists()

    def folds(self, checkpoint="final"):
        return ("0",)

    def seen(self, fold, cases, raw):
        return frozenset(cases)

    def weights_file(self, fold):
        return self.path / "threshold.json"

    def check_fits(self, plan, configuration, description):
        pass

    def _describe(self):
        return read(self.path / "threshold.json")

    def _load(self, folds, checkpoint):
        return self.describe()


def predict(inputs, outputs, model, **shared):
    about = Threshold(model).describe()
    found = {}
    for path in sorted(Path(inputs).glob("*.json")):
        found[path.stem] = "bright" if brightness(path) / about["scale"] > about["threshold"] else "dark"
    write(outputs / "classes.json", found)
    return SimpleNamespace(predicted=list(found), skipped=[], failed=[], replaced=[])


class Right:
    def __init__(self, share):
        self.share = share

    def save(self, path):
        write(path, {"task": "brightness", "right": self.share})


def evaluate(request, **own):
    found, truth = read(request.predictions / "classes.json"), read(request.references / "labels.json")
    return Right(sum(found[case] == truth[case] for case in truth) / len(truth))


register_model("threshold", Threshold)
register_task(
    Task(
        name="brightness",
        inputs="pictures",
        own={"prepare": ("scale",), "train": ("margin",)},
        add_options=add_options,
        verify=lambda folder: None,
        training_options=Options,
        prepare=prepare,
        describe_plan=lambda plan: f"{len(plan['means'])} pictures are planned",
        plan_line=lambda plan: f"brightness, {len(plan['means'])} pictures",
        train=train,
        dry_run=lambda dataset, network, fold, options: [f"would find a threshold, {options.margin} higher"],
        load=lambda model, folds, **options: Threshold(model),
        predict=predict,
        evaluate=evaluate,
        summary_text=lambda summary: f"right: {summary.share:.0%}",
        score_line=lambda scores: f"right {scores['right']:.2f}",
        predictions_file="classes.json",
    )
)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the user's module and a data set of four pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(TASK)
    raw = tmp_path / "raw" / "Dataset700_Pictures"
    head = {"task": "brightness", "channel_names": {"0": "grey"}, "labels": {"background": 0, "bright": 1}}
    write_json(raw / "dataset.json", {**head, "numTraining": 4, "file_ending": ".json"})
    for case, values in {"a": [0, 1], "b": [1, 2], "c": [7, 9], "d": [8, 9]}.items():
        write_json(raw / "imagesTr" / f"{case}.json", values)
    write_json(raw / "labelsTr" / "labels.json", {"a": "dark", "b": "dark", "c": "bright", "d": "bright"})
    return tmp_path


def test_the_commands_do_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, run = here / "raw" / "Dataset700_Pictures", here / "results" / "Dataset700_Pictures" / "line__brightness"
    common = ["--root", here, "--import", "my_task"]

    assert command("plan_and_preprocess", "-d", 700, "--scale", 2, *common) == 0
    assert capsys.readouterr().out == "4 pictures are planned\n"
    assert read_json(here / "preprocessed" / raw.name / "plans.json")["means"]["c"] == 4

    assert command("train", 700, "line", 0, "--margin", 0.5, "--dry-run", *common) == 0
    assert capsys.readouterr().out == "would find a threshold, 0.5 higher\n" and not run.exists()
    assert command("train", 700, "line", 0, "--margin", 0.5, *common) == 0
    assert read_json(run / "threshold.json") == {"threshold": 2.875, "scale": 2.0}
    assert capsys.readouterr().out == f"{run / 'fold_0'}\n"

    assert command("predict", "-i", raw / "imagesTr", "-o", here / "out", "-m", run, *common) == 0
    assert capsys.readouterr().out == f"4 pictures predicted into {here / 'out'}\n"
    assert command("evaluate", here / "out", raw / "labelsTr", *common) == 0
    assert "right: 100%" in capsys.readouterr().out
    assert json.loads((here / "out" / "summary.json").read_text()) == {"task": "brightness", "right": 1.0}

    write_json(run / "run.json", {})
    assert command("list", "runs", *common) == 0
    assert "right 1.00" in capsys.readouterr().out
    assert command("list", "datasets", *common) == 0
    assert "brightness, 4 pictures" in capsys.readouterr().out


def test_what_it_does_not_have_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--root", here, "--import", "my_task"]
    assert command("train_distill", 700, "line", "line", "kd", 0, *common) == 1
    assert "error: There is no train_distill for brightness" in capsys.readouterr().err
    assert command("score_teacher", 700, here, 0, *common) == 1
    assert "There is no score_teacher for brightness" in capsys.readouterr().err
    assert command("train", 700, "line", 0, "--image-size", 64, *common) == 1
    assert "--image-size is for detection, but 700 is for brightness" in capsys.readouterr().err


def test_several_processes_do_not_all_train_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--root", here, "--import", "my_task"]
    assert command("plan_and_preprocess", "-d", 700, *common) == 0
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for words in (["train", 700, "line", 0], ["train", 700, "line", "folds"]):
        assert command(*words, *common) == 1
        said = capsys.readouterr().err
        assert "A network for brightness is trained by one process, but 2 were started" in said
    assert not (here / "results").exists()
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert command("train", 700, "line", 0, *common) == 1
    assert "Expected a whole number in the variable WORLD_SIZE" in capsys.readouterr().err


def test_without_its_module_the_task_is_unknown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan_and_preprocess", "-d", 700, "--root", here) == 1
    message = capsys.readouterr().err
    assert "Unknown task 'brightness'" in message and "for one of your own give --import MODULE" in message
    with pytest.raises(DataError, match="Unknown task 'brightness'"):
        task_of_dataset(700, here)
    with pytest.raises(RunError, match=r"medkd\.plan_and_preprocess has no setting 'scale'"):
        write_json(here / "raw" / "Dataset700_Pictures" / "dataset.json", LABELS)
        face.plan_and_preprocess(700, root=here, scale=2)


LABELS = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 4, "file_ending": ".gz"}


def test_every_column_of_medkds_own_tasks_leads_somewhere() -> None:
    for task in every_task():
        for name, target in vars(task).items():
            if hasattr(target, "load"):
                assert task.column(name) is not None, f"{task.name}: {name}"
        shared = task.column("train").args[0]  # what the loop that all tasks share asks
        assert task.in_several_processes is shared.in_several_processes is True


def test_predictions_are_known_by_their_file(tmp_path: Path) -> None:
    assert task_of_predictions(tmp_path) is TASKS["segmentation"]
    write_json(tmp_path / "predictions.json", {})
    assert task_of_predictions(tmp_path) is TASKS["detection"]
    assert task_of_predictions(tmp_path / "copy.json") is TASKS["detection"]
