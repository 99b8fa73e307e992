"""What a ``teachers.json`` may say: everything else is one sentence, and nothing is passed over."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medkd.core.errors import MedkdError, RunError
from medkd.core.files import write_json
from medkd.core.labels import LabelSpec
from medkd.models.base import open_model
from medkd.models.like import plan_like, prepare_if_new
from medkd.models.named import data_of_model
from medkd.models.several import Member, SeveralTeachers, groups_of, joined_labels
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train_distill
from tests.models.nnunet.builders import configured, dataset_of, plans_of, write_model
from tests.training.builders import NAME
from tests.training.unlabelled_builders import write_scan


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model ``a`` in it."""
    planned = configured((1.0,) * 3, (16,) * 3, 1)
    write_model(tmp_path / "a", plans_of({"3d_fullres": planned}), dataset_of(), "3d_fullres", folds=(0, 1))
    return tmp_path


def test_folds_are_those_that_are_named(place: Path) -> None:
    write_json(place / "inner" / "teachers.json", {"teachers": [{"model": "../a", "folds": [1]}]})
    write_json(place / "teachers.json", {"teachers": ["a", {"model": "a", "folds": [0, "1"]}, "inner", "inner"]})
    opened = open_model(place)
    assert isinstance(opened, SeveralTeachers)
    assert [member.folds for member in opened.members] == [(), ("0", "1"), (), ()]
    assert opened.members[2].model.teaching_folds == ("1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teachers": [{"model": "a", "fold": [0]}]}, "unknown key 'fold', .* Did you mean 'folds'"),
        ({"teachers": ["a"], "weights": [1]}, "unknown key 'weights', expected teachers"),
        ({"teachers": [{"model": "a", "folds": [True]}]}, r"under 'folds' a list of folds, .* found \[True\]"),
        ({"teachers": [{"model": "a", "folds": [0, "0"]}]}, "each once"),
        ({"teachers": [{"model": "a", "folds": [0.0]}]}, "found .0.0."),
        ({"teachers": [{"model": "a", "folds": []}]}, r"found \[\], or leave it out"),
        ({"teachers": [{"model": "a", "folds": None}]}, "found None"),
        ({"teachers": [{"model": 7}]}, "expected a folder, or"),
        ({"teachers": [["a"]]}, "expected a folder, or"),
        ({"teachers": ["."]}, "the list names itself"),
        ({"teachers": [""]}, "the list names itself"),
        ({"teachers": ["a", "teachers.json"]}, "the list names itself"),
        ({"teachers": ["a", "inner"]}, r"inner/teachers.json: the list names itself \('..' is"),
    ],
)
def test_what_is_no_list_of_models_is_refused(place: Path, content: dict[str, Any], message: str) -> None:
    write_json(place / "inner" / "teachers.json", {"teachers": [".."]})
    write_json(place / "teachers.json", content)
    with pytest.raises(MedkdError, match=message) as caught:
        open_model(place)
    assert isinstance(caught.value, RunError) and "\n" not in str(caught.value)


def _part(place: Path, name: str, *structures: str, channel: str = "MR") -> None:
    planned = configured((1.5,) * 3, (16,) * 3, 1)
    labels = {"background": 0, **{structure: value for value, structure in enumerate(structures, 1)}}
    write_model(place / name, plans_of({"3d_fullres": planned}), dataset_of(labels, (channel,)), "3d_fullres")


def test_scans_for_several_models_get_the_structures_of_all_and_the_plan_of_the_first(tmp_path: Path) -> None:
    _part(tmp_path, "first", "small")
    _part(tmp_path, "second", "Large", "middle")
    listed = tmp_path / "teachers.json"
    write_json(listed, {"teachers": ["first", "second"]})
    data = data_of_model(listed)
    assert [name for name, _ in data.labels.foreground] == ["small", "Large", "middle"]
    raw = tmp_path / "root" / "raw" / NAME
    data.save(raw / "dataset.json")
    for number in range(2):
        write_scan(raw / "imagesUn" / f"scan_{number}_0000.nii.gz", number)
    plan = plan_like(900, listed, root=tmp_path / "root")
    assert plan.configurations["3d_fullres"].spacing == (1.5,) * 3
    shutil.rmtree(tmp_path / "root" / "preprocessed")
    with pytest.raises(RunError, match="second"):  # by itself it teaches a part only, which is known beforehand
        prepare_if_new(900, open_model(tmp_path / "second"), tmp_path / "root")
    assert not (tmp_path / "root" / "preprocessed").exists()
    assert plan_like(900, tmp_path / "second", root=tmp_path / "root").configurations == plan.configurations
    options = TrainOptions(
        root=tmp_path / "root", epochs=1, iterations_per_epoch=1, workers=0, device="cpu", targets="cached"
    )
    assert (train_distill(900, str(listed), "unet_tiny", "dml", 0, options) / "agreement" / "agreement.json").exists()


def test_a_plan_of_a_teacher_of_other_structures_is_refused(tmp_path: Path) -> None:
    _part(tmp_path, "first", "small", "kidney")
    _part(tmp_path, "second", "small", "Large")
    raw = tmp_path / "root" / "raw" / NAME
    data_of_model(tmp_path / "second").save(raw / "dataset.json")
    write_scan(raw / "imagesUn" / "scan_0000.nii.gz", 0)
    with pytest.raises(RunError, match="its labels are background 0, small 1, kidney 2"):
        plan_like(900, tmp_path / "first", root=tmp_path / "root")


def test_models_that_do_not_belong_together_give_no_labels(tmp_path: Path) -> None:
    _part(tmp_path, "first", "small")
    _part(tmp_path, "second", "small", "large")
    _part(tmp_path, "other", "large", channel="CT")
    for second, match in (("second", "both know 'small'"), ("other", "takes the channels CT, the data set has MR")):
        write_json(tmp_path / "teachers.json", {"teachers": ["first", second]})
        with pytest.raises(RunError, match=match):
            data_of_model(tmp_path / "teachers.json")
    regions = {"whole": (1, 2), "core": (2,)}
    with pytest.raises(RunError, match="Regions of several models cannot be put together"):
        joined_labels([_knowing(regions), _knowing({"else": (1,)})])
    assert joined_labels([_knowing(regions), _knowing(regions)]).regions


@pytest.mark.parametrize(
    ("own", "match"),
    [
        ({"whole": (1,), "core": (2,)}, "there 'whole' lies beside 'core', here it holds it"),
        ({"whole": (2,), "core": (1, 2)}, "there 'whole' is a part of 'core'"),
        ({"whole": (1, 2), "core": (1, 2)}, "there 'whole' equals 'core'"),
        ({"Whole": (1, 2, 3), "Core": (3,)}, None),
        ({"core": (2,)}, None),
    ],
)
def test_regions_of_equal_names_must_lie_to_each_other_alike(
    own: dict[str, tuple[int, ...]], match: str | None
) -> None:
    ours = LabelSpec((("background", (0,)), ("whole", (1, 2)), ("core", (2,))), True, (1, 2))
    members = [_knowing(own), *([] if len(own) > 1 else [_knowing({"whole": (1,)})])]
    if match is None:
        assert sum(len(group.outputs) for group in groups_of(members, ours)) == 2
        return
    with pytest.raises(RunError, match=match):
        groups_of(members, ours)


def _knowing(regions: dict[str, tuple[int, ...]]) -> Member:
    labels = LabelSpec((("background", (0,)), *regions.items()), True, tuple(range(1, len(regions) + 1)))
    model: Any = SimpleNamespace(path=Path("odd"), describe=lambda: SimpleNamespace(labels=labels))
    return Member(model)
