"""Which configuration of a network, or which two of them together, does best on cases that they have not seen."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NoReturn

import numpy as np

from medkd.api.folds import listed_folds
from medkd.api.runs_together import RunsTogether
from medkd.api.scores import cross_validate
from medkd.core.dataset import SEGMENTATION
from medkd.core.errors import DataError, RunError
from medkd.core.paths import Root
from medkd.core.run import RUN_FILE, RunDescription
from medkd.core.serial import load, nearest, save
from medkd.evaluation.cross_validation import refuse_agreement, scored_folds
from medkd.evaluation.segmentation.results import Summary
from medkd.evaluation.segmentation.scored_from import check_sources
from medkd.evaluation.statistics import Interval, count_patients, finite, groups_of, paired_difference, patients_of
from medkd.evaluation.table import counted_cases, format_interval, text_table
from medkd.tasks import task_of_run
from medkd.training.ranks import refuse_several

BEST_CONFIGURATION_FILE = "best_configuration.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run, or two that predict together.

    Attributes:
        name: its folder below the results of the data set.
        runs: whose networks predict.
        dice: mean foreground Dice over all validation cases, without post-processing.
        low: lower bound of its 95 % interval over patients, where they are known, else over cases.
        high: upper bound.
        behind: by how much the best is better, paired by cases; 0 for the best. Its interval is over patients, too.
        behind_low: lower bound.
        behind_high: upper bound.
        clear: whether the best is better beyond chance, see
            :attr:`medkd.evaluation.statistics.PairedDifference.clear`.
        command: how to predict with it.
    """

    name: str
    runs: tuple[str, ...]
    dice: float | None
    low: float | None
    high: float | None
    behind: float | None
    behind_low: float | None
    behind_high: float | None
    clear: bool
    command: str


@dataclass(frozen=True, kw_only=True)
class BestConfiguration:
    """``best_configuration.json``: candidates by their mean out-of-fold Dice, the best first.

    Attributes:
        dataset: full name.
        folds: on whose validation cases they were compared.
        cases: how many there are.
        candidates: the best first; of equal ones that of fewer networks.
        patients: how many patients these show; None where none is known.
    """

    dataset: str
    folds: tuple[str, ...]
    cases: int
    candidates: tuple[Candidate, ...]
    patients: int | None = None
    schema: int = 1

    @property
    def best(self) -> Candidate:
        """The candidate with the highest mean."""
        return self.candidates[0]

    @property
    def simplest(self) -> Candidate | None:
        """Where two together are best: the best single run, if it cannot be told from them."""
        single = [candidate for candidate in self.candidates if len(candidate.runs) == 1]
        if len(self.best.runs) == 1 or not single or single[0].clear:
            return None
        return single[0]

    def text(self) -> str:
        """A table, and how to predict."""
        rows = []
        for candidate in self.candidates:
            dice = _shown(candidate.dice, candidate.low, candidate.high)
            behind = _shown(candidate.behind, candidate.behind_low, candidate.behind_high)
            mark = "" if candidate is self.best else "clear" if candidate.clear else "not clear"
            rows.append([candidate.name, dice, "" if candidate is self.best else behind, mark])
        lines = text_table(["candidate", "Dice", "best − this", ""], rows[:-1], rows[-1])
        lines += [
            f"{counted_cases(self.cases, self.patients)} of fold {', '.join(self.folds)}; mean [95 % interval over "
            f"{'cases' if self.patients is None else 'patients'}], not post-processed",
            "",
            f"best: {self.best.name}",
            f"  {self.best.command}",
        ]
        if self.simplest is not None:
            lines += [f"of half the cost, and not clearly worse: {self.simplest.name}", f"  {self.simplest.command}"]
        return "\n".join(lines)


def _shown(mean: float | None, low: float | None, high: float | None) -> str:
    centre, below, above = (float("nan") if value is None else value for value in (mean, low, high))
    return format_interval(Interval(centre, below, above, 0), 4)


def best_configuration(
    dataset: str | int,
    runs: Sequence[str],
    *,
    root: str | Path | None = None,
    folds: Sequence[int | str] | None = None,
    ensembles: bool = True,
    device: str | None = None,
) -> BestConfiguration:
    """Compare runs of a data set, and each two of them together, by the Dice of cases that no network of theirs has
    seen.

    The folds of each run are put together (:func:`medkd.cross_validate`). Every two runs are a candidate, too: their
    networks of a fold predict its validation cases together, from the raw scans; these predictions, their scores and
    post-processing lie in ``results/DATASET/RUN+RUN``, with which :func:`medkd.predict` predicts. Predictions that are
    there are kept, so that an interrupted comparison goes on.

    Args:
        dataset: number or full name.
        runs: names of runs, or of networks for their runs in all configurations; two runs at least.
        root: medkd's folder.
        folds: on whose validation cases they are compared; None takes all that every run has scored.
        ensembles: False compares the runs only.
        device: where to predict with two; None picks CUDA where present, else the CPU.

    Returns:
        The candidates, which are also written to ``results/DATASET/best_configuration.json``.

    Raises:
        RunError: there are no two such runs, or they have no scored fold in common.
        DataError: they were scored on other cases, or the raw scans are not there any more.
    """
    refuse_several("medkd_best_configuration")
    folds = listed_folds(folds)
    place = Root.resolve(root)
    name = place.dataset_name(dataset)
    found = _find_runs(place.results / name, runs)
    wanted = _common_folds(found, folds)
    _check_sources(found, wanted)
    scores: dict[tuple[str, ...], Summary] = {}
    for run in found:
        own = scored_folds(run)
        some = None if own == wanted else wanted
        scores[(run.name,)] = cross_validate(name, run.name, root=root, folds=some, postprocessing=None)
    _check_same_cases(scores)
    for first, second in combinations(found, 2) if ensembles else ():
        pair = RunsTogether(first, second, place.raw_dataset(name), device)
        scores[(first.name, second.name)] = pair.score(wanted)
    words = ["medkd_predict", "-i", "INPUT", "-o", "OUTPUT", "-f", *map(str, wanted)]
    words += [] if root is None else ["--root", str(root)]
    cases = [case.name for case in next(iter(scores.values())).cases]
    compared = BestConfiguration(
        dataset=name,
        folds=tuple(map(str, wanted)),
        cases=len(cases),
        patients=count_patients(cases, patients_of(scores.values())),
        candidates=tuple(_ordered(scores, lambda run: shlex.join([*words, "-m", f"{dataset}/{run}"]))),
    )
    save(place.results / name / BEST_CONFIGURATION_FILE, compared)
    return compared


def _find_runs(results: Path, names: Sequence[str]) -> list[Path]:
    """The runs that names or networks stand for, each once."""
    known = sorted(file.parent for file in results.glob(f"*/{RUN_FILE}"))
    found: list[Path] = []
    for name in names:
        found += [run for run in _runs_of(name, known, results) if run not in found]
    for run in found:
        task = task_of_run(load(RunDescription, run / RUN_FILE)).name
        if task != SEGMENTATION:
            raise RunError(f"{run} is a run for {task}; configurations are compared for {SEGMENTATION} only.")
    if len(found) < 2:
        raise RunError(
            f"Expected two runs to compare at least, found {', '.join(run.name for run in found) or 'none'}; name a "
            "network that was trained in two configurations, or two runs."
        )
    return sorted(found)  # two together have one name, however they were named


def _runs_of(name: str, known: Sequence[Path], results: Path) -> list[Path]:
    """The run of this name, else those of the network ``NAME__CONFIGURATION``."""
    chosen = [run for run in known if run.name == name]
    if not chosen:
        chosen = [run for run in known if run.name.split("__")[:-1] == [name]]
    if not chosen:
        shown = [run.name for run in known]
        raise RunError(
            f"{results} has neither a run '{name}' nor runs of such a network.{nearest(name, shown)} Runs: "
            f"{', '.join(shown) or 'none'}."
        )
    return chosen


def _common_folds(runs: Sequence[Path], folds: Sequence[int | str] | None) -> list[int]:
    """The folds that all runs have scored; those that were asked for."""
    scored = [scored_folds(run) for run in runs]
    common = sorted(set.intersection(*map(set, scored)))
    if not common:
        _refuse_folds(runs, scored)
    if folds is None:
        if max(map(len, scored)) > len(common):
            _log.warning("compared on the folds that all runs have: %s", ", ".join(map(str, common)))
        return common
    asked = set(map(str, folds))
    wanted = [fold for fold in common if str(fold) in asked]
    if len(wanted) < len(asked):
        _refuse_folds(runs, scored)
    return wanted


def _refuse_folds(runs: Sequence[Path], scored: Sequence[Sequence[int]]) -> NoReturn:
    for run, known in zip(runs, scored, strict=True):
        if not known:
            refuse_agreement(run)
    listed = [f"{run.name}: {known or 'none'}" for run, known in zip(runs, scored, strict=True)]
    raise RunError(
        f"These runs do not have such scored folds in common ({'; '.join(listed)}); train and validate the others."
    )


def _check_sources(runs: Sequence[Path], folds: Sequence[int]) -> None:
    """The scores of every run belong to its weights and label maps, and all to the same references, as far as they say
    what they were scored from.
    """
    for fold in folds:
        first, *others = ((run, check_sources(run, fold)) for run in runs)
        for run, references in others:
            differing = sorted(name for name in set(references) & set(first[1]) if references[name] != first[1][name])
            if differing:
                raise DataError(
                    f"{first[0].name} and {run.name} were scored against different references in fold {fold}, for "
                    f"example {differing[0]}; score both anew, by their training commands with --continue."
                )


def _check_same_cases(scores: Mapping[tuple[str, ...], Summary]) -> None:
    (first, summary), *others = scores.items()
    names = {case.name for case in summary.cases}
    for other, theirs in others:
        differing = sorted(names ^ {case.name for case in theirs.cases})
        if differing:
            raise DataError(
                f"{first[0]} and {other[0]} were not scored on the same cases, for example {differing[0]}; train both "
                "with the same splits."
            )


def _ordered(scores: Mapping[tuple[str, ...], Summary], command: Callable[[str], str]) -> list[Candidate]:
    """The best first; of equal ones that of fewer networks. A name gives the command that predicts with it."""
    tables = {runs: _table(summary) for runs, summary in scores.items()}
    means = {runs: summary.mean_dice for runs, summary in scores.items()}
    patients, first = patients_of(scores.values()), next(iter(scores.values()))
    groups = groups_of(sorted(case.name for case in first.cases), patients) if patients else None
    order = sorted(scores, key=lambda runs: (-np.nan_to_num(means[runs], nan=-1.0), len(runs)))
    found = []
    for runs in order:
        dice = scores[runs].interval("Dice")
        behind = paired_difference(tables[order[0]], tables[runs], groups=groups)
        name = "+".join(runs)
        candidate = Candidate(
            name=name,
            runs=runs,
            dice=finite(dice.mean),
            low=finite(dice.low),
            high=finite(dice.high),
            behind=finite(behind.mean),
            behind_low=finite(behind.low),
            behind_high=finite(behind.high),
            clear=bool(behind.clear),
            command=command(name),
        )
        found.append(candidate)
    return found


def _table(summary: Summary) -> np.ndarray:
    """Dice ``(cases, structures)`` with the cases in the order of their names."""
    names = [case.name for case in summary.cases]
    return summary.table("Dice")[np.argsort(names)]
