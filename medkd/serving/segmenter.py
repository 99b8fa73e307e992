"""One model, loaded once, that segments the scans of many clients, one network run at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medkd.core.dataset import SEGMENTATION, CaseFiles
from medkd.core.errors import DataError, MedkdError
from medkd.core.geometry import Geometry
from medkd.inference.outputs import Outputs
from medkd.inference.writers import writer_of
from medkd.io.dicom import is_dicom
from medkd.io.volumes import read_geometry, read_image
from medkd.io.writing.formats import FORMATS as KNOWN_FORMATS
from medkd.preprocessing.pipeline import Preprocessed
from medkd.preprocessing.ranges import compare_scan
from medkd.runtime.prediction import CasePredictor, Prediction
from medkd.serving.display import displayed
from medkd.serving.intake import scan_of
from medkd.serving.limits import Limits
from medkd.serving.metrics import Metrics

FORMATS = tuple(name for name, entry in KNOWN_FORMATS.items() if entry.task == SEGMENTATION)
_log = logging.getLogger(__name__)


class AbandonedError(Exception):
    """The client has left before its scan's turn came."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One scan to be segmented.

    Attributes:
        folder: of its own, which holds the uploads and nothing else.
        uploads: one file per channel.
        format: of the label map, one of :data:`FORMATS`.
        view: make what the page shows, too.
        gone: set when the client has left.
    """

    folder: Path
    uploads: tuple[Path, ...]
    format: str = FORMATS[0]
    view: bool = False
    gone: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Answer:
    """A segmented scan.

    Attributes:
        file: the label map.
        seconds: of each stage.
        remarks: how the scan differs from the training cases, in sentences.
        view: what the page shows, where it was asked for.
    """

    file: Path
    seconds: dict[str, float]
    remarks: tuple[str, ...]
    view: dict[str, Any] | None = None


class Segmenter:
    """The model and its limits; :meth:`segment` may be called by many threads.

    Args:
        predictor: the loaded model.
        name: of the model; DICOM objects say it.
        limits: what is taken.
        metrics: where times are counted.
    """

    def __init__(self, predictor: CasePredictor, name: str, limits: Limits, metrics: Metrics) -> None:
        self.predictor, self.limits, self.metrics = predictor, limits, metrics
        self._writer = writer_of(predictor, name)
        self.channels = len(predictor.configuration.normalization)
        self._network = threading.Lock()

    def segment(self, order: Order) -> Answer:
        """Read, preprocess, predict and write one scan; reading and writing overlap with other scans' networks.

        Raises:
            MedkdError: the scan cannot be read or is too large; the text names no path of this machine.
            AbandonedError: the client has left.
        """
        with without_paths(order.folder):
            return self._segment(order)

    def _segment(self, order: Order) -> Answer:
        seconds: dict[str, float] = {}
        predictor = self.predictor
        with self._stage("read", seconds, order):
            case = scan_of(order.uploads, self.channels, self.limits)
            _check_format(order, case)
            outputs = self._outputs(order, case)
            image, geometry = self._read(case)
            outputs.check(case, geometry)
            findings = compare_scan(case, image, geometry, predictor.plan, predictor.configuration, predictor.channels)
            shown = image[0].copy() if order.view else None
            prepared = predictor.prepare(case.case, image, geometry, overwrite=True)
        prediction = self._predict(prepared, seconds, order)
        with self._stage("write", seconds, order):
            outputs.write(case, prediction, geometry)
            view = None
            if shown is not None:
                view = displayed(shown, prediction.labels, geometry, predictor.labels)
        self.metrics.segmented(prediction.labels.size)
        return Answer(outputs.label_map(case), seconds, tuple(finding.text() for finding in findings), view)

    def _outputs(self, order: Order, case: CaseFiles) -> Outputs:
        """Where the answer goes; a format that refers to a DICOM series needs one."""
        chosen = KNOWN_FORMATS[order.format]
        folder = order.folder / "answer"
        folder.mkdir()
        file = folder / f"segmentation{chosen.ending}"
        return Outputs.for_file(file, case, formats=(chosen,), writer=self._writer, series=None)

    def _read(self, case: CaseFiles) -> tuple[np.ndarray, Geometry]:
        for path in case.images:
            grid = read_geometry(path)
            self.limits.check_grid(grid, self.channels, self.predictor.plan, self.predictor.configuration)
        return read_image(case.images, case.case)

    def _predict(self, prepared: Preprocessed, seconds: dict[str, float], order: Order) -> Prediction:
        waiting = time.perf_counter()
        with self._network:
            seconds["wait"] = time.perf_counter() - waiting
            self.metrics.took("wait", seconds["wait"])
            with self._stage("network", seconds, order):
                return self.predictor.predict(prepared)

    @contextmanager
    def _stage(self, name: str, seconds: dict[str, float], order: Order) -> Iterator[None]:
        """Time a stage, which does not begin where nobody waits for it."""
        if order.gone.is_set():
            raise AbandonedError
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start
        self.metrics.took(name, seconds[name])


def _check_format(order: Order, case: CaseFiles) -> None:
    """A format that refers to a DICOM series needs one.

    Raises:
        DataError: the request holds none.
    """
    is_series = all(path.is_dir() or is_dicom(path) for path in case.images)
    if KNOWN_FORMATS[order.format].dicom and not is_series:
        raise DataError(
            f"The format {order.format} refers to the DICOM series of the scan, but the request holds another file; "
            "send a zip of the series, or ask for another format."
        )


@contextmanager
def without_paths(folder: Path) -> Iterator[None]:
    """What is said to a client names files as if they lay in a folder of their own.

    Args:
        folder: of this scan; other places on the machine are in no sentence about it.
    """
    try:
        yield
    except MedkdError as error:
        text = str(error)
        for place in {str(folder), str(folder.resolve())}:
            text = text.replace(f"{place}/", "").replace(place, "the request")
        if text == str(error):
            raise
        raise type(error)(text) from error
    except ImportError as error:
        raise DataError(
            f"This server lacks the package {error.name}, which this needs; choose another format."
        ) from error
    except MemoryError as error:
        raise DataError("The scan does not fit into this server's memory; crop it, or send it alone.") from error
