"""A model of nnU-Net whose training nobody can look up: what a ``teacher.json`` beside it states counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.core.errors import LeakError, MedkdError, RunError
from medkd.core.files import write_json
from medkd.core.splits import Split
from medkd.models.base import ModelFolder, open_model
from medkd.models.guard import choose_teacher
from tests.models.nnunet.builders import configured, dataset_of, plans_of, write_model

CASES = [f"case_{index}" for index in range(6)]
HELD_OUT = Split(tuple(CASES[2:]), tuple(CASES[:2]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 1559 cases elsewhere, without splits."""
    planned = configured((1.0,) * 3, (16,) * 3)
    described = {**dataset_of(), "numTraining": 1559}
    return write_model(tmp_path / "total", plans_of({"3d_fullres": planned}), described, "3d_fullres", folds=(0, 1))


def _stating(folder: Path, train: object) -> ModelFolder:
    write_json(folder / "teacher.json", {"train": train})
    return open_model(folder, "segmentation")


def test_a_model_that_has_seen_none_of_the_cases_teaches_in_every_fold(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r'or state in a teacher\.json .* for none of them \{"train": \[\]\}\.$'):
        choose_teacher(open_model(folder), 0, HELD_OUT, CASES, tmp_path)
    model = _stating(folder, [])
    assert model.kind == "nnunet" and model.splits(CASES, tmp_path) is None
    chosen = choose_teacher(model, 0, HELD_OUT, CASES, tmp_path)
    assert chosen.fold == "0" and chosen.seen == frozenset()


def test_what_is_stated_is_guarded_against(folder: Path, tmp_path: Path) -> None:
    model = _stating(folder, [CASES[1], "elsewhere_7"])
    assert model.seen("1", CASES, tmp_path) == {CASES[1], "elsewhere_7"}
    with pytest.raises(LeakError, match="on 1 of the 2 cases"):
        choose_teacher(model, 0, HELD_OUT, CASES, tmp_path)
    assert choose_teacher(model, 1, Split(HELD_OUT.val, HELD_OUT.train), CASES, tmp_path).fold == "1"


@pytest.mark.parametrize("source", ["splits_final.json", "summary.json"])
def test_a_statement_does_not_override_the_records_of_the_very_data_set(
    folder: Path, tmp_path: Path, source: str
) -> None:
    """Written for another data set, it must not let the model teach on its own one unguarded."""
    model = _stating(folder, [])
    if source == "splits_final.json":
        write_json(folder / source, [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:4], "val": CASES[4:]}])
    else:
        for fold, held_out in enumerate((CASES[:2], CASES[4:])):
            listed = [{"prediction_file": f"/there/{name}.nii.gz"} for name in held_out]
            write_json(folder / f"fold_{fold}" / "validation" / source, {"metric_per_case": listed})
    for ask in (lambda: model.seen("0", CASES, tmp_path), lambda: model.splits(CASES, tmp_path)):
        with pytest.raises(RunError, match=r"teacher\.json does not name \d cases .* for example case_0; remove it"):
            ask()
    others = [f"other_{index}" for index in range(6)]
    assert model.seen("0", others, tmp_path) == frozenset() and model.splits(others, tmp_path) is None
    whole = _stating(folder, CASES)
    assert whole.seen("0", CASES, tmp_path) == set(CASES)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"train": ["case_1.nii.gz"]}, r"names case_1\.nii\.gz, which is no case"),
        ({"train": ["elsewhere"]}, r"or write \[\] if the weights have seen none"),
        ({"trained": []}, "unknown key 'trained'"),
        ({"train": [], "spacing": [1, 1, 1]}, "unknown key 'spacing'"),
        ({"train": "none"}, "expected a list"),
    ],
)
def test_other_statements_are_refused(folder: Path, tmp_path: Path, content: object, match: str) -> None:
    write_json(folder / "teacher.json", content)
    for ask in (open_model(folder).seen, lambda _, cases, raw: open_model(folder).splits(cases, raw)):
        with pytest.raises(MedkdError, match=match):
            ask("0", CASES, tmp_path)


def test_the_second_stage_of_a_cascade_speaks_for_both(tmp_path: Path) -> None:
    low = configured((2.0,) * 3, (8,) * 3, next_stage="3d_cascade_fullres")
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans = plans_of({"3d_fullres": configured((1.0,) * 3, (16,) * 3), "3d_lowres": low, "3d_cascade_fullres": second})
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        folder = write_model(tmp_path / f"T__P__{configuration}", plans, dataset_of(), configuration)
    model = _stating(folder, [CASES[0]])
    assert model.kind == "nnunet_cascade" and model.seen("0", CASES, tmp_path) == {CASES[0]}
