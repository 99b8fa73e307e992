"""Several teachers as one: the rule by which they are merged, and students of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.core.errors import LeakError, RunError
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Plan
from medkd.inference.predictor import Predictor
from medkd.models.base import open_model
from medkd.models.several import Group, Member, SeveralTeachers, groups_of
from medkd.preprocessing.pipeline import preprocess_case
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseStore
from medkd.training.merged import merge, to_student
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train, train_distill
from medkd.training.targets import TargetStore
from tests.preprocessing.builders import make_configuration, plan_of
from tests.training.builders import NAME, boxes_case
from tests.training.unlabelled_builders import make_mixed

RUN = "plain_unet__3d_fullres"


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {
        "root": root,
        "epochs": 1,
        "iterations_per_epoch": 3,
        "workers": 0,
        "device": "cpu",
        "validate": False,
    }
    return TrainOptions(**{**values, **changes})


def _slow(teachers: list[np.ndarray], owners: dict[int, tuple[list[int], int]], outputs: int) -> np.ndarray:
    """The rule, voxel by voxel: structure → teachers that know it and their channel."""
    size = teachers[0].shape[1:]
    result = np.zeros((outputs, *size))
    for place in np.ndindex(size):
        values = [0.0] * outputs
        shares: dict[tuple[int, ...], float] = {}
        for output, (who, channel) in owners.items():
            values[output] = sum(teachers[t][(channel, *place)] for t in who) / len(who)
            shares[tuple(who)] = shares.get(tuple(who), 0.0) + values[output]
        values[0] = 1.0
        for share in shares.values():
            values[0] *= 1 - share
        for output in range(outputs):
            result[(output, *place)] = values[output] / sum(values)
    return result


def test_the_rule_is_that_of_a_slow_loop() -> None:
    """Two teachers of one structure set (an ensemble) that know 3 and 1, and one that knows 2 and one label more."""
    generator = np.random.default_rng(0)
    raw = [generator.normal(0, 2, (3, 2, 3, 4)) for _ in range(3)]
    teachers = [np.exp(z) / np.exp(z).sum(0) for z in raw]
    groups = [Group((0, 1), {3: 1, 1: 2}), Group((2,), {2: 2})]
    expected = _slow(teachers, {3: ([0, 1], 1), 1: ([0, 1], 2), 2: ([2], 2)}, 4)
    found = merge([torch.from_numpy(t) for t in teachers], groups, 4, False)
    assert np.allclose(found.numpy(), expected, atol=1e-6) and np.allclose(found.sum(0), 1, atol=1e-6)


def test_one_teacher_of_all_structures_is_left_as_it_is() -> None:
    teacher = torch.randn(3, 4, 4, 4).softmax(0)
    assert torch.allclose(merge([teacher], [Group((0,), {1: 1, 2: 2})], 3, False), teacher, atol=1e-6)


def test_regions_are_taken_from_their_teachers() -> None:
    one, two = torch.rand(2, 3, 3, 3), torch.rand(1, 3, 3, 3)
    found = merge([one, two], [Group((0,), {0: 1}), Group((1,), {1: 0})], 2, True)
    assert torch.equal(found[0], one[1]) and torch.equal(found[1], two[0])


def test_probabilities_reach_the_students_grid_as_its_image_does() -> None:
    """An image that is linear in space, resampled as an image and as a probability, is the same away from borders."""
    ramp = np.add.outer(np.add.outer(np.arange(16.0), 2 * np.arange(12.0)), 3 * np.arange(20.0))[None].astype(
        np.float32
    )
    ramp = ramp / ramp.max() + 0.1
    geometry = Geometry.from_spacing(ramp.shape[1:], (1.0, 2.0, 1.5))
    configuration = make_configuration(spacing=(3.0, 1.5, 3.0), scheme="none")
    plan = plan_of(configuration, transpose=(1, 0, 2))
    prepared = preprocess_case("a", ramp, geometry, plan, configuration)
    found = to_student(ramp.copy(), prepared.properties, plan)
    assert found.shape == prepared.image.shape
    inner = (slice(None), *(slice(1, -1),) * 3)
    assert np.allclose(found.numpy()[inner], prepared.image[inner], atol=0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of both structures with two models: one for ``small``, one for ``large``."""
    root = tmp_path_factory.mktemp("both")
    make_mixed(root)
    train(900, "plain_unet", 0, _options(root, iterations_per_epoch=8, tag="both"))
    for index, name in enumerate(("SMALL", "large"), start=1):
        other = root / name
        make_mixed(other, labels=LabelSpec.from_names([name]), unlabelled=1, only=index)
        train(900, "plain_unet", 0, _options(other, iterations_per_epoch=8))
    return root


@pytest.fixture()
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(trained, tmp_path / "root")
    return tmp_path / "root"


def _models(root: Path) -> list[str]:
    return [str(root / name / "results" / NAME / RUN) for name in ("SMALL", "large")]


def _coarse(root: Path) -> None:
    """The student's own plan: another grid than its teachers'."""
    path = root / "preprocessed" / NAME / "plans.json"
    data = read_json(path)
    data["configurations"]["3d_fullres"]["spacing"] = [1.25, 1.25, 1.25]
    write_json(path, data)
    plan_and_preprocess(900, root=root, configurations=["3d_fullres"])


def test_a_student_of_two_teachers_learns_from_merged_targets_on_its_own_grid(root: Path) -> None:
    _coarse(root)
    first, second = _models(root)
    made = train_distill(
        900, first, "unet_tiny", "kd", 0, _options(root, teachers=(second,), targets="cached", labels="none")
    )
    run = read_json(made.parent / "run.json")
    assert run["teacher"] == f"{first} + {second}"
    store = CaseStore(root / "preprocessed" / NAME / "3d_fullres")
    (folder,) = (root / "preprocessed" / NAME / "3d_fullres_targets").iterdir()
    scan = store.open("scan_00")
    stored = TargetStore(folder).open("scan_00")
    logits = stored.coding.decode(torch.from_numpy(np.array(stored.codes)))
    assert logits.shape[1:] == scan.image.shape[1:] and len(logits) == 3
    image, label = boxes_case(100)
    geometry = Geometry.from_spacing(label.shape, (1.0, 1.0, 1.0))
    alone = []
    for model in (first, second):
        predictor = Predictor.from_run(Path(model), [0], torch.device("cpu"), mirror=False)
        prepared = preprocess_case("s", image, geometry, predictor.plan, predictor.configuration)
        native = predictor.predict(prepared, probabilities=True).probabilities
        assert native is not None
        plan = Plan.load(root / "preprocessed" / NAME / "plans.json")
        alone.append(to_student(native, scan.properties, plan).numpy().astype(np.float64))
    expected = _slow(alone, {1: ([0], 1), 2: ([1], 1)}, 3)
    assert np.allclose(logits.softmax(0).numpy(), expected, atol=0.01)


def test_a_list_in_a_file_averages_folds_and_is_refused_live(root: Path) -> None:
    model = root / "results" / NAME / f"{RUN}__both"
    shutil.copytree(model / "fold_0", model / "fold_1")
    file = root / "teachers.json"
    write_json(file, {"teachers": [{"model": str(model), "folds": [0, 1]}]})
    train_distill(900, str(file), "unet_tiny", "kd", 0, _options(root, targets="cached"))
    for method, changes in (("kd", {}), ("cwd+at", {"targets": "cached"})):
        if method == "kd":
            match = "expected --targets cached"
        else:
            match = "needs more than a teacher's outputs"
        with pytest.raises(RunError, match=match):
            train_distill(900, str(file), "unet_tiny", method, 0, _options(root, tag="no", **changes))


def test_teachers_that_do_not_fit_together_are_refused(root: Path) -> None:
    small, _ = _models(root)
    both = str(root / "results" / NAME / f"{RUN}__both")
    labels = LabelSpec.from_names(["small", "large"])
    assert len(groups_of([Member(open_model(both)), Member(open_model(both))], labels)) == 1
    with pytest.raises(RunError, match="both know 'small'"):
        groups_of([Member(open_model(both)), Member(open_model(small))], labels)
    with pytest.raises(RunError, match="No teacher knows the structure 'large'"):
        groups_of([Member(open_model(small))], labels)
    with pytest.raises(RunError, match="none of the data set's structures"):
        groups_of([Member(open_model(small))], LabelSpec.from_names(["kidney"]))


def test_no_teacher_may_have_seen_a_case_on_which_the_student_is_judged(root: Path) -> None:
    small, large = _models(root)
    for folder in Path(large).glob("fold_0"):
        split = read_json(folder / "split.json")
        write_json(folder / "split.json", {**split, "train": [*split["train"], *split["val"]]})
    with pytest.raises(LeakError):
        train_distill(900, small, "unet_tiny", "kd", 0, _options(root, teachers=(large,), targets="cached"))


def test_the_name_and_the_folds_of_several_teachers_are_those_of_all(root: Path) -> None:
    small, large = _models(root)
    several = SeveralTeachers.of([open_model(small), open_model(large)])
    assert several.folds() == ("0",) and several.name == "plain_unet"
