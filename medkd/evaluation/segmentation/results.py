"""Scores of many cases: nnU-Net's ``summary.json`` with HD95, NSD, counts of failures and confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medkd.core.errors import DataError
from medkd.core.files import read_json, understood, write_json
from medkd.core.labels import LabelSpec
from medkd.evaluation.segmentation.cases import DEFAULT_TOLERANCE_MM, ClassScore, Status
from medkd.evaluation.segmentation.metrics import HausdorffDefinition
from medkd.evaluation.statistics import LEVEL, Interval, finite, interval_json, mean_interval
from medkd.evaluation.table import format_interval, text_table

Metric = Literal["Dice", "IoU", "HD95", "NSD"]
METRICS: tuple[Metric, ...] = ("Dice", "IoU", "HD95", "NSD")
STATUSES: tuple[Status, ...] = ("scored", "missed", "invented", "absent")
SCHEMA = 1


@dataclass(frozen=True)
class CaseScores:
    """One case.

    Attributes:
        reference_file: path of the reference as it was read.
        prediction_file: path of the prediction; it need not exist where missing predictions were allowed.
        scores: one per structure.
    """

    reference_file: str
    prediction_file: str
    scores: tuple[ClassScore, ...]

    @property
    def name(self) -> str:
        """File name of the reference, which tells cases apart."""
        return Path(self.reference_file).name


@dataclass(frozen=True)
class Summary:
    """The scores of a set of cases; every mean is computed from them.

    Attributes:
        cases: sorted by reference file.
        nsd_tolerance_mm: tolerance of the normalised surface distance, None where it was not computed.
        hd95_definition: see :func:`medkd.evaluation.segmentation.metrics.hausdorff95`.
        missing: names of the cases without a prediction (allowed by flag, counted as empty).
        extra: further content of the file's ``"medkd"`` block, kept as it is.
    """

    cases: tuple[CaseScores, ...]
    nsd_tolerance_mm: float | None = DEFAULT_TOLERANCE_MM
    hd95_definition: HausdorffDefinition = "max"
    missing: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def structures(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and label values of the scored structures."""
        return tuple((s.name, s.values) for s in self.cases[0].scores) if self.cases else ()

    def table(self, metric: Metric) -> np.ndarray:
        """``(cases, structures)`` float64; NaN where a structure is absent or the metric was not computed."""
        rows = [[getattr(s, metric.lower()) for s in case.scores] for case in self.cases]
        return np.array(rows, dtype=np.float64).reshape(len(self.cases), len(self.structures))

    def interval(
        self, metric: Metric, structure: int | None = None, *, level: float = LEVEL, seed: int = 0
    ) -> Interval:
        """Mean over cases with its confidence interval.

        Args:
            metric: what to average.
            structure: index of a structure, or None for the foreground mean (mean of the structures' means).
            level: coverage.
            seed: of the bootstrap.
        """
        table = self.table(metric)
        return mean_interval(table if structure is None else table[:, structure], level, seed)

    def counts(self, structure: int | None = None) -> dict[Status, int]:
        """How many structures were scored, missed, invented and absent; over all structures where none is given."""
        found = [s.status for case in self.cases for i, s in enumerate(case.scores) if structure in (None, i)]
        return {status: found.count(status) for status in STATUSES}

    @property
    def mean_dice(self) -> float:
        """Foreground mean of the Dice; NaN where every structure is absent."""
        return self.interval("Dice").mean

    def definitions(self) -> dict[str, str]:
        """In words, how every number was computed."""
        return definitions(self.nsd_tolerance_mm, self.hd95_definition)

    def to_json(self) -> dict[str, Any]:
        """nnU-Net's keys, and ours under ``"medkd"``; undefined values are null."""
        keys = [structure_key(values) for _, values in self.structures]
        means = {key: self._means(i) for i, key in enumerate(keys)}
        own = {
            "schema": SCHEMA,
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            "hd95_definition": self.hd95_definition,
            "definitions": self.definitions(),
            "confidence_level": LEVEL,
            "foreground": {"counts": self.counts(), **self._intervals(None)},
            "structures": {
                key: {"name": name, "values": list(values), "counts": self.counts(i), **self._intervals(i)}
                for i, (key, (name, values)) in enumerate(zip(keys, self.structures, strict=True))
            },
            "missing_predictions": list(self.missing),
        }
        return {
            "foreground_mean": {k: _mean([m[k] for m in means.values()]) for k in _metrics_of(None)},
            "mean": means,
            "metric_per_case": [_case_json(case) for case in self.cases],
            "medkd": {**self.extra, **own},
        }

    def save(self, path: Path) -> None:
        """Write ``summary.json`` atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path, labels: LabelSpec | None = None) -> Summary:
        """Read a ``summary.json`` of medkd, or of nnU-Net (then without HD95 and NSD).

        Args:
            path: the file.
            labels: gives the structures' names where the file does not.

        Raises:
            DataError: the file is missing, damaged, of a newer schema, or its cases do not have the same structures.
        """
        data = read_json(path)
        with understood(path, "a summary.json of medkd or nnU-Net", "evaluate again"):
            return cls._from_data(data, path, labels)

    @classmethod
    def _from_data(cls, data: Any, path: Path, labels: LabelSpec | None) -> Summary:
        own = dict(data.get("medkd", {})) if isinstance(data, Mapping) else {}
        if own.get("schema", SCHEMA) != SCHEMA:
            raise DataError(
                f"{path}: has schema {own['schema']}, this medkd reads schema {SCHEMA}; evaluate again with this "
                "version."
            )
        named = {k: s["name"] for k, s in own.get("structures", {}).items()}
        named = {**{structure_key(v): n for n, v in (labels.foreground if labels else ())}, **named}
        try:
            cases = tuple(_case_from(entry, named) for entry in data["metric_per_case"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is not a summary.json of medkd or nnU-Net ({error!r} in 'metric_per_case'); evaluate again."
            ) from error
        if len({tuple(s.values for s in c.scores) for c in cases}) > 1:
            raise DataError(f"{path}: its cases list different structures; evaluate again.")
        tolerance, definition = own.get("nsd_tolerance_mm"), own.get("hd95_definition", "max")
        ours = {
            "schema",
            "definitions",
            "confidence_level",
            "foreground",
            "structures",
            "nsd_tolerance_mm",
            "hd95_definition",
        }
        extra = {k: v for k, v in own.items() if k not in ours | {"missing_predictions"}}
        return cls(cases, tolerance, definition, tuple(own.get("missing_predictions", ())), extra)

    def _means(self, structure: int) -> dict[str, float | None]:
        metrics = [_metrics_of(case.scores[structure]) for case in self.cases]
        return {key: _mean([m[key] for m in metrics]) for key in _metrics_of(None)}

    def _intervals(self, structure: int | None) -> dict[str, dict[str, float | int | None]]:
        return {metric: interval_json(self.interval(metric, structure)) for metric in METRICS}


def definitions(nsd_tolerance_mm: float | None, hd95_definition: HausdorffDefinition) -> dict[str, str]:
    """In words, how every number is computed."""
    percentile = {
        "max": "the larger one of the two directed 95th percentiles (as MONAI)",
        "pooled": "the 95th percentile of both directions' distances pooled (as MedPy)",
    }[hd95_definition]
    return {
        "Dice": "2 TP / (2 TP + FP + FN), over the voxels of the native image",
        "IoU": "TP / (TP + FP + FN)",
        "HD95": f"95th percentile of the Hausdorff distance in mm between surface voxels' centres: {percentile}",
        "NSD": f"share of both surfaces' voxels within {nsd_tolerance_mm} mm of the other surface"
        if nsd_tolerance_mm is not None
        else "not computed",
        "surface": "foreground voxels with a background voxel among their face neighbours; outside the image is background",
        "missed or invented": "a structure in only one of the two maps counts with Dice 0, NSD 0 and HD95 = the image's diagonal",
        "absent": "a structure in neither is left out of the means and counted",
        "mean": "over cases per structure; the foreground mean is the mean of the structures' means",
        "interval": "95 % bootstrap percentile interval, cases drawn with replacement",
    }


def structure_key(values: tuple[int, ...]) -> str:
    """nnU-Net's key of a structure: ``"1"`` for a label, ``"(1, 2, 3)"`` for a region."""
    return str(values[0]) if len(values) == 1 else str(tuple(values))


def decimals(metric: Metric) -> int:
    """Decimals that are worth showing."""
    return 2 if metric == "HD95" else 3


def summary_text(summary: Summary, metrics: tuple[Metric, ...] = METRICS) -> str:
    """One line per structure and one for the foreground mean: mean [95 % interval] of each metric, missed, invented,
    absent.
    """
    shown: tuple[Status, ...] = ("missed", "invented", "absent")

    def row(name: str, index: int | None) -> list[str]:
        counts = summary.counts(index)
        scores = [format_interval(summary.interval(metric, index), decimals(metric)) for metric in metrics]
        return [name, *scores, *(str(counts[status]) for status in shown)]

    head = ["structure", *(f"{metric} mm" if metric == "HD95" else metric for metric in metrics), *shown]
    rows = [row(name, index) for index, (name, _) in enumerate(summary.structures)]
    lines = text_table(head, rows, row("foreground mean", None))
    lines.append(f"{len(summary.cases)} cases; mean [95 % interval over cases]")
    return "\n".join(lines)


_KEYS = ("Dice", "IoU", "FN", "FP", "TN", "TP", "n_pred", "n_ref", "HD95", "NSD")


def _metrics_of(score: ClassScore | None) -> dict[str, float | None]:
    return {key: None if score is None else getattr(score, key.lower()) for key in _KEYS}


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _case_json(case: CaseScores) -> dict[str, Any]:
    metrics = {structure_key(s.values): {**_metrics_of(s), "status": s.status} for s in case.scores}
    return {"metrics": metrics, "prediction_file": case.prediction_file, "reference_file": case.reference_file}


def _case_from(entry: Mapping[str, Any], names: Mapping[str, str]) -> CaseScores:
    scores = tuple(_score_from(key, m, names.get(key, key)) for key, m in entry["metrics"].items())
    return CaseScores(str(entry["reference_file"]), str(entry["prediction_file"]), scores)


def _score_from(key: str, metrics: Mapping[str, Any], name: str) -> ClassScore:
    values = tuple(int(v) for v in key.strip("()").split(",") if v.strip())
    tp, fp, fn, tn = (int(metrics[k]) for k in ("TP", "FP", "FN", "TN"))
    status: Status = "scored" if tp + fp and tp + fn else "missed" if tp + fn else "invented" if tp + fp else "absent"
    # nnU-Net writes NaN where both are empty
    dice, iou, hd95, nsd = (finite(metrics.get(k)) for k in ("Dice", "IoU", "HD95", "NSD"))
    return ClassScore(name, values, status, dice, iou, tp, fp, fn, tn, hd95, nsd)
