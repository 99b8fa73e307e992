"""Models that predict or teach together see the same channels, and none of them counts twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from medkd.core.channels import differing_channels
from medkd.core.errors import RunError
from medkd.core.files import write_json
from medkd.core.plan import Plan
from medkd.core.run import PLANS_FILE
from medkd.inference.opening import open_predictor
from medkd.models.base import open_model
from medkd.models.like import plan_like
from medkd.models.named import data_of_model
from medkd.models.several import SeveralTeachers
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import dry_run
from tests.models.nnunet.builders import configured, dataset_of, plans_of, write_model
from tests.training.builders import NAME
from tests.training.unlabelled_builders import write_scan


def model(folder: Path, seed: int, channels: tuple[str, ...] = ("MR",)) -> Path:
    """A tiny model of two folds, with weights from a seed."""
    planned = configured((1.0,) * 3, (16,) * 3, len(channels))
    plans = plans_of({"3d_fullres": planned}, channels=len(channels))
    described = dataset_of(channels=channels)
    return write_model(folder, plans, described, "3d_fullres", folds=(0, 1), seed=10 * seed)


def listed(place: Path, *entries: Any) -> Path:
    """A list of them."""
    write_json(place / "teachers.json", {"teachers": list(entries)})
    return place / "teachers.json"


def predictor(file: Path) -> Any:
    """What predicts with a list, as ``medkd_predict -m`` opens it."""
    return open_predictor(open_model(file), device="cpu")


def test_channels_are_compared_by_name_where_both_say_them(tmp_path: Path) -> None:
    for name, channels in (
        ("a", ("T1", "T2")),
        ("b", ("T2w", "T1w")),
        ("c", ("image0", "image1")),
        ("d", ("t1", "T2w")),
    ):
        model(tmp_path / name, ord(name), channels)
    assert len(predictor(listed(tmp_path, "a", "c", "d")).members) == 3
    for names in (("a", "b"), ("a", "c", "b"), ("b", "d")):  # silent names stand for nobody
        with pytest.raises(RunError, match=r"must take the same channels, found .* and .*; take each alone") as caught:
            predictor(listed(tmp_path, *names))
        assert "\n" not in str(caught.value) and str(tmp_path / names[-1]) in str(caught.value)
    teachers = open_model(listed(tmp_path, "c", "a", "b"))
    description = data_of_model(tmp_path / "c")
    plan = teachers.describe().plan
    with pytest.raises(RunError, match=r"must take the same channels, found T1, T2 and T2w, T1w"):
        teachers.check_fits(plan, "3d_fullres", description)
    assert differing_channels((), ("T1",)) is None


@pytest.mark.parametrize(
    ("entries", "refused"),
    [
        (("a", "a"), True),
        (("a", "b", "./a"), True),
        (("a", "link"), True),
        (("a", "copy"), True),
        (("inner", "a"), True),
        (({"model": "a", "folds": [0, 1]}, {"model": "copy", "folds": [1]}), True),
        (({"model": "a", "folds": [0]}, {"model": "a", "folds": [1]}), False),
        (("a", "b"), False),
    ],
)
def test_no_network_counts_twice(tmp_path: Path, entries: tuple[Any, ...], refused: bool) -> None:
    for name in ("a", "b"):
        model(tmp_path / name, ord(name))
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    write_json(tmp_path / "inner" / "teachers.json", {"teachers": ["../b", "../a"]})
    file = listed(tmp_path, *entries)
    several = open_model(file)
    assert isinstance(several, SeveralTeachers)
    if not refused:
        several.check_once("0")
        assert len(predictor(file).members) == len(entries)
        return
    attempts: list[tuple[Any, Any]] = [(predictor, file), (several.check_once, "0")]
    for attempt, argument in attempts:
        with pytest.raises(RunError, match="have the same weights, which would count twice; list one") as caught:
            attempt(argument)
        assert "\n" not in str(caught.value)


def test_a_training_is_refused_before_it_begins(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model(tmp_path / name, ord(name))
    raw, root = tmp_path / "root" / "raw" / NAME, tmp_path / "root"
    data_of_model(tmp_path / "a").save(raw / "dataset.json")
    for number in range(2):
        write_scan(raw / "imagesUn" / f"scan_{number}_0000.nii.gz", number)
    plan_like(900, tmp_path / "a", root=root, workers=1)
    assert Plan.load(root / "preprocessed" / NAME / PLANS_FILE).configurations
    options = TrainOptions(
        root=root, epochs=1, iterations_per_epoch=1, workers=0, device="cpu", targets="cached", patch_size=(16, 16, 16)
    )
    assert dry_run(900, "unet_tiny", 0, options, str(listed(tmp_path, "a", "b")), "dml")
    with pytest.raises(RunError, match="have the same weights"):
        dry_run(900, "unet_tiny", 0, options, str(listed(tmp_path, "a", "b", "a")), "dml")
