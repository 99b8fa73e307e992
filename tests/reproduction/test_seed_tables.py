"""Every row of the published tables can be trained: two steps on an imitation of its data, as its protocol says.

A share of the rows that changes from day to day runs by itself; ``MEDKD_ROWS=all`` runs all of them (half an hour).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from medkd import api
from medkd.core.files import read_json
from medkd.core.protocol_files import read_protocols
from medkd.detection.base import DETECTORS
from medkd.detection.families import register_detectors
from medkd.detection.methods import DETECTION_METHODS
from medkd.distillation import METHODS
from medkd.networks import NETWORKS
from medkd.reproduction.recipe import Recipe, load_recipe
from tests.dataset_conversion import radiograph_trees, trees
from tests.detection.builders import make_dataset as make_radiographs
from tests.shares import of_today

FOLDER = Path(__file__).parents[2] / "recipes"
SEEDS = ("acf_bckd", "mmseg_kd", "sfd_kd", "crosskd", "fourier_kd")
SHARE = 100  # one row in so many is tried each day
Row = tuple[str, str | None, str, str]
"""Recipe, teacher, student and method, by their names in it."""


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem.startswith(SEEDS))


@cache
def recipe(name: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.json")


def rows() -> Iterator[Row]:
    for name in names():
        for teacher, student, method in recipe(name).combinations():
            yield name, teacher, student, method


def test_all_five_systems_have_their_tables() -> None:
    found = names()
    assert {"acf_bckd_btcv", "acf_bckd_word", "acf_bckd_brats", "mmseg_kd_synapse"} <= set(found)
    assert {f"sfd_kd_{data}_{kind}" for data in ("grazpedwri", "fracatlas") for kind in ("faster_rcnn", "yolo")} <= set(
        found
    )
    assert {f"crosskd_{kind}" for kind in ("gfl", "retinanet", "fcos", "atss", "swin")} <= set(found)
    assert {f"fourier_kd_{kind}" for kind in ("faster_rcnn", "reppoints", "retinanet_small", "cityscapes")} <= set(
        found
    )


@pytest.mark.parametrize("name", names())
def test_a_table_names_what_exists_and_where_its_numbers_stand(name: str) -> None:
    register_detectors()
    table = recipe(name)
    protocol, _, variant = str(table.protocol).partition(":")
    content = read_protocols(protocol)
    detection = variant in content.detection
    assert detection or variant in content.variants
    networks: Any = DETECTORS if detection else NETWORKS
    for network in (*table.teachers.values(), *table.students.values()):
        assert network.network in networks
    for method in table.methods.values():
        for part in method.method.split("+"):
            assert part in METHODS or (detection and part in DETECTION_METHODS)
    assert all(row.source and row.scores for row in table.published)
    judged = {(row.teacher, row.student, row.method) for row in table.published if row.student}
    assert judged <= set(table.combinations())


def test_published_numbers_as_printed() -> None:
    def score(name: str, teacher: str | None, student: str | None, method: str | None) -> dict[str, float]:
        (row,) = [
            row
            for row in recipe(name).published
            if (row.teacher, row.student, row.method) == (teacher, student, method)
        ]
        return dict(row.scores)

    assert score("acf_bckd_btcv", "res_unet", "unet_tiny", "acf_bckd") == {"Dice": 76.28, "HD95": 12.57}
    assert score("acf_bckd_word", "segresnet", "unet_tiny", "cwd") == {"Dice": 79.82, "HD95": 21.84}
    assert score("acf_bckd_brats", "segresnet", None, None) == {"Dice": 89.67, "HD95": 8.30}
    assert score("sfd_kd_fracatlas_yolo", "yolov8l", "yolov8_efficientnet_es", "sfd") == {
        "AP": 18.1,
        "AP50": 45.6,
        "AP75": 10.7,
    }
    assert score("crosskd_gfl", "gfl_r101", "gfl_r50", "crosskd_pkd") == {"AP": 43.9}
    points = "reppoints_x101_32x4d_dcn"
    assert score("fourier_kd_reppoints", points, "reppoints_r50", "fourier_iou_aware") == {"AP": 42.8}
    assert score("fourier_kd_retinanet_small", "reppoints_r50", "retinanet_mobilenet_v2", "fourier") == {"AP": 33.3}


class Place:
    """The imitation of a recipe's data, prepared by its protocol, and its teachers, each trained for two steps."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.recipe = root, recipe(name)
        self.number = self.recipe.dataset.number
        self.protocol: str | None = None
        self.detection = False
        self.shape: dict[str, Any] = {}
        self._trained: set[str] = set()
        IMITATIONS[self.recipe.dataset.format](self)
        if self.shape.get("patch_size"):
            self.shape["configuration"] = self.recipe.settings.get("configuration", "3d_fullres")

    def settings(self, network: str) -> dict[str, Any]:
        shape = self.shape
        if network == "mobile_unet":  # of 32³ one voxel is left at its bottleneck, which batch norm blows up
            shape = {**shape, "patch_size": (64, 64, 64)}
        steps = {"epochs": 1, "iterations_per_epoch": 2, "batch_size": 2, "workers": 0, "device": "cpu"}
        return {"root": self.root, "validate": False, "protocol": self.protocol, **steps, **shape}

    def prepare(self, **options: Any) -> None:
        api.plan_and_preprocess(self.number, root=self.root, workers=1, protocol=self.recipe.protocol, **options)

    def teacher(self, network: str) -> None:
        if network not in self._trained:
            api.train(self.number, network, 0, **self.settings(network))
            self._trained.add(network)


def _scans(make: Callable[[Path], Path], format: str) -> Callable[[Place], None]:
    def build(place: Place) -> None:
        trees.convert(format, make(place.root / "download"), place.root, place.number)
        place.prepare()
        place.shape = {"patch_size": (64, 64) if format == "synapse_slices" else (32, 32, 32)}

    return build


def _radiographs(make: Callable[[Path], Path], format: str) -> Callable[[Place], None]:
    def build(place: Place) -> None:
        trees.convert(format, make(place.root / "download"), place.root, place.number)
        place.prepare(image_size=64, batch_size=2)

    return build


def _photographs(place: Place) -> None:
    make_radiographs(place.root, place.number, 10, categories=("a", "b"))
    api.plan_and_preprocess(place.number, root=place.root, workers=1, image_size=96, batch_size=2)
    place.protocol = place.recipe.protocol


def _streets(place: Place) -> None:
    trees.convert("cityscapes", trees.make_cityscapes(place.root / "download"), place.root, place.number)
    place.prepare()
    place.shape = {"patch_size": (32, 64)}


IMITATIONS: dict[str, Callable[[Place], None]] = {
    "btcv": _scans(trees.make_btcv, "btcv"),
    "word": _scans(trees.make_word, "word"),
    "brats": _scans(trees.make_brats, "brats"),
    "synapse_slices": _scans(trees.make_synapse, "synapse_slices"),
    "grazpedwri": _radiographs(radiograph_trees.make_graz, "grazpedwri"),
    "fracatlas": _radiographs(radiograph_trees.make_fracatlas, "fracatlas"),
    "coco": _photographs,
    "cityscapes": _streets,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """The imitation of each recipe's data, made once."""

    @cache
    def place(name: str) -> Place:
        return Place(tmp_path_factory.mktemp(name), name)

    return place


@pytest.mark.slow
@pytest.mark.parametrize("row", of_today(list(rows()), SHARE), ids=lambda row: "-".join(map(str, row)))
def test_a_row_trains_for_two_steps(row: Row, places: Callable[[str], Place]) -> None:
    name, teacher, student, method = row
    place, table = places(name), recipe(row[0])
    network, how = table.students[student].network, table.methods[method].method
    if teacher is None:
        fold = api.train(place.number, network, 0, **place.settings(network))
    else:
        taught_by = str(table.teachers[teacher].network)
        place.teacher(taught_by)
        fold = api.train_distill(place.number, taught_by, network, how, 0, **place.settings(network))
    weights = torch.load(fold / "checkpoint_final.pt", weights_only=True)["network"]
    assert all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point())
    run = read_json(fold.parent / "run.json")
    if teacher is not None and table.published and how not in ("kd", "rkd", "cwd", "maskd", "freekd"):
        assert run["published"], "the protocol says nothing of this row"
