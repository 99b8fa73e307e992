"""How long teacher and students take for the same scan: measured together, in turns, through the predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from medkd.core.dataset import CaseFiles, DatasetDescription, labelled_cases, unlabelled_cases
from medkd.core.errors import DataError
from medkd.core.run_files import trained_places
from medkd.core.timing import Timings, time_in_turns
from medkd.inference.opening import open_predictor
from medkd.inference.predictor import Predictor
from medkd.io.volumes import read_image
from medkd.models.base import open_model
from medkd.models.exported import check_export
from medkd.runtime.package import measured_export

REPETITIONS = 5


def measure_scans(
    results: Path,
    raw: Path,
    *,
    runs: Sequence[str] = (),
    repetitions: int = REPETITIONS,
    device: torch.device | str | None = None,
    exports: Sequence[Path] = (),
) -> Timings:
    """Time all trained runs of a data set on its first scan: preprocessing, tiles, and back to the scan's grid.

    Every run predicts with one fold and its own settings (mirroring, step size), as ``medkd_predict`` does.

    Args:
        results: results folder of the data set; the times are written there.
        raw: raw data set with a scan.
        runs: names or patterns of the runs; all where empty.
        repetitions: timed predictions of each run, after one that is not timed.
        device: None picks CUDA where present, else the CPU.
        exports: folders of exported models that take turns with the runs, on the CPU.

    Raises:
        RunError: no run has trained weights, a model cannot be opened, or an export is none or named as another.
        DataError: the raw data set holds no scan that can be read.
    """
    case = _first_scan(raw)
    image, geometry = read_image(case.images, case.case)
    actions: dict[str, Callable[[], object]] = {}
    predictors = []
    for place in trained_places(results, runs):
        predictor = Predictor.of(open_model(place.model, "segmentation"), [place.fold], device)
        predictors.append(predictor)
        actions[place.run] = partial(predictor.predict_case, image, geometry, case.case)
    measured = []
    for folder in exports:
        model = open_model(folder, "segmentation")
        check_export(model, actions)
        exported = open_predictor(model, postprocessing=False)  # as the runs beside it
        measured.append(measured_export(model.path, exported.engine_name))
        actions[model.name] = partial(exported.predict_case, image, geometry, case.case)
    return time_in_turns(
        results,
        actions,
        repetitions,
        unit="scan",
        case=case.case,
        size=tuple(geometry.shape),
        device=str(predictors[0].device) if predictors else "",
        settings=", or ".join(dict.fromkeys(_settings(predictor) for predictor in predictors)),
        exports=measured,
    )


def _first_scan(raw: Path) -> CaseFiles:
    if (raw / "dataset.json").exists():
        description = DatasetDescription.load(raw / "dataset.json")
        for listed in (labelled_cases, unlabelled_cases):  # what is wrong in imagesUn matters to nobody before
            for case in listed(raw, description):
                if all(path.exists() for path in case.images):
                    return case
    raise DataError(f"{raw}: expected a raw data set with at least one scan to measure on, found none.")


def _settings(predictor: Predictor) -> str:
    copies = 2 ** len(predictor.mirror_axes) if predictor.settings.mirror else 1
    return f"{copies} mirrored copies per tile, step size {predictor.settings.step_size:g}, {predictor.precision}"
