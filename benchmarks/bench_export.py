"""Sizes, times and agreement of one model in torch and exported, on whole scans, in turns.

    python -m benchmarks.bench_export --data SCANS teacher=MODEL teacher_onnx=EXPORTED student=RUN …

The first model is the reference of the differences. Times are of preprocessing, network and the way back to the scan's
grid; files are read before. Writes benchmarks/results/export.json.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, machine
from medkd.core.files import write_json
from medkd.core.timing import interleaved
from medkd.inference.inputs import find_cases
from medkd.inference.opening import open_predictor
from medkd.io.volumes import read_image
from medkd.runtime.prediction import CasePredictor


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="+", metavar="NAME=MODEL", help="models to compare, the reference first")
    arguments.add_argument("--data", type=Path, required=True, help="folder of scans")
    arguments.add_argument("--scans", type=int, default=4, help="of them are used")
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--tta", action=argparse.BooleanOptionalAction, default=False)
    options = arguments.parse_args()
    paths = {name: Path(path) for name, _, path in (text.partition("=") for text in options.models)}
    predictors = {name: _open(path, options.tta) for name, path in paths.items()}
    cases = find_cases(options.data, len(next(iter(predictors.values())).configuration.normalization))[: options.scans]
    scans = [(*read_image(case.images, case.case), case.case) for case in cases]
    found = {name: _predict(predictor, scans) for name, predictor in predictors.items()}
    actions = {name: partial(_predict, predictor, scans) for name, predictor in predictors.items()}
    rows: dict[str, Any] = {}
    for name, taken in interleaved(actions, options.repetitions).items():
        row = {"engine": predictors[name].engine_name, "megabytes": round(_size(paths[name]) / 1e6, 2)}
        row |= _times(taken, len(scans))
        row["differing_voxels"] = _differing(found[name], next(iter(found.values())))
        rows[name] = row
        print(
            f"{name:24s} {row['median']:9.1f} ms a scan  {row['megabytes']:8.2f} MB  {row['differing_voxels']} differ"
        )
    settings = {"scans": [case for *_, case in scans], "tta": options.tta, "repetitions": options.repetitions}
    write_json(RESULTS / "export.json", {"machine": machine(), "settings": settings, "models": rows})


def _times(seconds: tuple[float, ...], scans: int) -> dict[str, Any]:
    per_scan = np.array(seconds) * 1000 / scans
    listed = [round(float(value), 1) for value in per_scan]
    return {"milliseconds_per_scan": listed, "median": round(float(np.median(per_scan)), 1)}


def _differing(found: list[np.ndarray], reference: list[np.ndarray]) -> int:
    """Voxels with another label, over all scans."""
    return sum(int((one != other).sum()) for one, other in zip(found, reference, strict=True))


def _open(path: Path, mirror: bool) -> CasePredictor:
    return open_predictor(path, mirror=mirror)


def _predict(predictor: CasePredictor, scans: list[tuple[Any, Any, str]]) -> list[np.ndarray]:
    return [predictor.predict_case(image, geometry, case) for image, geometry, case in scans]


def _size(path: Path) -> int:
    """Bytes of the network: of the exported file with its weights, or of the checkpoints."""
    if path.is_file():
        return path.stat().st_size
    files = [*path.glob("model.*"), *path.glob("fold_*/checkpoint_final.*")]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()
