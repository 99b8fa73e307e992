"""One model in torch and exported, whole scans from file to file: times in turns, memory, agreement.

    python -m benchmarks.bench_export --data SCANS [--labels LABELS] teacher=MODEL student=RUN student_onnx=EXPORTED …

The first model is the reference of the differences. Every model predicts in a process of its own, as ``medkd_predict``
does: read, preprocess, network, way back, write; it is loaded once, before the first turn. ``nnunet:PYTHON:MODEL``
predicts with nnU-Net itself, run by that interpreter. Writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, dice_of_labels, machine
from medkd.core.files import write_json
from medkd.core.timing import interleaved
from medkd.inference.inputs import find_cases
from medkd.io.volumes import read_label

ROOT = Path(__file__).parents[1]
SERVANT = Path(__file__).with_name("export_servant.py")
NNUNET = "nnunet:"


def main() -> None:
    """Measure and print."""
    options = _options()
    places = dict(text.split("=", 1) for text in options.models)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = _copy_scans(options.data, options.scans, folder / "scans")
        servants = {model: Servant(place, options.threads, options.tta) for model, place in places.items()}
        actions: dict[str, Any] = {}
        for model, servant in servants.items():
            actions[model] = partial(servant, folder / "scans", folder / model)
        taken = interleaved(actions, options.repetitions, warm_up=options.warm_up)
        rows: dict[str, Any] = {}
        for model, servant in servants.items():
            row = {"engine": servant.engine, "megabytes": round(_size(servant.path) / 1e6, 2)}
            row |= _times(taken[model], len(cases))
            row["processor_median"] = _times(tuple(servant.processor[-options.repetitions :]), len(cases))["median"]
            row["peak_mib"] = round(servant.peak / 2**20)
            row["differing_voxels"] = _differing(folder / model, folder / next(iter(places)), cases)
            if options.labels is not None:
                row["dice"] = round(_dice(folder / model, options.labels, cases), 5)
            rows[model] = row
            print(
                f"{model:22s} {row['median']:9.1f} ms a scan {row['megabytes']:8.2f} MB {row['peak_mib']:6d} MiB {row}"
            )
            servant.close()
    settings: dict[str, Any] = {
        "scans": cases,
        "warm_up": options.warm_up,
        "tta": options.tta,
        "repetitions": options.repetitions,
        "threads": options.threads,
    }
    load = [round(value, 1) for value in os.getloadavg()]
    content = {"machine": machine(), "load_at_the_end": load, "settings": settings, "models": rows}
    write_json(RESULTS / f"{options.name}.json", content)


class Servant:
    """A process with one model.

    Args:
        place: folder of the model, or ``nnunet:PYTHON:MODEL``.
        threads: of its engine.
        mirror: average over mirrored copies.

    Attributes:
        engine: what computes.
        path: of the model.
        peak: bytes of memory that the process, and the largest of its children, have taken at most.
        processor: seconds of processor time of each call.
    """

    def __init__(self, place: str, threads: int, mirror: bool) -> None:
        kind, python, model = "medkd", sys.executable, place
        if place.startswith(NNUNET):
            kind = "nnunet"
            python, model = place.removeprefix(NNUNET).split(":")
        self.path, self.peak = Path(model), 0.0
        self.processor: list[float] = []
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} if kind == "medkd" else dict(os.environ)
        self._process = subprocess.Popen(
            [python, str(SERVANT), kind, model, str(threads), str(int(mirror))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.engine = self._answer()["engine"]

    def __call__(self, inputs: Path, outputs: Path) -> None:
        """Predict all scans of a folder."""
        shutil.rmtree(outputs, ignore_errors=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"inputs": str(inputs), "outputs": str(outputs)}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.peak = max(self.peak, answer["peak"])
        self.processor.append(answer["processor"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.path} stopped; see what medkd_predict says to it.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="+", metavar="NAME=MODEL", help="models to compare, the reference first")
    arguments.add_argument("--data", type=Path, required=True, help="folder of scans")
    arguments.add_argument("--labels", type=Path, help="their label maps, for Dice")
    arguments.add_argument("--scans", type=int, default=4, help="of them are used")
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--warm-up", action=argparse.BooleanOptionalAction, default=True, help="one turn before")
    arguments.add_argument("--tta", action=argparse.BooleanOptionalAction, default=False)
    arguments.add_argument("--name", default="export", help="of the results' file")
    return arguments.parse_args()


def _copy_scans(data: Path, most: int, folder: Path) -> list[str]:
    """The first scans of a folder under nnU-Net's names; their ids."""
    folder.mkdir()
    cases = find_cases(data, 1)[:most]
    for case in cases:
        shutil.copy(case.images[0], folder / f"{case.case}_0000.nii.gz")
    return [case.case for case in cases]


def _times(seconds: tuple[float, ...], scans: int) -> dict[str, Any]:
    per_scan = np.array(seconds) * 1000 / scans
    listed = [round(float(value), 1) for value in per_scan]
    return {"milliseconds_per_scan": listed, "median": round(float(np.median(per_scan)), 1)}


def _differing(folder: Path, reference: Path, cases: list[str]) -> int:
    """Voxels with another label, over all scans."""
    count = 0
    for case in cases:
        found, expected = (read_label(place / f"{case}.nii.gz").array for place in (folder, reference))
        count += int((found != expected).sum())
    return count


def _dice(folder: Path, labels: Path, cases: list[str]) -> float:
    """Mean over scans and structures."""
    scores: list[float] = []
    for case in cases:
        found, truth = (read_label(place / f"{case}.nii.gz").array for place in (folder, labels))
        scores += dice_of_labels(found, truth)
    return float(np.mean(scores))


def _size(path: Path) -> int:
    """Bytes of the network: of the exported file with its weights, or of the checkpoints."""
    if path.is_file():
        return path.stat().st_size
    files = [*path.glob("model.*"), *path.glob("fold_*/checkpoint_final.*")]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()
