"""How long teacher and students take for the same radiograph: measured together, in turns, with all that prediction
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from medkd.core.dataset import DatasetDescription, detection_cases
from medkd.core.device import pick_device
from medkd.core.errors import DataError
from medkd.core.run_files import trained_places
from medkd.core.timing import Timings, time_in_turns
from medkd.detection.detecting import detect_pixels
from medkd.io.radiographs import read_radiograph, to_eight_bit
from medkd.models.base import open_model
from medkd.models.exported import check_export
from medkd.runtime.package import measured_export

REPETITIONS = 9


def measure_images(
    results: Path,
    raw: Path,
    *,
    runs: Sequence[str] = (),
    repetitions: int = REPETITIONS,
    device: torch.device | str | None = None,
    exports: Sequence[Path] = (),
) -> Timings:
    """Time all trained runs of a detection data set on its first image: letterbox, detector, boxes in its pixels.

    Args:
        results: results folder of the data set; the times are written there.
        raw: raw data set with an image.
        runs: names or patterns of the runs; all where empty.
        repetitions: timed predictions of each run, after one that is not timed.
        device: None picks CUDA where present, else the CPU.
        exports: folders of exported detectors that take turns with the runs, on the CPU.

    Raises:
        RunError: no run has trained weights, a model cannot be opened, or an export is none or named as another.
        DataError: the raw data set holds no image that can be read.
    """
    case, path = _first_image(raw)
    pixels = to_eight_bit(read_radiograph(path).pixels)[0]
    target = pick_device(device)
    actions: dict[str, Callable[[], object]] = {}
    sizes: dict[int, None] = {}
    for place in trained_places(results, runs):
        loaded = open_model(place.model, "detection").load([place.fold])
        detectors = [detector.to(target) for detector in loaded.networks]
        sizes[loaded.spec.image_size] = None
        actions[place.run] = partial(detect_pixels, detectors, pixels, target)
    measured = []
    for folder in exports:
        model = open_model(folder, "detection")
        check_export(model, actions)
        actions[model.name] = partial(detect_pixels, model.load().networks, pixels, torch.device("cpu"))
        measured.append(measured_export(model.path, "onnxruntime"))
    return time_in_turns(
        results,
        actions,
        repetitions,
        unit="image",
        case=case,
        size=(int(pixels.shape[0]), int(pixels.shape[1])),
        device=str(target),
        settings=f"input of {' or '.join(map(str, sizes))} pixels a side",
        exports=measured,
    )


def _first_image(raw: Path) -> tuple[str, Path]:
    if (raw / "dataset.json").exists():
        for case in detection_cases(raw, DatasetDescription.load(raw / "dataset.json")):
            if case.images[0].exists():
                return case.case, case.images[0]
    raise DataError(f"{raw}: expected a raw data set with at least one image to measure on, found none.")
