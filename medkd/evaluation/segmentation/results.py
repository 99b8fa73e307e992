"""Scores of many cases: nnU-Net's ``summary.json`` with surface metrics, failures and confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medkd.core.errors import DataError
from medkd.core.files import write_json
from medkd.core.labels import LabelSpec
from medkd.core.numbers import whole_number
from medkd.evaluation.entries import Entry
from medkd.evaluation.segmentation.cases import DEFAULT_TOLERANCE_MM, ClassScore, Status, status_of
from medkd.evaluation.segmentation.metrics import HausdorffDefinition
from medkd.evaluation.statistics import LEVEL, Interval, groups_of, interval_json, mean_interval
from medkd.evaluation.table import counted_cases, format_interval, text_table

Metric = Literal["Dice", "IoU", "HD95", "NSD", "ASD", "ASSD"]
METRICS: tuple[Metric, ...] = ("Dice", "IoU", "HD95", "NSD")
FURTHER: tuple[Metric, ...] = ("ASD", "ASSD")
"""Computed where they are asked for."""
STATUSES: tuple[Status, ...] = ("scored", "missed", "invented", "absent")
SCHEMA = 1


@dataclass(frozen=True)
class CaseScores:
    """One case.

    Attributes:
        reference_file: path of the reference as it was read.
        prediction_file: path of the prediction; it need not exist where missing predictions were allowed.
        scores: one per structure.
        patient: whose scan it is; None where that is not known.
    """

    reference_file: str
    prediction_file: str
    scores: tuple[ClassScore, ...]
    patient: str | None = None

    @property
    def name(self) -> str:
        """File name of the reference, which tells cases apart."""
        return Path(self.reference_file).name

    @property
    def structures(self) -> tuple[tuple[int, ...], ...]:
        """Label values of the scored structures."""
        return tuple(score.values for score in self.scores)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The scores of a set of cases; every mean is computed from them.

    Attributes:
        cases: sorted by reference file.
        nsd_tolerance_mm: tolerance of the normalised surface distance, None where it was not computed.
        hd95_definition: see :func:`medkd.evaluation.segmentation.metrics.hausdorff95`.
        missing: names of the cases without a prediction (allowed by flag, counted as empty).
        extra: further content of the file's ``"medkd"`` block, kept as it is.
        further: those of :data:`FURTHER` that were asked for.
    """

    cases: tuple[CaseScores, ...]
    nsd_tolerance_mm: float | None = DEFAULT_TOLERANCE_MM
    hd95_definition: HausdorffDefinition = "max"
    missing: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    further: tuple[Metric, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was computed."""
        return (*METRICS, *self.further)

    @property
    def patients(self) -> dict[str, str]:
        """Name of a case → its patient, where known."""
        return {case.name: case.patient for case in self.cases if case.patient is not None}

    @property
    def groups(self) -> np.ndarray:
        """Place of each case's patient ``(cases,)``; names of references need not differ."""
        places = [str(place) for place in range(len(self.cases))]
        known = {
            place: case.patient for place, case in zip(places, self.cases, strict=True) if case.patient is not None
        }
        return groups_of(places, known)

    @property
    def patient_count(self) -> int | None:
        """How many patients there are; None where none is known."""
        return len(np.unique(self.groups)) if self.patients else None

    @property
    def structures(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and label values of the scored structures."""
        if not self.cases:
            return ()
        return tuple((score.name, score.values) for score in self.cases[0].scores)

    def table(self, metric: Metric) -> np.ndarray:
        """``(cases, structures)`` float64; NaN where a structure is absent or the metric was not computed."""
        table = np.full((len(self.cases), len(self.structures)), np.nan)
        for row, case in zip(table, self.cases, strict=True):
            row[:] = [getattr(score, metric.lower()) for score in case.scores]
        return table

    def interval(
        self, metric: Metric, structure: int | None = None, *, level: float = LEVEL, seed: int = 0
    ) -> Interval:
        """Mean over cases with its confidence interval over patients, where they are known, else over cases.

        Args:
            metric: what to average.
            structure: index of a structure, or None for the foreground mean (mean of the structures' means).
            level: coverage.
            seed: of the bootstrap.
        """
        table = self.table(metric)
        values = table if structure is None else table[:, structure]
        return mean_interval(values, level, seed, groups=self.groups)

    def counts(self, structure: int | None = None) -> dict[Status, int]:
        """How many structures were scored, missed, invented and absent; over all structures where none is given."""
        counts = dict.fromkeys(STATUSES, 0)
        for case in self.cases:
            chosen = case.scores if structure is None else case.scores[structure : structure + 1]
            for score in chosen:
                counts[score.status] += 1
        return counts

    @property
    def mean_dice(self) -> float:
        """Foreground mean of the Dice; NaN where every structure is absent."""
        return self.interval("Dice").mean

    def definitions(self) -> dict[str, str]:
        """In words, how every number was computed."""
        return definitions(self.nsd_tolerance_mm, self.hd95_definition, self.further)

    def to_json(self) -> dict[str, Any]:
        """nnU-Net's keys, and ours under ``"medkd"``; undefined values are null."""
        means, structures = {}, {}
        for index, (name, values) in enumerate(self.structures):
            key = structure_key(values)
            means[key] = _means([_metrics_of(case.scores[index], self.further) for case in self.cases])
            structures[key] = {"name": name, "values": list(values), **self._counts_and_intervals(index)}
        own = {
            "schema": SCHEMA,
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            "hd95_definition": self.hd95_definition,
            "definitions": self.definitions(),
            "confidence_level": LEVEL,
            "foreground": self._counts_and_intervals(None),
            "structures": structures,
            "missing_predictions": list(self.missing),
        }
        if self.patients:
            own["patients"] = self.patient_count
        if self.further:
            own["further_metrics"] = list(self.further)
        return {
            "foreground_mean": _means(list(means.values())),
            "mean": means,
            "metric_per_case": [_case_json(case, self.further) for case in self.cases],
            "medkd": {**self.extra, **own},
        }

    def _counts_and_intervals(self, structure: int | None) -> dict[str, Any]:
        found: dict[str, Any] = {"counts": self.counts(structure)}
        for metric in self.metrics:
            found[metric] = interval_json(self.interval(metric, structure))
        return found

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
        data = Entry.read(path)
        own = data.object("medkd") if "medkd" in data else Entry({}, str(path))
        own.check_schema(SCHEMA)
        named = _named(own, labels)
        further = _further(own)
        cases = tuple(_case_from(entry, named, further) for entry in data.listed_objects("metric_per_case"))
        structures = {case.structures for case in cases}
        if len(structures) > 1:
            raise DataError(f"{path}: its cases list different structures; evaluate again.")
        return cls(
            cases=cases,
            nsd_tolerance_mm=own.number("nsd_tolerance_mm"),
            hd95_definition=_hd95_definition(own),
            missing=own.texts("missing_predictions") if "missing_predictions" in own else (),
            extra={key: value for key, value in own.values.items() if key not in _OWN},
            further=further,
        )


_FURTHER_DEFINITIONS = {
    "ASD": "mean distance in mm from the prediction's surface to the reference's (MedPy's asd)",
    "ASSD": "mean distance in mm of both surfaces' voxels from the other surface (MedPy's assd)",
}


def definitions(
    nsd_tolerance_mm: float | None, hd95_definition: HausdorffDefinition, further: Sequence[Metric] = ()
) -> dict[str, str]:
    """In words, how every number is computed."""
    percentile = {
        "max": "the larger one of the two directed 95th percentiles (as MONAI)",
        "pooled": "the 95th percentile of both directions' distances pooled (as MedPy)",
    }[hd95_definition]
    nsd = "not computed"
    if nsd_tolerance_mm is not None:
        nsd = f"share of both surfaces' voxels within {nsd_tolerance_mm} mm of the other surface"
    return {
        "Dice": "2 TP / (2 TP + FP + FN), over the voxels of the native image",
        "IoU": "TP / (TP + FP + FN)",
        "HD95": f"95th percentile of the Hausdorff distance in mm between surface voxels' centres: {percentile}",
        "NSD": nsd,
        **{metric: _FURTHER_DEFINITIONS[metric] for metric in further},
        "surface": "foreground voxels with a background voxel among their face neighbours; outside the image is "
        "background",
        "missed or invented": "a structure in only one of the two maps counts with Dice 0, NSD 0 and every distance = "
        "the image's diagonal",
        "absent": "a structure in neither is left out of the means and counted; case by case it has the best value "
        "against one that another model invented",
        "mean": "over cases per structure; the foreground mean is the mean of the structures' means",
        "interval": "95 % bootstrap percentile interval; drawn with replacement are patients with all of their cases "
        "where they are known, else cases",
    }


def structure_key(values: tuple[int, ...]) -> str:
    """nnU-Net's key of a structure: ``"1"`` for a label, ``"(1, 2, 3)"`` for a region."""
    return str(values[0]) if len(values) == 1 else str(tuple(values))


_DISTANCES = ("HD95", *FURTHER)


def at_best(metric: Metric) -> float:
    """The best value of a metric."""
    return 0.0 if metric in _DISTANCES else 1.0


def decimals(metric: Metric) -> int:
    """Decimals that are worth showing."""
    return 2 if metric in _DISTANCES else 3


def summary_text(summary: Summary) -> str:
    """One line per structure and one for the foreground mean: mean [95 % interval] of each metric, missed, invented,
    absent.
    """
    metrics = summary.metrics
    shown: tuple[Status, ...] = ("missed", "invented", "absent")

    def row(name: str, index: int | None) -> list[str]:
        cells = [name]
        for metric in metrics:
            cells.append(format_interval(summary.interval(metric, index), decimals(metric)))
        counts = summary.counts(index)
        cells += [str(counts[status]) for status in shown]
        return cells

    titles = [f"{metric} mm" if metric in _DISTANCES else metric for metric in metrics]
    rows = [row(name, index) for index, (name, _) in enumerate(summary.structures)]
    lines = text_table(["structure", *titles, *shown], rows, row("foreground mean", None))
    unit = "patients" if summary.patients else "cases"
    counted = counted_cases(len(summary.cases), summary.patient_count)
    lines.append(f"{counted}; mean [95 % interval over {unit}]")
    return "\n".join(lines)


_KEYS = ("Dice", "IoU", "FN", "FP", "TN", "TP", "n_pred", "n_ref", "HD95", "NSD")


def _metrics_of(score: ClassScore, further: Sequence[Metric]) -> dict[str, float | None]:
    return {key: getattr(score, key.lower()) for key in (*_KEYS, *further)}


def _means(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Of every key the mean of the values that there are; None where there is none."""
    means: dict[str, float | None] = {}
    for key in rows[0] if rows else _KEYS:
        column = np.array([row[key] for row in rows], dtype=np.float64)  # None becomes NaN
        known = column[~np.isnan(column)]
        means[key] = float(known.mean()) if known.size else None
    return means


def _case_json(case: CaseScores, further: Sequence[Metric]) -> dict[str, Any]:
    metrics = {}
    for score in case.scores:
        metrics[structure_key(score.values)] = {**_metrics_of(score, further), "status": score.status}
    entry = {"metrics": metrics, "prediction_file": case.prediction_file, "reference_file": case.reference_file}
    return entry if case.patient is None else {**entry, "patient": case.patient}


def _hd95_definition(own: Entry) -> HausdorffDefinition:
    if "hd95_definition" in own and own.choice("hd95_definition", "max", "pooled") == "pooled":
        return "pooled"
    return "max"


def _further(own: Entry) -> tuple[Metric, ...]:
    asked = own.texts("further_metrics") if "further_metrics" in own else ()
    for name in asked:
        if name not in FURTHER:
            own.fail(f"{own.where}: further_metrics", f"some of {', '.join(FURTHER)}", name)
    return tuple(metric for metric in FURTHER if metric in asked)


def _named(own: Entry, labels: LabelSpec | None) -> dict[str, str]:
    """Key of a structure → its name, by the file, else by the labels."""
    named = {}
    for name, values in labels.foreground if labels else ():
        named[structure_key(values)] = name
    if "structures" in own:
        for key, structure in own.objects("structures"):
            named[key] = structure.text("name")
    return named


def _case_from(entry: Entry, names: Mapping[str, str], further: Sequence[Metric]) -> CaseScores:
    scores = []
    for key, metrics in entry.objects("metrics"):
        scores.append(_score_from(key, metrics, names.get(key, key), further))
    patient = entry.text("patient") if "patient" in entry else None
    return CaseScores(entry.text("reference_file"), entry.text("prediction_file"), tuple(scores), patient)


def _score_from(key: str, metrics: Entry, name: str, further: Sequence[Metric]) -> ClassScore:
    tp, fp, fn, tn = map(metrics.count, ("TP", "FP", "FN", "TN"))
    dice, iou, hd95, nsd = map(metrics.number, METRICS)  # nnU-Net writes NaN where both are empty
    return ClassScore(
        name=name,
        values=_values_of(key, metrics),
        status=status_of(tp + fp, tp + fn),
        dice=dice,
        iou=iou,
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
        hd95=hd95,
        nsd=nsd,
        asd=metrics.number("ASD") if "ASD" in further else None,
        assd=metrics.number("ASSD") if "ASSD" in further else None,
    )


def _values_of(key: str, metrics: Entry) -> tuple[int, ...]:
    """The label values of :func:`structure_key`."""
    values: list[int] = []
    for part in key.strip("()").split(","):
        digits = part.strip()
        if not digits:  # behind the last comma of (1,)
            continue
        if whole_number(digits) is None:
            values.clear()
            break
        values.append(int(digits))
    if not values:
        metrics.fail(metrics.where, "a label like 1 or a region like (1, 2) as the name", key)
    return tuple(values)


# of the "medkd" block, what a summary holds itself; the rest is kept as it is
_OWN = {
    *("schema", "definitions", "confidence_level", "foreground", "structures", "nsd_tolerance_mm", "hd95_definition"),
    *("missing_predictions", "further_metrics", "patients"),
}
