"""Recipes: what is refused, and that every recipe of the project can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medkd.core.errors import DataError
from medkd.reproduction.checks import PREPARE_OPTIONS, unknown_names
from medkd.reproduction.commands import refused_words
from medkd.reproduction.graph import Place, build_graph
from medkd.reproduction.recipe import load_recipe
from tests.optional import needs_ultralytics

RECIPES = Path(__file__).parents[2] / "recipes"


SEARCH = {"parameters": {"kd.temperature": [1, 2]}, "trials": 1}
ASSISTANT = {"x": {"network": "a"}, "y": {"network": "a", "taught_by": "x", "method": "alone"}}


def recipe(**changes: Any) -> dict[str, Any]:
    """A small recipe with some keys replaced."""
    content: dict[str, Any] = {
        "title": "toy",
        "dataset": {"number": 900, "name": "Phantom", "format": "phantom"},
        "teachers": {"large": {"network": "res_unet"}, "given": {"model": "somewhere"}},
        "students": {"tiny": {"network": "unet_tiny"}, "plain": {"network": "plain_unet"}},
        "methods": {"alone": {"method": "none"}, "kd": {"method": "kd"}},
    }
    return content | changes


def figures(**names: str) -> dict[str, Any]:
    """Published figures of a row with these names."""
    return {"published": [{"scores": {"Dice": 0.9}, "source": "Table 1", **names}]}


def read(folder: Path, content: Any) -> Any:
    path = folder / "toy.json"
    path.write_text(json.dumps(content))
    return load_recipe(path)


def test_rows_are_the_product_without_what_is_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, recipe(without=[{"teacher": "given", "student": "plain"}]))
    assert sorted(found.combinations(), key=str) == sorted(
        [
            (None, "tiny", "alone"),
            (None, "plain", "alone"),
            ("large", "tiny", "kd"),
            ("given", "tiny", "kd"),
            ("large", "plain", "kd"),
        ],
        key=str,
    )


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        ({"teacher": "large"}, [("large", None, None)]),
        ({"student": "tiny", "method": "alone"}, [(None, "tiny", "alone")]),
        ({"student": "tiny", "method": "kd"}, [("large", "tiny", "kd"), ("given", "tiny", "kd")]),
        ({"teacher": "given", "student": "tiny", "method": "kd"}, [("given", "tiny", "kd")]),
    ],
)
def test_published_figures_stand_beside_their_rows(
    names: dict[str, str], rows: list[tuple[str | None, ...]], tmp_path: Path
) -> None:
    found = read(tmp_path, recipe(**figures(**names)))
    every = [*found.combinations(), ("large", None, None), ("given", None, None)]
    assert [row for row in every if found.published[0].is_about(*row)] == rows


def test_a_start_from_the_teacher_needs_one(tmp_path: Path) -> None:
    methods = {"start": {"method": "none", "settings": {"init": "teacher"}}}
    found = read(tmp_path, recipe(methods=methods))
    assert {teacher for teacher, _, _ in found.combinations()} == {"large", "given"}
    methods = {"alone": {"method": "none", "settings": {"init": None}}}
    assert {teacher for teacher, _, _ in read(tmp_path, recipe(methods=methods)).combinations()} == {None}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tilte": "x"}, "unknown key 'tilte'. Did you mean 'title'?"),
        ({"folds": ["5"]}, "folds: expected some of 0, 1, 2, 3, 4, all, found '5'"),
        ({"folds": []}, "folds: expected one or more different values"),
        ({"seeds": [1, 1]}, "seeds: expected one or more different values, found [1, 1]"),
        ({"teachers": {}}, "methods need a teacher"),
        ({"teachers": {"x": {}}}, "teachers.x: expected either 'network' or 'model', found neither"),
        ({"teachers": {"x": {"network": "a", "model": "b"}}}, "found both"),
        ({"teachers": {"x": {"model": "b", "settings": {"epochs": 3}}}}, "is not trained"),
        ({"teachers": {"x": {"network": "a", "taught_by": "x"}}}, "needs both 'taught_by' and 'method'"),
        ({"teachers": {"x": {"network": "a", "taught_by": "x", "method": "kd"}}}, "in a circle (x ← x)"),
        ({"teachers": {"x": {"network": "a", "taught_by": "z", "method": "kd"}}}, "has no teacher 'z'"),
        ({"teachers": {"x/..": {"network": "a"}}}, "names are letters, digits"),
        ({"teachers": ASSISTANT}, "teachers.y: with the method 'alone' it would learn nothing"),
        (
            {"teachers": ASSISTANT, "methods": {"alone": {"method": "kd", "search": SEARCH}}},
            "teachers.y: the parameters of 'alone' are searched for students",
        ),
        ({"settings": {"seed": 3}}, "settings: 'seed' is set by medkd_reproduce"),
        ({"seeds": [-1]}, "seeds: expected numbers of at least 0, found -1"),
        ({"seconds_per_step": 0}, "seconds_per_step: expected a number above 0, found 0"),
        ({"published": [{"scores": {"a\nb": 1}, "source": ""}]}, "published[0].scores: 'a\\nb' cannot be printed"),
        ({"dataset": {"number": 1, "name": "../up", "format": "msd"}}, "dataset.name: Data set names use letters"),
        ({"dataset": {"number": 1, "name": "P", "format": "msd", "cases": 0}}, "dataset.cases: expected at least 1"),
        ({"without": [{"method": "kdd"}]}, "without[0]: the recipe has no method 'kdd'. Did you mean 'kd'?"),
        ({"without": [{}]}, "no row is left"),
        ({"published": [{"scores": {}, "source": "", "student": "big"}]}, "published[0]: the recipe has no student"),
        (
            {"without": [{"teacher": "large", "method": "alone"}]},
            "without[0] (teacher 'large', method 'alone') leaves out no row",
        ),
        ({"teachers": {"large": {"network": "a", "folds": []}}}, "teachers.large.folds: expected folds of the recipe"),
        (
            figures(teacher="large", student="tiny", method="alone"),
            "published[0] (teacher 'large', student 'tiny', method 'alone') belongs to no row of the table",
        ),
        (figures(student="tiny"), "published[0] (student 'tiny') belongs to no row"),
        (figures(method="kd"), "published[0] (method 'kd') belongs to no row"),
        (figures(), "published[0] (no teacher, student or method) belongs to no row"),
        (
            figures(student="tiny", method="kd") | {"without": [{"student": "tiny", "method": "kd"}]},
            "published[0] (student 'tiny', method 'kd') belongs to no row",
        ),
        ({"published": [{"scores": {}, "source": "", "teacher": "large"}]}, "(teacher 'large') has no 'scores'"),
        ({"folds": ["all"]}, "folds: 'all' has no validation cases"),
        ({"settings": {"validate": False}}, "settings: without 'validate' a run has no score"),
        (
            {"methods": {"alone": {"method": "none", "settings": {"validate": False}}}},
            "methods.alone.settings: without 'validate' a run has no score",
        ),
        (
            {"dataset": {"number": 0, "name": "P", "format": "phantom"}},
            "dataset.number: expected 1 to 999, found 0",
        ),
        (
            {"dataset": {"number": 1, "name": "P", "format": "msd", "labels": ["liver, right", "liver"]}},
            "dataset.labels: expected names without commas, found 'liver, right'",
        ),
        (
            {"dataset": {"number": 1, "name": "P", "format": "msd", "labels": ["liver", "liver"]}},
            "dataset.labels: expected one or more different values",
        ),
        (
            {"dataset": {"number": 1, "name": "P", "format": "phantom", "labels": ["ball"]}},
            "dataset.labels: a phantom has names of its own",
        ),
        (
            {"dataset": {"number": 1, "name": "P", "format": "phantom", "prepare": {"like": "large"}}},
            "has no plan of its own",
        ),
    ],
)
def test_what_means_nothing_is_refused_in_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        read(tmp_path, recipe(**changes))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["-toy", ".toy", " toy", "to\ny"])
def test_a_file_whose_name_no_run_can_have_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(recipe()))
    with pytest.raises(DataError, match="rename the file"):
        load_recipe(path)


def test_a_row_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """The first one would be lost without a word."""
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(recipe()).replace('"plain": {', '"tiny": {'))
    with pytest.raises(DataError, match="the key 'tiny' stands twice in one object"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings": {"epochs": "three"}}, "settings: epochs: expected int, found 'three'."),
        ({"settings": {"epochs": -1}}, "settings: epochs expects a whole number of at least 1, found -1"),
        ({"settings": {"image_size": 64}}, "settings: unknown key 'image_size'."),  # of the other task
        ({"settings": {"device": "gpu"}}, "settings: Unknown device 'gpu'"),
        (
            {"students": {"tiny": {"network": "unet_tiny", "settings": {"precision": "fp8"}}}},
            "students.tiny by methods.alone: precision: expected one of fp32, bf16, fp16, auto, found 'fp8'.",
        ),
        (
            {"teachers": {"large": {"network": "res_unet", "settings": {"teachers": "x"}}}},
            "teachers.large: teachers: expected a list, found str.",
        ),
        ({"protocol": "acf_bckdd"}, "protocol: Unknown protocol 'acf_bckdd'. Did you mean 'acf_bckd'?"),
        ({"protocol": "sfd_kd:fracatlas_yolo"}, "protocol: The protocol"),  # for detection
        (
            {"dataset": {"number": 900, "name": "P", "format": "phantom", "prepare": {"root": "/"}}},
            "dataset.prepare: medkd_plan_and_preprocess has no 'root'.",
        ),
    ],
)
def test_settings_that_a_training_would_refuse_are_known_before_any(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    found = unknown_names(read(tmp_path, recipe(**changes)))
    assert found and found[0].startswith(sentence), found
    if "settings" in changes:
        assert len(found) == 1


def asked_of_the_commands(folder: Path, planned: bool = False, **changes: Any) -> list[str]:
    """What the commands of a changed recipe would not understand."""
    found = read(folder, recipe(**changes))
    assert unknown_names(found) == []
    nodes = build_graph(found, Place(name="toy", root=folder, models={"given": folder}))
    return refused_words(found, nodes, planned)


def prepared(**options: Any) -> dict[str, Any]:
    """A data set with options of its preparation."""
    return {"dataset": {"number": 900, "name": "P", "format": "phantom", "prepare": options}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"settings": {"targets": "cached"}},
            "settings.targets: --targets is a teacher's matter, and 'large-fold0' is",
        ),
        ({"settings": {"teachers": ["x"]}}, "settings.teachers: --teacher is a teacher's matter"),
        (
            {"students": {"tiny": {"network": "unet_tiny", "settings": {"init": "teacher"}}}},
            "students.tiny.settings.init: --init is a teacher's matter, and 'tiny-alone-seed0-fold0' is",
        ),
        (
            {"methods": {"alone": {"method": "none", "settings": {"targets_tta": True}}}},
            "methods.alone.settings.targets_tta: --targets-tta is a teacher's matter",
        ),
        (
            {"teachers": {"large": {"network": "res_unet", "settings": {"confidence": 0.5}}}},
            "teachers.large.settings.confidence: --confidence is a teacher's matter",
        ),
        (prepared(gpu_memory="lots"), "dataset.prepare.gpu_memory: must be a number above 0, found 'lots'."),
        (prepared(workers=-3), "dataset.prepare.workers: must be a whole number of at least 1, found '-3'."),
        (
            prepared(strict="yes"),
            "dataset.prepare.strict: medkd_plan_and_preprocess (run 'prepare') does not know --strict",
        ),
        (
            prepared(configuration="5d"),
            "dataset.prepare.configuration: a new plan has no '5d'. Did you mean '2d'? There",
        ),
    ],
)
def test_what_a_command_would_not_understand_is_known_before_any(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (found,) = asked_of_the_commands(tmp_path, **changes)
    assert found.startswith(sentence) and found.endswith(".") and "\n" not in found


def test_the_commands_understand_what_a_teacher_may_be_told(tmp_path: Path) -> None:
    settings = {"targets": "cached", "targets_tta": True, "teachers": ["x"], "confidence": 0.5, "init": "teacher"}
    methods = {"alone": {"method": "none"}, "kd": {"method": "kd", "settings": settings}}
    assert asked_of_the_commands(tmp_path, methods=methods) == []
    assert asked_of_the_commands(tmp_path, planned=True, **prepared(configuration="my_own", workers=2)) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (prepared(image_size=64), "dataset.prepare: image_size is for detection, but the recipe is for segmentation"),
        (
            prepared(like="given", gpu_memory=8),
            "dataset.prepare: like takes the teacher's plan as it is; leave out gpu",
        ),
        (
            {**prepared(like="given", workers=2), "protocol": "acf_bckd"},
            "dataset.prepare: like takes the teacher's plan as it is; leave out protocol.",
        ),
    ],
)
def test_what_the_preparation_would_refuse_is_known_before_it(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    assert unknown_names(read(tmp_path, recipe(**changes)))[0].startswith(sentence)


@pytest.mark.parametrize("changes", [{"protocol": "none"}, {"settings": {"protocol": "none"}}])
def test_a_recipe_may_ask_for_no_protocol(changes: dict[str, Any], tmp_path: Path) -> None:
    assert unknown_names(read(tmp_path, recipe(**changes))) == []


def test_a_recipe_may_set_what_the_preparation_takes() -> None:
    from medkd.cli.plan_and_preprocess import _arguments

    own = {name: f"--{name.replace('_', '-')}" for name in PREPARE_OPTIONS}
    every = {flag for action in _arguments()._actions for flag in action.option_strings if flag.startswith("--")}
    assert set(own.values()) <= every
    others = every - set(own.values())  # of the command itself
    assert others <= {"--dataset", "--help", "--root", "--verbose", "--quiet", "--import", "--version"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_read(path: Path) -> None:
    assert load_recipe(path).title


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_every_name_in_a_recipe_of_the_project_means_something(path: Path) -> None:
    needs_ultralytics()
    found = load_recipe(path)
    assert unknown_names(found) == []
    models = {name: Path("somewhere") for name, row in found.teachers.items() if row.model is not None}
    nodes = build_graph(found, Place(name=path.stem, root=Path("root"), models=models))
    assert len(nodes) > 2 and refused_words(found, nodes, planned=False) == []


def test_students_of_models_of_one_name_have_runs_of_their_own(tmp_path: Path) -> None:
    """All models of nnU-Net are called alike in the names of their students' runs."""
    content = recipe(teachers={"weak": {"model": "a"}, "strong": {"model": "b"}, "own": {"network": "res_unet"}})
    place = Place(name="toy", root=tmp_path, models={"weak": tmp_path / "a", "strong": tmp_path / "b"})
    tags = []
    for node in build_graph(read(tmp_path, content), place).values():
        words = [str(word) for word in node.words]
        if node.student == "tiny" and node.method == "kd":
            tags.append(words[words.index("--tag") + 1])
    assert tags == ["toy-tiny-kd-s0", "toy-tiny-kd-of-strong-s0", "toy-tiny-kd-s0"]


def test_students_of_two_born_again_rounds_have_runs_of_their_own(tmp_path: Path) -> None:
    """Rounds of one network and method are called alike in the names of their students' runs."""
    again = {"network": "plain_unet", "method": "kd"}
    teachers = {
        "strong": {"network": "res_unet"},
        "again1": {**again, "taught_by": "strong"},
        "again2": {**again, "taught_by": "again1"},
        "other": {"network": "res_unet", "method": "kd", "taught_by": "again1"},
    }
    nodes = build_graph(read(tmp_path, recipe(teachers=teachers)), Place(name="toy", root=tmp_path, models={}))
    tags = {
        node.teacher: node.lesson.settings["tag"] for node in nodes.values() if node.student == "tiny" and node.lesson
    }
    assert tags == {
        None: "toy-tiny-alone-s0",
        "strong": "toy-tiny-kd-s0",
        "again1": "toy-tiny-kd-s0",
        "again2": "toy-tiny-kd-of-again2-s0",
        "other": "toy-tiny-kd-s0",
    }


def test_two_runs_of_one_folder_are_refused(tmp_path: Path) -> None:
    """Their nodes have names of their own; the second training would refuse the first one's folder hours later."""
    content = recipe(teachers={"large": {"network": "res_unet"}, "tiny-alone-s0": {"network": "unet_tiny"}})
    with pytest.raises(DataError) as refused:
        build_graph(read(tmp_path, content), Place(name="toy", root=tmp_path, models={}))
    assert str(refused.value).startswith(
        "The recipe would keep the teacher 'tiny-alone-s0' and the run 'tiny-alone-seed0'"
    )
