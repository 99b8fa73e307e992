"""Predicting the training cases once: what is stored, when it is made anew, continued or refused, and training from
it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medkd.training.segmentation as segmentation
from medkd.core.checkpoint import load_checkpoint, save_checkpoint
from medkd.core.errors import LeakError, MedkdError, MethodError, RunError
from medkd.core.features import Target
from medkd.core.files import read_json
from medkd.core.run import FINAL, RUN_FILE, RunFolder
from medkd.core.splits import Split
from medkd.distillation import Context, Distiller, build_method
from medkd.inference.predictor import Predictor
from medkd.models.base import ModelFolder, find_model
from medkd.models.guard import Teacher, allowed_folds
from medkd.models.segmentation import TrainedModel
from medkd.preprocessing.store import CaseStore
from medkd.training.cached import TargetRequest, cache_targets
from medkd.training.distillation import DistillationTrainer
from medkd.training.options import TrainOptions
from medkd.training.segmentation_task import train, train_distill
from medkd.training.targets import DESCRIPTION, TargetStore
from tests.training.builders import NAME, make_dataset

CPU = torch.device("cpu")


def _options(root: Path, **changes: object) -> TrainOptions:
    values: dict = {
        "root": root,
        "epochs": 1,
        "iterations_per_epoch": 3,
        "workers": 0,
        "save_every": 1,
        "device": "cpu",
        "validate": False,
    }
    return TrainOptions(**{**values, **changes})


def _root(
    root: Path,
    *,
    regions: bool = False,
    configuration: str = "3d_fullres",
    folds: tuple[int, ...] = (0,),
    steps: int = 12,
) -> Path:
    make_dataset(root, regions=regions)
    for fold in folds:
        train(900, "plain_unet", fold, _options(root, iterations_per_epoch=steps, configuration=configuration))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a teacher trained on folds 0 and 1."""
    return _root(tmp_path_factory.mktemp("root"), folds=(0, 1))


def _candidate(root: Path, configuration: str = "3d_fullres") -> ModelFolder[TrainedModel]:
    return find_model("plain_unet", root / "results" / NAME, configuration, "segmentation")


def _cache(
    root: Path,
    cases: list[str] | None = None,
    folds: tuple[str, ...] = ("0",),
    *,
    tta: bool = False,
    limit: float = 1.0,
) -> tuple[Path, CaseStore]:
    source = _candidate(root)
    store = CaseStore(root / "preprocessed" / NAME / "3d_fullres")
    teachers = [Teacher(source, fold, source.seen(fold, (), root)) for fold in folds]
    networks = [teacher.network() for teacher in teachers]
    request = TargetRequest(store=store, cases=cases or store.cases()[:2], device=CPU, tta=tta, limit=limit)
    return cache_targets(teachers, networks, request), store


def _stored(folder: Path, case: str) -> Tensor:
    target = TargetStore(folder).open(case)
    return target.coding.decode(torch.from_numpy(np.array(target.codes)))


def _slow_mean(networks: list[nn.Module], image: Tensor) -> Tensor:
    """Mean probabilities over all mirrored copies of all networks for one patch ``(1, C, *patch)``."""
    found = []
    for network in networks:
        for n in range(4):
            for axes in combinations((2, 3, 4), n):
                found.append(network(image.flip(axes)).softmax(1).flip(axes))
    return torch.stack(found).mean(0)


def test_a_cached_case_is_the_sliding_windows_output(root: Path) -> None:
    folder, store = _cache(root)
    predictor = Predictor.from_run(root / "results" / NAME / "plain_unet__3d_fullres", [0], CPU, mirror=False)
    for case in store.cases()[:2]:
        expected = predictor.predict_preprocessed(store.open(case).image)
        assert torch.allclose(_stored(folder, case), expected, atol=0.07)
        assert torch.allclose(_stored(folder, case).softmax(0), expected.softmax(0), atol=0.006)
    described = read_json(folder / DESCRIPTION)
    assert described["teacher"] == "plain_unet" and described["folds"] == ["0"] and described["mirror_axes"] == []
    assert folder.parent.name == "3d_fullres_targets" and described["average"] == "logits"


def test_a_cached_mean_is_that_of_probabilities_over_mirrorings_and_folds(root: Path) -> None:
    folder, store = _cache(root, folds=("0", "1"), tta=True)
    source = _candidate(root)
    networks: list[nn.Module] = [source.network(fold) for fold in ("0", "1")]
    assert read_json(folder / DESCRIPTION)["average"] == "probabilities"
    whole = torch.from_numpy(np.array(store.open("case_00").image))

    class Slow(nn.Module):
        """All passes at once."""

        def forward(self, x: Tensor) -> Tensor:
            """Mean probabilities."""
            return _slow_mean(networks, x)

    model = source.describe()
    sliding = Predictor([Slow()], model.plan, model.configuration, model.labels, model.patch_size, device=CPU)
    expected = sliding.predict_preprocessed(whole)
    assert torch.allclose(_stored(folder, "case_00").softmax(0), expected, atol=0.006)
    assert not torch.allclose(
        networks[0](whole[None, :, :16, :16, :16]).softmax(1)[0], expected[:, :16, :16, :16], atol=0.05
    )


def _count_predictions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cases as they are written."""
    written: list[str] = []
    original = TargetStore.write

    def counting(self: TargetStore, case: str, *args: object) -> None:
        written.append(case)
        original(self, case, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(TargetStore, "write", counting)
    return written


def _copy(root: Path, place: Path) -> Path:
    """The root without cached targets."""
    shutil.copytree(root, place / "root", ignore=shutil.ignore_patterns("*_targets"))
    return place / "root"


def test_finished_targets_are_reused_killed_ones_continued_and_stale_cases_made_anew(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _copy(root, tmp_path)
    written = _count_predictions(monkeypatch)
    cases = CaseStore(root / "preprocessed" / NAME / "3d_fullres").cases()[:3]
    counting = TargetStore.write

    def dying(self: TargetStore, case: str, *args: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        counting(self, case, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(TargetStore, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        _cache(root, cases)
    monkeypatch.setattr(TargetStore, "write", counting)
    folder, store = _cache(root, cases)
    assert sorted(written) == cases, "every case was predicted once, in any order"
    assert _cache(root, cases)[0] == folder and sorted(written) == cases
    record = store.folder / f"{cases[1]}.json"
    record.write_text(record.read_text().replace('"recipe": "', '"recipe": "other'))
    _cache(root, cases)
    assert sorted(written) == sorted([*cases, cases[1]])


def test_other_weights_other_mirroring_and_other_folds_have_their_own_targets(root: Path, tmp_path: Path) -> None:
    root = _copy(root, tmp_path)
    first = {
        _cache(root)[0],
        _cache(root, tta=True)[0],
        _cache(root, folds=("1",))[0],
        _cache(root, folds=("0", "1"))[0],
    }
    assert len(first) == 4
    path = root / "results" / NAME / "plain_unet__3d_fullres" / "fold_0" / FINAL
    content = load_checkpoint(path)
    save_checkpoint(path, {**content, "network": {name: value * 1.5 for name, value in content["network"].items()}})
    folder, _ = _cache(root)
    assert folder not in first
    plain = next(
        f
        for f in first
        if read_json(f / DESCRIPTION)["folds"] == ["0"] and not read_json(f / DESCRIPTION)["mirror_axes"]
    )
    assert not torch.allclose(_stored(folder, "case_00"), _stored(plain, "case_00"), atol=0.05)


def test_the_size_is_bounded_before_anything_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RunError, match=r"2 cases would take 5\.9e-05 GiB .* the limit is 1e-05 GiB; raise it with --targets-limit"
    ) as caught:
        _cache(root, limit=1e-5)
    assert "\n" not in str(caught.value)
    full = type("usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    before = set((root / "preprocessed" / NAME).glob("*_targets/*"))
    with pytest.raises(RunError, match="make room"):
        _cache(root, ["case_05"])
    assert set((root / "preprocessed" / NAME).glob("*_targets/*")) == before


def test_folds_average_only_where_none_has_seen_the_students_validation_cases(root: Path) -> None:
    source = _candidate(root)
    seen = {fold: source.seen(fold, (), root) for fold in ("0", "1")}
    every, train = tuple(sorted(seen["0"] | seen["1"])), tuple(sorted(seen["0"]))
    first = Teacher(source, "0", seen["0"])
    held = tuple(case for case in every if case not in seen["0"])
    assert [t.fold for t in allowed_folds(first, Split(train, held), (), root)] == ["0"]
    assert [t.fold for t in allowed_folds(first, Split(every, ()), (), root)] == ["0", "1"]


@pytest.mark.parametrize(("fold", "folds"), [(0, ["0"]), ("all", ["0", "1"])])
def test_ensemble_is_cached_with_mirrorings_and_the_folds_that_may_teach(
    root: Path, fold: int | str, folds: list[str]
) -> None:
    folder = train_distill(
        900, "plain_unet", "plain_unet", "ensemble", fold, _options(root, targets="cached", tag=f"e{fold}")
    )
    run = read_json(folder.parent / RUN_FILE)
    assert run["targets"] == "cached" and run["targets_tta"] is True
    made = [read_json(p) for p in (root / "preprocessed" / NAME).glob(f"*_targets/*/{DESCRIPTION}")]
    assert any(d["folds"] == folds and d["mirror_axes"] == [0, 1, 2] and d["average"] == "probabilities" for d in made)
    seen = json.loads((folder / "split.json").read_text())["teacher_train"]
    source = _candidate(root)
    assert set(seen) == set().union(*(source.seen(f, (), root / "raw" / NAME) for f in folds))


def _trainers(monkeypatch: pytest.MonkeyPatch) -> list[DistillationTrainer]:
    made: list[DistillationTrainer] = []
    original = DistillationTrainer.__init__

    def spying(self: DistillationTrainer, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(DistillationTrainer, "__init__", spying)
    return made


def test_cached_training_holds_no_teacher_and_sees_the_same_patches_with_nearly_the_same_targets(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, terms = _trainers(monkeypatch), []
    for targets in ("live", "cached"):
        folder = train_distill(
            900, "plain_unet", "plain_unet", "kd+dist", 0, _options(root, targets=targets, tag=targets)
        )
        terms.append(json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["terms"])
        assert RunFolder.load(folder.parent).run.targets == targets
    live, cached = made
    assert live.distiller.teacher is not None and live.data.targets is None
    assert cached.distiller.teacher is None and cached.distiller.partners == [] and cached.data.targets is not None
    a, b = (next(trainer.batches(2)) for trainer in made)
    assert len(a) == 2 and len(b) == 3 and all(torch.equal(x, y) for x, y in zip(a, b, strict=False))
    assert terms[0].keys() == terms[1].keys() and terms[0]["kd.kd"] != terms[1]["kd.kd"]
    with torch.no_grad():
        seen = live.distiller.teacher(b[0]).softmax(
            1
        )  # intensities and borders differ, so this is a likeness, not an equality
    inside = (b[1] >= 0).expand_as(seen)
    likeness = torch.corrcoef(torch.stack([seen[inside], b[2].softmax(1)[inside]]))[0, 1]
    assert float(likeness) > 0.8


def test_loss_from_the_cache_is_nearly_the_live_one_and_far_from_another_teachers(root: Path) -> None:
    folder, store = _cache(root)
    image = torch.from_numpy(np.array(store.open("case_00").image))[None, :, :16, :16, :16]
    student = torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    method = build_method(
        "kd",
        Context(
            student_taps=(), teacher_taps=(), num_outputs=3, regions=False, spacing=(1.0,) * 3, patch_size=(16,) * 3
        ),
    )
    target = Target(torch.zeros(1, 1, 16, 16, 16, dtype=torch.long))
    source, middle = _candidate(root), (slice(None), slice(None), *(slice(4, 12),) * 3)
    target = replace(target, labels=target.labels[middle])

    def loss(cached: Tensor) -> float:
        terms = Distiller(None, method, cached=True).terms(image, student[middle], target, cached[middle])
        return float(terms["kd"])

    live, other = (loss(source.network(fold)(image)) for fold in ("0", "1"))
    found = loss(_stored(folder, "case_00")[None, :, :16, :16, :16])
    assert found == pytest.approx(live, rel=0.05)
    assert abs(found - live) < 0.5 * abs(found - other)


def test_a_killed_and_continued_cached_run_has_the_unbroken_runs_weights(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _options(root, epochs=2, targets="cached", tag="whole")
    whole = train_distill(900, "plain_unet", "plain_unet", "kd", 0, options)
    original: Callable = segmentation.iterate
    calls = 0

    def dying(*args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        nonlocal calls
        for batch in original(*args, **kwargs):
            calls += 1
            if calls == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(segmentation, "iterate", dying)
    with pytest.raises(KeyboardInterrupt):
        train_distill(900, "plain_unet", "plain_unet", "kd", 0, replace(options, tag="broken"))
    monkeypatch.setattr(segmentation, "iterate", original)
    part = train_distill(900, "plain_unet", "plain_unet", "kd", 0, replace(options, tag="broken", resume=True))
    a, b = (load_checkpoint(f / FINAL)["network"] for f in (whole, part))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(RunError, match="targets: cached there, live now"):
        train_distill(900, "plain_unet", "plain_unet", "kd", 0, replace(options, targets="live", resume=True))


@pytest.mark.parametrize(
    ("method", "fold", "changes", "error", "message"),
    [
        ("acf", 0, {"targets": "cached"}, MethodError, "acf needs more of the teacher"),
        ("kd", 0, {"targets": "stored"}, RunError, "must be one of live, cached"),
        ("kd", 0, {"targets_tta": True}, RunError, "add --targets cached"),
        ("kd", 2, {"targets": "cached"}, LeakError, "fold 2"),
        ("kd", 0, {"targets": "cached", "targets_limit": 1e-9}, RunError, "--targets-limit"),
    ],
)
def test_what_does_not_fit_is_one_clear_sentence_and_leaves_nothing(
    root: Path,
    method: str,
    fold: int,
    changes: dict,
    error: type[MedkdError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = _count_predictions(monkeypatch)
    with pytest.raises(error, match=message) as caught:
        train_distill(900, "plain_unet", "plain_unet", method, fold, _options(root, tag="refused", **changes))
    assert "\n" not in str(caught.value) and written == []
    assert not list((root / "results" / NAME).glob("*__refused"))


def test_none_has_no_targets_to_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = _count_predictions(monkeypatch)
    train_distill(900, "plain_unet", "plain_unet", "none", 0, _options(root, targets="cached", tag="none"))
    assert written == []


@pytest.mark.parametrize(("configuration", "regions"), [("2d", False), ("3d_fullres", True), ("2d", True)])
def test_slices_and_regions(tmp_path: Path, configuration: str, regions: bool) -> None:
    root = _root(tmp_path, regions=regions, configuration=configuration, steps=2)
    options = _options(root, configuration=configuration, targets="cached")
    folder = train_distill(900, "plain_unet", "plain_unet", "ensemble+cwd", 0, options)
    assert (folder / FINAL).exists()
    train_distill(900, "plain_unet", "plain_unet", "kd", 0, options)
    plain = next(p.parent for p in root.glob(f"**/{DESCRIPTION}") if read_json(p)["average"] == "logits")
    predictor = Predictor.from_run(root / "results" / NAME / f"plain_unet__{configuration}", [0], CPU, mirror=False)
    case = json.loads((folder / "split.json").read_text())["train"][0]
    expected = predictor.predict_preprocessed(CaseStore(root / "preprocessed" / NAME / configuration).open(case).image)
    assert torch.allclose(_stored(plain, case), expected, atol=0.13)
