"""Searches see inner folds only, go on where they were stopped, and end in the commands of a recipe's students."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import medkd
from medkd.cli.reproduce import main as reproduce
from medkd.cli.tune import _arguments, main
from medkd.core.errors import DataError, DivergedError, MedkdError, RunError
from medkd.core.files import atomic_path, write_json
from medkd.core.paths import Root
from medkd.core.serial import load, save
from medkd.core.splits import FoldRecord, load_splits
from medkd.preprocessing.store import CaseStore
from medkd.reproduction import search as searching
from medkd.reproduction import table
from medkd.reproduction.graph import Node, Place, Tuned, build_graph
from medkd.reproduction.inner import make_inner_root
from medkd.reproduction.results import collect
from medkd.reproduction.search import (
    BEST_FILE,
    TRIALS_FILE,
    Best,
    SearchOrder,
    Trial,
    Trials,
    search_parameters,
    suggest,
)
from medkd.reproduction.search_space import Search, check_search
from medkd.reproduction.searched import SearchedOn
from medkd.reproduction.state import Record, runs_of, why_due
from tests.detection.builders import make_dataset as make_radiographs
from tests.reproduction.test_recipe import read, recipe
from tests.training.builders import NAME, make_dataset
from tests.training.unlabelled_builders import make_mixed

TINY = "--epochs 1 --iterations-per-epoch 1 --batch-size 2 --patch-size 16 16 16 --workers 0 --device cpu"
SPACE = Search(parameters={"kd.temperature": (1.0, 8.0, "log"), "kd.weight": (0.1, 2.0)}, trials=4)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The cases that anything opens."""
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    found: set[str] = set()
    real = CaseStore.open

    def spy(self: CaseStore, case: str) -> Any:
        found.add(case)
        return real(self, case)

    monkeypatch.setattr(CaseStore, "open", spy)
    return found


@pytest.mark.slow
def test_the_cases_on_which_a_fold_is_judged_reach_no_trial(
    tmp_path: Path, opened: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = make_dataset(tmp_path, cases=10)
    words = [NAME, "unet_tiny", "unet_tiny", "kd", "0", "--root", str(tmp_path), *TINY.split()]
    words += ["--search", "kd.temperature=1:8:log", "--trials", "2", f"--teacher-options={TINY}"]
    real = searching._Trainer.trial

    def stop(self: Any, number: int, parameters: Any) -> Trial:
        if number == 1:
            raise KeyboardInterrupt
        return real(self, number, parameters)

    with monkeypatch.context() as patched:
        patched.setattr(searching._Trainer, "trial", stop)
        assert main(words) == 130
    folder = next((tmp_path / "searches").iterdir())
    first = load(Trials, folder / TRIALS_FILE)
    assert len(first.trials) == 1 and not (folder / BEST_FILE).exists()
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    tried = load(Trials, folder / TRIALS_FILE)
    assert tried.trials[:1] == first.trials and len(tried.trials) == 2

    outer = load_splits(prepared / "splits_final.json")[0]
    assert len(outer.val) == 2
    assert opened and not opened & set(outer.val)
    for path in folder.rglob("*"):
        assert not any(case in path.name for case in outer.val)
        if path.suffix in (".json", ".jsonl", ".txt"):
            assert not any(case in path.read_text() for case in outer.val)
    splits = [FoldRecord.load(path) for path in folder.rglob("split.json")]
    assert len(splits) == 3  # of the teacher, and of a student per trial
    for split in splits:
        assert set(split.train) | set(split.val) == set(outer.train)
        assert not set(split.teacher_train) & set(split.val)
    best = load(Best, folder / BEST_FILE)
    assert best.score == max(trial.score or 0 for trial in tried.trials) and best.cases == 8
    assert not list(folder.glob("results/*/*trial*/fold_*/*.pt"))

    assert main([*words, "--epochs", "2"]) == 1
    assert "holds another search" in capsys.readouterr().err


def test_a_broken_search_tries_what_a_whole_one_would() -> None:
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    whole: list[Trial] = []
    for _ in range(14):
        values = suggest(whole, SPACE, frozenset(), 3)
        assert 1 <= values["kd.temperature"] <= 8 and 0.1 <= values["kd.weight"] <= 2
        whole.append(Trial(parameters=values, score=-((values["kd.weight"] - 1) ** 2)))
    for place in (0, 5, 13):
        assert suggest(whole[:place], SPACE, frozenset(), 3) == whole[place].parameters
    assert len({trial.parameters["kd.weight"] for trial in whole}) == 14
    assert suggest([], SPACE, frozenset(), 4) != whole[0].parameters
    failed = [Trial(parameters={"kd.temperature": 2, "kd.weight": 0.5}, error="it diverged")]
    assert isinstance(suggest(failed, SPACE, frozenset({"kd.temperature"}), 0)["kd.temperature"], int)
    choice = Search(parameters={"a.b": ("x", "y")}, trials=1)
    assert suggest([], choice, frozenset(), 0)["a.b"] in ("x", "y")


def test_a_root_of_radiographs_has_no_others_either(tmp_path: Path) -> None:
    raw = make_radiographs(tmp_path, images=8, size=64, negatives=1)
    name = raw.name
    if raw.parent != tmp_path / "raw":
        (tmp_path / "raw").mkdir(exist_ok=True)
        raw.rename(tmp_path / "raw" / name)
    medkd.plan_and_preprocess(name, root=tmp_path, image_size=64)
    root = medkd.core.paths.Root.resolve(tmp_path)
    kept = make_inner_root(root, name, "1", tmp_path / "inner")
    outer = load_splits(root.preprocessed / name / "splits_final.json")[1]
    assert kept == outer.train and outer.val
    stems = {path.name.split(".")[0] for path in (tmp_path / "inner").rglob("*") if path.is_file()}
    assert set(outer.train) <= stems and not stems & set(outer.val)
    assert not any(case in path.read_text() for path in (tmp_path / "inner").rglob("*.json") for case in outer.val)


@pytest.mark.parametrize(
    ("values", "changes", "sentence"),
    [
        ((8.0, 1.0), {}, "expected [low, high]"),
        ((0.0, 1.0, "log"), {}, "above 0 for log"),
        ((1.0, 2.0, "logg"), {}, "expected [low, high]"),
        ((True, False), {}, "expected [low, high]"),
        (("a",), {}, "two texts or more"),
        ((1.0, 2.0), {"trials": 0}, "'trials' of at least 1 and 'folds' of 1 to 5, found 0 and 1"),
        ((1.0, 2.0), {"folds": 6}, "found 3 and 6"),
    ],
)
def test_a_bad_search_is_one_sentence(values: tuple[Any, ...], changes: dict[str, int], sentence: str) -> None:
    search = Search(parameters={"kd.temperature": values}, **{"trials": 3, **changes})
    with pytest.raises(DataError) as caught:
        check_search(search, "here")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def searched(**search: Any) -> dict[str, Any]:
    given = {"parameters": {"kd.temperature": [1, 8, "log"]}, "trials": 3, **search}
    return {"alone": {"method": "none"}, "kd": {"method": "kd", "search": given}}


def test_a_recipe_searches_before_its_students_and_gives_them_what_it_found(tmp_path: Path) -> None:
    teachers = {"large": {"network": "res_unet", "settings": {"epochs": 2}}}
    students = {"tiny": {"network": "unet_tiny", "settings": {"epochs": 3}}}
    found = read(tmp_path, recipe(teachers=teachers, students=students, methods=searched(), seeds=[5, 6]))
    nodes = build_graph(found, Place(name="toy", root=tmp_path, models={}))
    name = "tiny-kd-from-large-search-fold0"
    students_nodes = [node for node in nodes.values() if Tuned(name) in node.words]
    assert [node.seed for node in students_nodes] == [5, 6] and all(name in node.needs for node in students_nodes)
    command = nodes[name].command({})
    assert command[:6] == ["tune", "Dataset900_Phantom", "res_unet", "unet_tiny", "kd", "0"]
    assert "kd.temperature=1:8:log" in command and "--teacher-options=--epochs 2 --seed 5" in command
    assert command[command.index("--epochs") + 1] == "3"
    folder = Path(command[command.index("--folder") + 1])
    best = Best(parameters={"kd.temperature": 2.5}, score=0.5, metric="Dice", trial=1, trials=3, cases=4)
    save(folder / BEST_FILE, best)
    runs = runs_of({name: Record(command=(), status="done", folder=str(folder))}) | {"large-fold0": "large"}
    given = students_nodes[0].command(runs)
    assert given[given.index("--set") + 1] == "kd.temperature=2.5"
    other = read(tmp_path, recipe(teachers=teachers, students=students, methods=searched(trials=4)))
    changed = build_graph(other, Place(name="toy", root=tmp_path, models={}))[name].command({})
    assert changed[changed.index("--folder") + 1] != str(folder)


def test_the_table_says_what_became_of_a_search(tmp_path: Path) -> None:
    content = read(tmp_path, recipe(teachers={"large": {"network": "res_unet"}}, methods=searched(), folds=["0"]))
    nodes = build_graph(content, Place(name="toy", root=tmp_path, models={}))
    (node,) = [node for node in nodes.values() if node.kind == "search" and node.student == "tiny"]
    command = node.command({})
    folder = Path(command[command.index("--folder") + 1])
    save(
        folder / BEST_FILE,
        Best(parameters={"kd.temperature": 2.5}, score=0.5, metric="Dice", trial=1, trials=3, cases=4),
    )
    record = Record(command=tuple(command), status="done", folder=str(folder), warnings=("it is slow",))
    found = collect(content, nodes, {node.name: record})
    said = f"{node.name}: kd.temperature = 2.5 (trial 1 of 3, Dice 0.5000 on inner folds of 4 cases)"
    assert f"searched: {said}" in table.text(found) and f"warned: {node.name}: it is slow" in table.text(found)
    assert f"% searched: {said}" in table.latex(found) and f'"{said}"' in table.csv_text(found)
    (folder / BEST_FILE).unlink()
    assert f"due again, and not counted: {node.name}: " in table.text(collect(content, nodes, {node.name: record}))
    failed = Record(command=tuple(command), status="failed", error="all trials failed")
    assert f"failed: {node.name}: all trials failed" in table.text(collect(content, nodes, {node.name: failed}))


def test_optuna_is_asked_for_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    data = {"number": 900, "name": "Phantom", "format": "phantom"}
    content = recipe(dataset=data, teachers={"large": {"network": "res_unet"}}, methods=searched())
    read(tmp_path, content)
    words = [str(next(tmp_path.glob("*.json"))), "--root", str(tmp_path / "root")]
    for more in ([], ["--check"], ["--engine", "slurm", "--write"]):
        assert reproduce([*words, *more]) == 1
        said = capsys.readouterr()
        assert "needs the package optuna; run pip install 'medkd[tune]'" in said.out + said.err
    assert not (tmp_path / "root").exists()
    assert reproduce([*words, "--check", "--only", "*alone*"]) == 0


def test_the_command_of_a_search_is_understood_whatever_trainings_are_told(tmp_path: Path) -> None:
    settings = {"epochs": 3, "track": ["mlflow"], "workers": 0}
    content = recipe(teachers={"large": {"network": "res_unet"}}, methods=searched(), settings=settings)
    nodes = build_graph(read(tmp_path, content), Place(name="toy", root=tmp_path, models={}))
    (search,) = [node for node in nodes.values() if node.kind == "search" and node.student == "tiny"]
    parsed = _arguments().parse_args(search.command({})[1:])
    assert (parsed.epochs, parsed.workers, parsed.fold) == (3, 0, "0")
    assert any("--track" in node.words for node in nodes.values() if node.kind == "student")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teachers": {"given": {"model": "x"}}, "methods": searched()}, "is a model from elsewhere"),
        ({"methods": searched(trials=0)}, "methods.kd.search: expected 'trials' of at least 1"),
        ({"methods": searched(trails=3)}, "unknown key 'trails'. Did you mean 'trials'?"),
        ({"methods": {"a": {**searched()["kd"], "method": "none"}}}, "the method 'none' has no parameters"),
        ({"methods": {"a": {**searched()["kd"], "parameters": {"kd.temperature": 1}}}}, "is set in 'parameters', too"),
    ],
)
def test_a_bad_search_of_a_recipe_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MedkdError) as caught:
        read(tmp_path, recipe(**{"teachers": {"large": {"network": "res_unet"}}, **changes}))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_parameters_and_a_missing_package_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path)
    words = [NAME, "unet_tiny", "unet_tiny", "kd", "0", "--root", str(tmp_path), "--trials", "1"]
    pytest.importorskip("optuna", reason="the extra tune is not installed")
    for text, sentence in (
        ("kd.tau=1:2", "has no parameter 'tau'"),
        ("kd.temperature=a:b", "expects numbers as bounds, found 'a:b'"),
        ("kd.temperature", "--search expects METHOD.PARAMETER=LOW:HIGH[:log]"),
    ):
        assert main([*words, "--search", text]) == 1
        said = capsys.readouterr().err
        assert sentence in said and said.strip().count("\n") == 0
    assert main([*words, "--search", "kd.temperature=1:2", "--teacher-options=--epoch 3"]) == 1
    assert "--teacher-options: training has no option '--epoch'" in capsys.readouterr().err
    assert main([*words, "--search", "kd.temperature=1:2", "--set", "kd.temperature=4"]) == 1
    assert "kd.temperature is searched (--search) and set (--set) at once; leave" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RunError, match=r"needs the package optuna; run pip install 'medkd\[tune\]'"):
        searching.check_optuna()


def test_scans_without_labels_are_no_part_of_a_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_mixed(tmp_path)
    caplog.set_level(logging.INFO)
    inner = tmp_path / "inner"
    assert len(make_inner_root(Root.resolve(tmp_path), NAME, "0", inner)) == 4
    assert "the 4 cases without labels of Dataset900_Boxes take no part in the search" in caplog.text
    assert not list(inner.rglob("scan_*"))
    search = Search(parameters={"kd.temperature": (1.0, 8.0)}, trials=1)
    order = SearchOrder(
        dataset=900,
        teacher="unet_tiny",
        student="unet_tiny",
        method="kd",
        fold="0",
        search=search,
        folder=tmp_path / "search",
        root=tmp_path,
        settings={"unlabelled_share": 0.5},
    )
    with pytest.raises(RunError, match="unlabelled_share has nothing to draw from there"):
        search_parameters(order, print)


def test_a_search_on_cases_that_were_mended_since_does_not_go_on_and_is_due_again(tmp_path: Path) -> None:
    store, folder = tmp_path / "preprocessed" / NAME / "3d_fullres", tmp_path / "search"

    def mended(content: str) -> None:
        write_json(store / "one.json", {"recipe": "r", "files": [{"content": content}], "read": content})

    mended("first")
    write_json(store.parent / "plans.json", {"configurations": {store.name: 1}})
    known = Trials(search=SPACE, command=("a",), searched_on=SearchedOn.now(store, ["one", "two"]))
    save(folder / TRIALS_FILE, known)
    save(folder / BEST_FILE, Best(parameters={}, score=0.5, metric="Dice", trial=1, trials=3, cases=1))
    node = Node(name="s", kind="search", words=("tune",))
    record = Record(command=("tune",), status="done", folder=str(folder))
    assert searching._read(folder, SPACE, ("a",)) == known and why_due(node, record, ["tune"]) is None
    mended("second, mended")
    with pytest.raises(RunError, match=r"1 of the 1 cases on which .* for example one; give another --folder, or del"):
        searching._read(folder, SPACE, ("a",))
    assert "preprocessed anew" in str(why_due(node, record, ["tune"]))
    mended("first")
    write_json(store.parent / "plans.json", {"configurations": {store.name: 2}})
    assert "plans.json is another than" in str(why_due(node, record, ["tune"]))
    save(folder / TRIALS_FILE, replace(known, searched_on=SearchedOn()))  # of an earlier version
    assert why_due(node, record, ["tune"]) is None


@pytest.mark.parametrize("copied", [False, True])
def test_the_inner_root_has_cases_that_were_mended_as_they_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    if copied:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another file system")))
    prepared, inner = make_dataset(tmp_path), tmp_path / "inner"
    with pytest.raises(
        RunError, match=r"fold 0: a search on 5 inner folds needs as many .* and the fold has 4; search"
    ):
        make_inner_root(Root.resolve(tmp_path), NAME, "0", inner, 5)
    assert not inner.exists()
    case, *others = make_inner_root(Root.resolve(tmp_path), NAME, "0", inner)
    files = ("preprocessed", NAME, "3d_fullres", f"{case}.json"), ("raw", NAME, "labelsTr", f"{case}.nii.gz")
    untouched = inner / "preprocessed" / NAME / "3d_fullres" / f"{others[0]}.json"
    before = untouched.stat()
    for parts in files:
        with atomic_path(tmp_path.joinpath(*parts)) as temporary:
            temporary.write_bytes(b"made anew")
    make_inner_root(Root.resolve(tmp_path), NAME, "0", inner)
    assert [inner.joinpath(*parts).read_bytes() for parts in files] == [b"made anew"] * 2
    assert untouched.stat() == before and prepared.exists()


def test_what_has_nothing_to_do_with_the_values_ends_the_search(tmp_path: Path) -> None:
    trainer: Any = searching._Trainer.__new__(searching._Trainer)
    trainer.order = SearchOrder(
        dataset=1, teacher="a", student="b", method="kd", fold="0", search=SPACE, folder=tmp_path
    )
    trainer.dataset, trainer._teacher, errors = (
        NAME,
        lambda fold: "teacher",
        iter((DivergedError("NaN"), RunError("held"))),
    )

    def score(*_: Any) -> float:
        raise next(errors)

    trainer._score = score
    assert trainer.trial(0, {"kd.weight": 1.0}) == Trial(parameters={"kd.weight": 1.0}, error="NaN")
    with pytest.raises(RunError, match="held"):
        trainer.trial(1, {"kd.weight": 1.0})


def test_weights_of_a_trial_go_when_its_scores_are_kept(tmp_path: Path) -> None:
    trainer: Any = searching._Trainer.__new__(searching._Trainer)
    trainer.order = SearchOrder(
        dataset=1, teacher="a", student="b", method="kd", fold="0", search=SPACE, folder=tmp_path
    )
    trainer.dataset = NAME
    kept = []
    for tag in ("teacher", "trial1", "trial11"):
        for fold in ("fold_0", "fold_1/ultralytics/weights"):
            path = tmp_path / "results" / NAME / f"unet_tiny__3d_fullres__kd__from_a-teacher__{tag}" / fold / "last.pt"
            path.parent.mkdir(parents=True)
            path.touch()
            kept.append(path)
    trainer.forget(0)
    assert [path for path in kept if path.exists()] == [path for path in kept if "__trial1/" not in path.as_posix()]


def test_every_trial_failed(tmp_path: Path) -> None:
    trainer: Any = type("T", (), {"metric": None, "cases": 3})()
    known = Trials(search=SPACE, command=("a",), trials=(Trial(parameters={}, error="the loss became infinite."),))
    with pytest.raises(RunError, match=r"All 1 trials of the search .* failed, the last one: the loss became infinite"):
        searching._keep_best(known, trainer, tmp_path)
    assert not list(tmp_path.iterdir())
