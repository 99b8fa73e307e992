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

from medkd.core.errors import MedkdError
from tests.faults.json_samples import Sample, sound_files
from tests.faults.tally import Tally, mutations


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
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    """One sound file of each kind, and what reads it."""
    return sound_files(tmp_path_factory.mktemp("samples"))


KINDS = (
    "dataset.json", "plans.json", "fingerprint.json", "case record", "verification_report.json", "run.json",
    "split.json", "log.jsonl", "summary.json", "protocol", "splits_final.json", "boxes", "predictions.json",
    "model.json", "teacher.json", "predict_settings.json", "detector's teacher.json", "detection plans.json",
    "cases.json", "detection summary.json", "detection predict_settings.json", "postprocessing.json",
)  # fmt: skip


def test_every_kind_is_tried(samples: dict[str, Sample]) -> None:
    assert sorted(samples) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_understood_or_refused(
    samples: dict[str, Sample], kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
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
