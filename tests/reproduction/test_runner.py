"""The runner with an engine that only pretends: order, second tries, what a failure holds up, going on after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medkd.cli import convert
from medkd.core.checkpoint import save_checkpoint
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.labels import LabelSpec
from medkd.core.made_from import changed_inputs, note_inputs
from medkd.core.paths import Root
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.reproduction import runner as runner_module
from medkd.reproduction.engines import AGAIN, Needs, Order
from medkd.reproduction.graph import Node, Place, Trained, build_graph
from medkd.reproduction.local import LocalEngine
from medkd.reproduction.recipe import Recipe, load_recipe
from medkd.reproduction.runner import Outcome, Runner, ensure_data
from medkd.reproduction.state import Standing, State, standing
from tests.reproduction.test_recipe import recipe


@dataclass
class Pretended:
    """A command that ends at the second look."""

    code: int
    ticket: str = ""
    looks: int = 0

    def poll(self) -> int | None:
        self.looks += 1
        return self.code if self.looks > 1 else None


@dataclass
class PretendedEngine:
    """Begins nothing; commands end with the codes that are given for them, else with 0."""

    folder: Path
    codes: dict[str, list[int]] = field(default_factory=dict)
    room: int = 2
    begun: list[str] = field(default_factory=list)
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    alive: dict[str, Pretended] = field(default_factory=dict)
    handles: list[Pretended] = field(default_factory=list)
    most: int = 0
    stopped: bool = False
    error: str = "the disk is full"

    def free(self) -> int:
        running = sum(handle.looks < 2 for handle in self.handles)
        self.most = max(self.most, running)
        return self.room - running

    def begin(self, orders: Sequence[Order]) -> list[Pretended]:
        found = []
        for order in orders:
            codes = self.codes.get(order.name, [])
            code = codes.pop(0) if codes else 0
            self.begun.append(order.name)
            self.commands[order.name] = order.command
            run = self.folder / f"run_{order.name}" / "fold_0"
            run.mkdir(parents=True, exist_ok=True)
            order.output.parent.mkdir(parents=True, exist_ok=True)
            order.output.write_text(f"something\n{run}\n")
            with order.log.open("a") as log:
                log.write(f"progress\nerror: {self.error}\n" if code else "progress\n")
            found.append(Pretended(code, f"ticket {order.name}"))
        self.handles += found
        return found

    def find(self, ticket: str) -> Pretended | None:
        return self.alive.get(ticket)

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_PAUSE", 0.0)


def graph(folder: Path) -> dict[str, Node]:
    path = folder / "toy.json"
    middle = {"network": "plain_unet", "taught_by": "large", "method": "kd"}
    teachers = {"large": {"network": "res_unet"}, "middle": middle}
    path.write_text(json.dumps(recipe(teachers=teachers, students={"tiny": {"network": "unet_tiny"}}, folds=["0"])))
    loaded: Recipe = load_recipe(path)
    return build_graph(loaded, Place(name="toy", root=folder, models={}))


def go(folder: Path, nodes: dict[str, Node], engine: PretendedEngine) -> Outcome:
    said: list[str] = []
    return Runner(nodes, State(folder, "toy"), engine, said.append).run()


def test_everything_comes_after_what_it_needs_and_only_once(tmp_path: Path) -> None:
    nodes, engine = graph(tmp_path), PretendedEngine(tmp_path)
    outcome = go(tmp_path, nodes, engine)
    assert sorted(outcome.done) == sorted(nodes)
    assert sorted(engine.begun) == sorted(nodes)
    for name, node in nodes.items():
        assert all(engine.begun.index(need) < engine.begun.index(name) for need in node.needs)
    assert engine.most <= engine.room


def test_each_born_again_round_is_taught_by_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    taught = {"network": "res_unet", "method": "kd"}
    teachers = {
        "first": {"network": "res_unet"},
        "again1": {**taught, "taught_by": "first"},
        "again2": {**taught, "taught_by": "again1"},
        "again3": {**taught, "taught_by": "again2"},
    }
    path.write_text(json.dumps(recipe(teachers=teachers, students={"tiny": {"network": "unet_tiny"}}, folds=["0"])))
    nodes = build_graph(load_recipe(path), Place(name="toy", root=tmp_path, models={}))
    engine = PretendedEngine(tmp_path)
    go(tmp_path, nodes, engine)
    for teacher, student in (("first", "again1"), ("again1", "again2"), ("again2", "again3")):
        command = engine.commands[f"{student}-fold0"]
        assert list(command)[list(command).index("train_distill") + 2 :][:3] == [
            f"run_{teacher}-fold0",
            "res_unet",
            "kd",
        ]
        assert f"toy-{student}" in command  # a run of its own, though networks and methods are the same
    assert "run_again3-fold0" in engine.commands["tiny-kd-from-again3-seed0-fold0"]


def test_names_of_trained_runs_come_into_the_commands_of_their_students(tmp_path: Path) -> None:
    nodes, engine = graph(tmp_path), PretendedEngine(tmp_path)
    go(tmp_path, nodes, engine)
    assert Trained("middle-fold0") in nodes["tiny-kd-from-middle-seed0-fold0"].words
    assert "run_middle-fold0" in engine.commands["tiny-kd-from-middle-seed0-fold0"]
    assert "run_large-fold0" in engine.commands["middle-fold0"]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    nodes = graph(tmp_path)
    go(tmp_path, nodes, PretendedEngine(tmp_path))
    again = PretendedEngine(tmp_path)
    assert sorted(go(tmp_path, nodes, again).done) == sorted(nodes)
    assert again.begun == ["prepare"]  # which sees itself whether plan and data are those of before


def test_a_run_whose_folder_is_gone_is_done_again_and_its_students_are_kept(tmp_path: Path) -> None:
    nodes = graph(tmp_path)
    go(tmp_path, nodes, PretendedEngine(tmp_path))
    gone = tmp_path / "run_tiny-alone-seed0-fold0"
    (gone / "fold_0").rmdir()
    again = PretendedEngine(tmp_path)
    go(tmp_path, nodes, again)
    assert again.begun == ["prepare", "tiny-alone-seed0-fold0"]


def test_what_fails_once_is_tried_again_and_what_fails_twice_holds_up_its_own_only(tmp_path: Path) -> None:
    nodes = graph(tmp_path)
    engine = PretendedEngine(tmp_path, {"tiny-alone-seed0-fold0": [1], "middle-fold0": [1, 1]})
    outcome = go(tmp_path, nodes, engine)
    assert engine.begun.count("tiny-alone-seed0-fold0") == 2
    assert outcome.failed == {"middle-fold0": "the disk is full"}
    assert outcome.blocked == {"tiny-kd-from-middle-seed0-fold0": "middle-fold0"}
    assert "tiny-kd-from-large-seed0-fold0" in outcome.done
    mended = PretendedEngine(tmp_path)
    assert sorted(go(tmp_path, nodes, mended).done) == sorted(nodes)
    assert sorted(mended.begun) == ["middle-fold0", "prepare", "tiny-kd-from-middle-seed0-fold0"]


def test_a_command_that_outlived_the_runner_is_waited_for_and_then_asked(tmp_path: Path) -> None:
    nodes, state = graph(tmp_path), State(tmp_path, "toy")
    state.begin("prepare", nodes["prepare"].command({}), 1, "ticket prepare")
    living = Pretended(AGAIN, "ticket prepare")
    engine = PretendedEngine(tmp_path, alive={"ticket prepare": living})
    outcome = go(tmp_path, nodes, engine)
    assert living.looks == 2
    assert engine.begun[0] == "prepare"
    assert engine.begun.count("prepare") == 1
    assert sorted(outcome.done) == sorted(nodes)


def test_a_fold_that_a_lost_machine_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is believed for some minutes, so a job that begins elsewhere at once is refused; that is no failure."""
    monkeypatch.setattr(runner_module, "_LOOK_SECONDS", 0.0)
    held = f"{tmp_path} is being trained by the process 7 on elsewhere; wait for it or stop it"
    name, nodes = "tiny-alone-seed0-fold0", graph(tmp_path)
    engine = PretendedEngine(tmp_path, {name: [1, 1, 1, 0]}, error=held)
    assert name in go(tmp_path, nodes, engine).done and engine.begun.count(name) == 4
    monkeypatch.setattr(runner_module, "_HELD_SECONDS", 0.0)
    changed = {**nodes, name: replace(nodes[name], words=(*nodes[name].words, "--epochs", "7"))}
    engine = PretendedEngine(tmp_path, {name: [1, 1]}, error=held)
    assert go(tmp_path, changed, engine).failed == {name: held} and engine.begun.count(name) == 2


def test_a_command_that_another_engine_began_on_this_machine_is_found(tmp_path: Path) -> None:
    nodes, state = graph(tmp_path), State(tmp_path, "toy")
    local = LocalEngine(Needs(jobs=1))
    order = Order(name="a", command=("sleep", "60"), output=tmp_path / "a.out", log=tmp_path / "a.log")
    child = local.begin([order])[0]
    state.begin("prepare", nodes["prepare"].command({}), 1, child.ticket)
    runner, said = Runner(nodes, state, PretendedEngine(tmp_path), lambda line: None), list[str]()
    runner.say = said.append
    runner._begin_what_may()
    assert said == ["prepare still runs"] and not runner._due
    local.stop()


def test_a_recipe_that_changed_makes_its_runs_due_again(tmp_path: Path) -> None:
    nodes = graph(tmp_path)
    go(tmp_path, nodes, PretendedEngine(tmp_path))
    changed = dict(nodes)
    old = nodes["tiny-alone-seed0-fold0"]
    changed[old.name] = Node(**{**vars(old), "words": (*old.words, "--epochs", "7")})
    again = PretendedEngine(tmp_path)
    go(tmp_path, changed, again)
    assert again.begun == ["prepare", old.name]


def test_only_records_of_these_very_commands_and_of_what_they_need_count(tmp_path: Path) -> None:
    nodes = graph(tmp_path)
    go(tmp_path, nodes, PretendedEngine(tmp_path))
    records = State(tmp_path, "toy").read()
    assert standing(nodes, records) == Standing(records, {})
    middle, taught = "middle-fold0", "tiny-kd-from-middle-seed0-fold0"
    edited = {**nodes, middle: replace(nodes[middle], words=(*nodes[middle].words, "--epochs", "7"))}
    assert standing(edited, records).outdated == {
        middle: "it was done by another command",
        taught: f"{middle} is not done",
    }
    (tmp_path / "run_large-fold0" / "fold_0").rmdir()
    found = standing(nodes, records)
    assert set(found.records) == {"prepare", "tiny-alone-seed0-fold0"}
    assert found.outdated["large-fold0"] == f"{tmp_path}/run_large-fold0/fold_0 is gone"


class RefusingEngine(PretendedEngine):
    """Trainings that are to go on say why they do not."""

    def begin(self, orders: Sequence[Order]) -> list[Pretended]:
        found = super().begin(orders)
        for order, handle in zip(orders, found, strict=True):
            why = changed_inputs(self.folder / f"run_{order.name}" / "fold_0", "3d_fullres")
            if why is not None and "--continue" in order.command:
                handle.code = 1
                with order.log.open("a") as log:
                    log.write(f"error: {why}; restore them, or give --overwrite to start anew.\n")
        return found


def test_a_student_of_weights_that_were_replaced_is_due_again_and_made_anew_and_no_other(tmp_path: Path) -> None:
    results, nodes = tmp_path / "results" / "Dataset004_New", graph(tmp_path)
    go(tmp_path, nodes, PretendedEngine(results))
    student, weights = "tiny-kd-from-large-seed0-fold0", results / "run_large-fold0" / "fold_0" / "checkpoint_final.pt"
    network = NetworkSpec(name="unet_tiny", in_channels=1, num_outputs=3, patch_size=(8, 8, 8))
    described = RunDescription(
        dataset="Dataset004_New",
        configuration="3d_fullres",
        network=network,
        budget=Budget(1, 1, 1, 0.1, 0),
        mirror_axes=(),
    )
    for value in (1.0, 2.0):
        save_checkpoint(weights, {"network": {"weight": torch.full((2,), value)}})
        if value == 1.0:
            save(results / f"run_{student}" / "run.json", described)
            note_inputs(results / f"run_{student}" / "fold_0", "3d_fullres", [weights])
            assert standing(nodes, State(tmp_path, "toy").read()).outdated == {}
    assert "holds other weights than when" in standing(nodes, State(tmp_path, "toy").read()).outdated[student]
    again = RefusingEngine(results)
    assert student in go(tmp_path, nodes, again).done
    assert again.begun == ["prepare", student, student]
    assert "--overwrite" in again.commands[student] and "--continue" not in again.commands[student]
    assert State(tmp_path, "toy").read()[student].command == tuple(
        nodes[student].command({"large-fold0": "run_large-fold0"})
    )


def test_rows_of_a_model_that_was_moved_are_done_and_follow_it(tmp_path: Path) -> None:
    results, path = tmp_path / "results" / "Dataset004_New", tmp_path / "toy.json"
    path.write_text(json.dumps(recipe(teachers={"given": {"model": "x"}}, students={"tiny": {"network": "unet_tiny"}})))

    def at(folder: Path) -> dict[str, Node]:
        return build_graph(load_recipe(path), Place(name="toy", root=tmp_path, models={"given": folder}))

    old, new = tmp_path / "old" / "net", tmp_path / "kept" / "better"
    old.mkdir(parents=True)
    (old / "weights.pt").write_bytes(b"weights")
    go(tmp_path, at(old), PretendedEngine(results))
    of_model = ("given-fold0", "tiny-kd-from-given-seed0-fold0")
    for name in of_model:
        note_inputs(results / f"run_{name}" / "fold_0", "3d_fullres", [old / "weights.pt"])
    shutil.copytree(old, new)
    (new / "weights.pt").write_bytes(b"others")
    assert set(standing(at(new), State(tmp_path, "toy").read()).outdated) == set(of_model)
    shutil.copyfile(old / "weights.pt", new / "weights.pt")
    (old / "weights.pt").write_bytes(b"others")  # another model lies in the former place by now
    again = PretendedEngine(results)
    assert set(of_model) <= set(go(tmp_path, at(new), again).done) and again.begun == ["prepare"]
    records = State(tmp_path, "toy").read()
    assert standing(at(new), records) == Standing(records, {}) and all(
        str(new) in records[name].command for name in of_model
    )
    assert changed_inputs(results / f"run_{of_model[1]}" / "fold_0", "3d_fullres") is None


def test_an_interrupt_stops_the_engine(tmp_path: Path) -> None:
    nodes, engine = graph(tmp_path), PretendedEngine(tmp_path)

    def interrupt(line: str) -> None:
        if "large-fold0 is done" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runner(nodes, State(tmp_path, "toy"), engine, interrupt).run()
    assert engine.stopped


def test_a_download_without_names_gets_those_of_the_recipe(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).integers(0, 3, (8, 9, 10)).astype(np.uint8)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), tmp_path / folder / "one.nii.gz")
    data = {"number": 7, "name": "New", "format": "msd", "labels": ["Front part", "Back"]}
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(recipe(dataset=data)))
    root = Root.resolve(tmp_path)
    words = ensure_data(load_recipe(path), root, tmp_path, print)
    assert words is not None and convert.main([*words[1:], "--root", str(tmp_path)]) == 0
    described = json.loads((root.raw_dataset("Dataset007_New") / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "Front part": 1, "Back": 2}
    assert ensure_data(load_recipe(path), root, None, print) is None


@pytest.mark.parametrize("labels", [["label_1", "label_2"], ["Back", "Front"], ["Front"], ["Front", "Back", "Top"]])
def test_a_data_set_that_is_there_with_other_labels_than_the_recipes_is_refused(
    tmp_path: Path, labels: list[str]
) -> None:
    path, root = tmp_path / "toy.json", Root.resolve(tmp_path)
    data = {"number": 7, "name": "New", "format": "msd", "labels": ["Front", "Back"]}
    path.write_text(json.dumps(recipe(dataset=data)))
    described = DatasetDescription(channel_names=("CT",), labels=LabelSpec.from_names(labels), num_training=1)
    described.save(root.raw / "Dataset007_New" / "dataset.json")
    with pytest.raises(DataError, match=r"recipe's dataset\.labels are Front 1, Back 2;") as caught:
        ensure_data(load_recipe(path), root, None, print)
    assert str(described.labels.entries[-1][0]) in str(caught.value) and "\n" not in str(caught.value)


def test_a_killed_command_is_said_to_be_killed(tmp_path: Path) -> None:
    """Not what it said before, which has nothing to do with its end."""
    nodes = graph(tmp_path)
    outcome = go(tmp_path, nodes, PretendedEngine(tmp_path, codes={"large-fold0": [1, -9]}))
    assert outcome.failed == {"large-fold0": "it was killed: Killed"}
    assert State(tmp_path, "toy").read()["large-fold0"].error == outcome.failed["large-fold0"]


def test_the_runner_marks_the_log_before_its_engine_begins(tmp_path: Path) -> None:
    nodes = graph(tmp_path)
    log = State(tmp_path, "toy").log("large-fold0")
    log.parent.mkdir(parents=True)
    log.write_text("warning: of another command\n")
    go(tmp_path, nodes, PretendedEngine(tmp_path))
    record = State(tmp_path, "toy").read()["large-fold0"]
    assert record.warnings == () and record.go_from == len("warning: of another command\n")
