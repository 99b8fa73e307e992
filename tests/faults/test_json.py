"""Mutated JSON files of every kind that medkd reads: each is understood, or refused in one sentence."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.core.boxes import BoxAnnotation
from medkd.core.dataset import DatasetDescription, training_cases
from medkd.core.errors import MedkdError
from medkd.core.plan import Plan
from medkd.core.protocol import ProtocolFile
from medkd.core.run import RunDescription, is_detection
from medkd.core.serial import load
from medkd.core.splits import FoldRecord, load_splits
from medkd.evaluation.detection.predictions import DetectionPredictions
from medkd.evaluation.segmentation.results import Summary
from medkd.io.verify import Report, verify_dataset
from medkd.preprocessing.fingerprint import Fingerprint
from medkd.preprocessing.prepare import plan_and_preprocess
from medkd.preprocessing.store import CaseRecord
from medkd.training.logs import read_log
from tests.faults.tally import Tally, mutations
from tests.preprocessing.builders import make_raw

Reader = Callable[[Path], object]


def read_description(path: Path, raw: Path) -> object:
    description = DatasetDescription.load(path)
    return training_cases(raw, description), description.to_json()


def one_line(reader: Callable[[], object]) -> str:
    """Empty where a file was read or refused in one sentence, else what went wrong."""
    try:
        reader()
    except MedkdError as error:
        return "" if len(str(error)) < 2000 else f"a sentence of {len(str(error))} characters"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


ODD: list[Any] = [
    None, True, False, -1, 0, 2**70, 1e308, -0.5, "", "a", "\0", "../../x", "²", [], [[]], {}, {"a": 1}, [None],
    [1, "a"], float("nan"), float("inf"), "é" * 300, [0] * 50,
]  # fmt: skip
TEXTS = (
    b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 6000, b"\xff\xfe\x00", b"null", b"[]", b"{}", b'"x"', b"NaN",
    b"-Infinity", b"\xef\xbb\xbf{}", b'{"train": ' + b"9" * 6000 + b"}", b"\x00" * 64,
)  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside."""
    found = [path]
    entries = data.items() if isinstance(data, dict) else enumerate(data[:4]) if isinstance(data, list) else ()
    for key, value in entries:
        found += places(value, (*path, key))
    return found


def mutated(data: Any, rng: np.random.Generator) -> Any:
    """The same with one to three values exchanged, removed, renamed or doubled."""
    data = json.loads(json.dumps(data))
    for _ in range(int(rng.integers(1, 4))):
        every = places(data)
        path = every[int(rng.integers(len(every)))]
        if not path:
            if rng.random() < 0.1:
                return ODD[int(rng.integers(len(ODD)))]
            continue
        holder = data
        for key in path[:-1]:
            holder = holder[key]
        change(holder, path[-1], rng)
    return data


def change(holder: Any, key: Any, rng: np.random.Generator) -> None:
    kind = int(rng.integers(5))
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * float(rng.choice([-1, 0, 1e6, 1e-6, 1e200]))
    else:
        holder[key] = copy.deepcopy(ODD[int(rng.integers(len(ODD)))])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Reader]]:
    """One sound file of each kind, and what reads it."""
    root = tmp_path_factory.mktemp("samples")
    raw = make_raw(root, cases=3)
    plan_and_preprocess(1, root=root, configurations=["3d_fullres"])
    prepared = root / "preprocessed" / "Dataset001_Test"
    verify_dataset(raw).save(root / "report.json")
    run = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
    found: dict[str, tuple[Path, Reader]] = {
        "dataset.json": (raw / "dataset.json", lambda path: read_description(path, raw)),
        "plans.json": (prepared / "plans.json", Plan.load),
        "fingerprint.json": (prepared / "fingerprint.json", lambda path: load(Fingerprint, path)),
        "case record": (prepared / "3d_fullres" / "c0.json", lambda path: load(CaseRecord, path)),
        "verification_report.json": (root / "report.json", lambda path: load(Report, path)),
    }
    for name, reader in (
        ("run.json", lambda path: (load(RunDescription, path), is_detection(path.parent))),
        ("split.json", FoldRecord.load),
        ("log.jsonl", lambda path: read_log(path.parent)),
        ("summary.json", Summary.load),
    ):
        path = next(iter(sorted(run.rglob(name))), None)
        if path is not None:
            found[name] = (path, reader)
    protocol = Path(__file__).parents[2] / "medkd" / "protocols" / "acf_bckd.json"
    found["protocol"] = (protocol, lambda path: load(ProtocolFile, path))
    written = {
        "summary.json": (
            {
                "metric_per_case": [
                    {
                        "reference_file": "a.nii.gz", "prediction_file": "b.nii.gz",
                        "metrics": {
                            "1": {
                                "Dice": 0.5, "IoU": 0.4, "TP": 3, "FP": 1, "FN": 1, "TN": 5, "n_pred": 4, "n_ref": 4,
                            }
                        },
                    }
                ]
            },
            Summary.load,
        ),
        "splits_final.json": ([{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a"]}], load_splits),
        "split.json": ({"train": ["a"], "val": ["b"], "teacher_train": ["a"]}, FoldRecord.load),
        "boxes": (
            {"width": 10, "height": 9, "boxes": [[1, 2, 3, 4]], "names": ["a"], "window": None, "schema": 1},
            BoxAnnotation.load,
        ),
        "predictions.json": (
            {
                "schema": 1,
                "categories": ["a"],
                "images": {
                    "x": {
                        "file": "x.png", "width": 10, "height": 9, "boxes": [[1, 2, 3, 4]], "scores": [0.5],
                        "classes": ["a"],
                    }
                },
            },
            DetectionPredictions.load,
        ),
    }  # fmt: skip
    for name, (data, reader) in written.items():
        path = root / "written" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))
        found.setdefault(name, (path, reader))
    return found


KINDS = (
    "dataset.json", "plans.json", "fingerprint.json", "case record", "verification_report.json", "run.json",
    "split.json", "log.jsonl", "summary.json", "protocol", "splits_final.json", "boxes", "predictions.json",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_understood_or_refused(
    samples: dict[str, tuple[Path, Reader]], kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind not in samples:
        pytest.skip(f"no sound {kind} at hand")
    source, reader = samples[kind]
    target = tmp_path / source.name
    shutil.copy(source, target)
    assert one_line(lambda: reader(target)) == ""
    reader(target)  # the sound one is read
    text = source.read_text(encoding="utf-8")
    data = json.loads(text.splitlines()[0] if kind == "log.jsonl" else text)
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    tally = Tally(f"JSON: {kind}", 0, [])
    for _ in range(mutations(400, 25)):
        target.write_text(json.dumps(mutated(data, rng)))
        tally.check(not (wrong := one_line(lambda: reader(target))), f"{wrong}: {target.read_text()[:300]}")
    for content in TEXTS:
        target.write_bytes(content)
        tally.check(not (wrong := one_line(lambda: reader(target))), f"{wrong}: {content[:40]!r}")
    tally.finish(request)
