"""Searching parameters of a method on inner folds of a fold's training cases, with Optuna (Akiba et al., KDD 2019,
arXiv:1907.10902). The cases on which the fold is judged are not there at all, see :mod:`medkd.reproduction.inner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import numpy as np

from medkd.core.errors import DivergedError, RunError
from medkd.core.limits import option_name
from medkd.core.paths import Root
from medkd.core.run import DETECTION
from medkd.core.serial import load, save
from medkd.reproduction.inner import make_inner_root
from medkd.reproduction.search_space import Search, check_search, is_range
from medkd.reproduction.searched import SearchedOn
from medkd.tasks import Task, chosen_options

TRIALS_FILE, BEST_FILE = "trials.json", "best.json"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of values.

    Attributes:
        parameters: ``method.parameter`` → value.
        scores: the main metric on each inner fold.
        score: their mean; None where the training failed.
        error: why.
    """

    parameters: Mapping[str, Any]
    scores: tuple[float, ...] = ()
    score: float | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """``trials.json``: what a search has tried, from which it goes on.

    Attributes:
        search: what is searched.
        command: data set, teacher, student, method, fold, and the settings of the trainings.
        trials: in their order.
        searched_on: the preprocessed cases.
    """

    search: Search
    command: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    searched_on: SearchedOn = field(default_factory=SearchedOn)
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class Best:
    """``best.json``: what a search found.

    Attributes:
        parameters: ``method.parameter`` → value.
        score: mean of the main metric over the inner folds.
        metric: its name.
        trial: its number, from 1.
        trials: how many there were.
        cases: of which the inner folds consist.
    """

    parameters: Mapping[str, Any]
    score: float
    metric: str
    trial: int
    trials: int
    cases: int
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class SearchOrder:
    """What :func:`search_parameters` is to do.

    Attributes:
        dataset: full name or number.
        teacher: network of the teacher, which is trained anew on the inner folds.
        student: network of the student.
        method: with which it is taught.
        fold: of which the training cases are searched on.
        search: parameters and trials.
        folder: for everything that the search makes; another call with the same order goes on there.
        root: medkd's folder.
        settings: of the students' training, by their names in Python.
        teacher_settings: of the teacher's.
    """

    dataset: str | int
    teacher: str
    student: str
    method: str
    fold: str
    search: Search
    folder: Path
    root: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    teacher_settings: Mapping[str, Any] = field(default_factory=dict)


def search_parameters(order: SearchOrder, say: Say) -> Best:
    """Try values, each on the inner folds, and keep the best; what was tried before is not tried again.

    Args:
        order: what to search.
        say: takes a line about the progress.

    Raises:
        RunError: Optuna is not installed, the folder holds another search, or every trial failed.
        DataError: the search means nothing, or the data set is not prepared.
        MedkdError: whatever a training refuses.
    """
    _check_order(order)
    check_optuna()
    root = Root.resolve(order.root)
    name, folder = root.dataset_name(order.dataset), Path(order.folder)
    words = (name, order.teacher, order.student, order.method, order.fold, _told(order))
    known = _read(folder, order.search, words)
    cases = make_inner_root(root, name, order.fold, folder, order.search.folds)
    trainer = _Trainer(order, name, len(cases))
    whole = whole_parameters(order.method, order.search, trainer.task.name)
    if not (folder / TRIALS_FILE).exists():
        store = root.preprocessed / name / trainer.configuration
        known = replace(known, searched_on=SearchedOn.now(store, cases))
        save(folder / TRIALS_FILE, known)
    while len(known.trials) < order.search.trials:
        number = len(known.trials)
        parameters = suggest(known.trials, order.search, whole, trainer.seed)
        say(f"trial {number + 1} of {order.search.trials}: {shown(parameters)}")
        trial = trainer.trial(number, parameters)
        said = trial.error if trial.score is None else f"{trainer.metric.name} {trial.score:.4f} on the inner folds"
        say(f"trial {number + 1}: {said}")
        known = replace(known, trials=(*known.trials, trial))
        save(folder / TRIALS_FILE, known)
        trainer.forget(number)
    return _keep_best(known, trainer, folder)


def _check_order(order: SearchOrder) -> None:
    """Refuse what means nothing before anything is made."""
    check_search(order.search, "search")
    if order.settings.get("unlabelled_share"):
        raise RunError(
            f"A search trains on the labelled cases of a fold alone, so that {option_name('unlabelled_share')} has "
            "nothing to draw from there; leave it out."
        )
    for name in order.settings.get("method_parameters", {}):
        if name in order.search.parameters:
            raise RunError(
                f"{name} is searched (--search) and set ({option_name('method_parameters')}) at once; leave one of "
                "them out."
            )


def _told(order: SearchOrder) -> str:
    """The settings of the trainings, without what does not change their results."""
    parts = []
    for settings in (order.settings, order.teacher_settings):
        parts.append(
            sorted((name, repr(value)) for name, value in settings.items() if name not in ("device", "workers"))
        )
    return repr(parts)


def _read(folder: Path, search: Search, words: tuple[str, ...]) -> Trials:
    path = folder / TRIALS_FILE
    if not path.exists():
        return Trials(search=search, command=words)
    known = load(Trials, path)
    if (why := changed_search(folder)) is not None:
        raise RunError(f"{why}; give another --folder, or delete {folder}.")
    same = known.command == words and known.search.folds == search.folds
    if not same or dict(known.search.parameters) != dict(search.parameters):
        held = " ".join((*known.command[:-1], *known.search.parameters))
        raise RunError(
            f"{folder} holds another search ({held}) or one with other settings; give another --folder, or delete it."
        )
    return replace(known, search=search)


def changed_search(folder: Path) -> str | None:
    """What has happened to what a search tried its values on; None where it is the same, or nobody knows.

    Raises:
        DataError: its record is damaged.
    """
    path = folder / TRIALS_FILE
    return load(Trials, path).searched_on.changed() if path.exists() else None


def _keep_best(known: Trials, trainer: _Trainer, folder: Path) -> Best:
    tried = [trial.score if trial.score is not None else -np.inf for trial in known.trials]
    place = int(np.argmax(tried))
    chosen = known.trials[place]
    if chosen.score is None:
        raise RunError(
            f"All {len(tried)} trials of the search in {folder} failed, the last one: {known.trials[-1].error}"
        )
    best = Best(
        parameters=chosen.parameters,
        score=chosen.score,
        metric=trainer.metric.name,
        trial=place + 1,
        trials=len(tried),
        cases=trainer.cases,
    )
    save(folder / BEST_FILE, best)
    return best


def shown(parameters: Mapping[str, Any]) -> str:
    """Values for people."""
    found = []
    for name, value in parameters.items():
        found.append(f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}")
    return ", ".join(found)


class _Trainer:
    """Trains teacher and students on the inner folds."""

    def __init__(self, order: SearchOrder, dataset: str, cases: int) -> None:
        self.order, self.dataset, self.cases = order, dataset, cases
        self.task: Task
        self.task, options = self._options(order.settings, "teacher")
        self.configuration: str = getattr(options, "configuration", DETECTION)
        self.metric = self.task.column("report").main
        self.seed = int(order.settings.get("seed", 0))
        self._teachers: dict[int, str] = {}

    def _options(self, settings: Mapping[str, Any], tag: str) -> tuple[Task, Any]:
        own = {"root": Path(self.order.folder), "tag": tag, "resume": True, "overwrite": False}
        return chosen_options(self.dataset, None, {**settings, **own})

    def trial(self, number: int, parameters: Mapping[str, Any]) -> Trial:
        """Train and score a student on every inner fold; one that diverges is a failed trial. What has nothing to do
        with the values (memory, the disk, another process that trains there) ends the search, which can go on.
        """
        scores = []
        for fold in range(self.order.search.folds):
            teacher = self._teacher(fold)
            try:
                scores.append(self._score(number, fold, teacher, parameters))
            except DivergedError as error:
                return Trial(parameters=parameters, error=str(error))
        mean = float(np.mean(scores))
        if not isfinite(mean):
            return Trial(parameters=parameters, scores=tuple(scores), error="it has no score on the inner folds")
        return Trial(parameters=parameters, scores=tuple(scores), score=mean)

    def _teacher(self, fold: int) -> str:
        """The run of the teacher, which has seen neither the inner fold's cases nor the outer one's."""
        if fold not in self._teachers:
            settings = {**self.order.teacher_settings, "validate": False}
            _, options = self._options(settings, "teacher")
            folder: Path = self.task.train(self.dataset, self.order.teacher, fold, options)
            self._teachers[fold] = folder.parent.name
        return self._teachers[fold]

    def _score(self, number: int, fold: int, teacher: str, parameters: Mapping[str, Any]) -> float:
        settings = dict(self.order.settings)
        settings["method_parameters"] = {**settings.get("method_parameters", {}), **parameters}
        settings["validate"] = True
        _, options = self._options(settings, f"trial{number + 1}")
        train = self.task.column("train_distill")
        folder: Path = train(self.dataset, teacher, self.order.student, self.order.method, fold, options)
        scores = self.task.column("report").read(folder.parent, [fold])
        return float(scores.value(self.metric.key).mean)

    def forget(self, number: int) -> None:
        """Remove the weights of a trial whose scores are kept, since many would fill a disk."""
        results = Root.resolve(self.order.folder).results / self.dataset
        for weights in results.glob(f"*__trial{number + 1}/fold_*/**/*.pt"):
            weights.unlink()


def whole_parameters(method: str, search: Search, task: str) -> frozenset[str]:
    """The searched parameters that are whole numbers, by the methods' annotations.

    Raises:
        MethodError: a method or parameter does not exist, or does not take a bound or choice.
    """
    from medkd.detection.methods import DETECTION_METHODS
    from medkd.distillation import METHODS
    from medkd.distillation.build import check_method
    from medkd.distillation.parameters import annotations_of

    own = None if task == "segmentation" else DETECTION_METHODS
    for place in (0, 1):
        check_method(method, {name: values[place] for name, values in search.parameters.items()}, task, own)
    found = set()
    for name in search.parameters:
        part, _, parameter = name.partition(".")
        kind = own[part] if own is not None and part in own else METHODS[part]
        annotation = annotations_of(kind)[parameter]
        kinds = get_args(annotation) or (annotation,)
        if int in kinds and float not in kinds:
            found.add(name)
    return frozenset(found)


def check_optuna() -> None:
    """See that Optuna can be used.

    Raises:
        RunError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise RunError("A search needs the package optuna; run pip install 'medkd[tune]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest(tried: Sequence[Trial], search: Search, whole: frozenset[str], seed: int) -> dict[str, Any]:
    """The next values to try; they follow from what was tried, so that a broken search goes on as a whole one would."""
    import optuna

    space = {name: _distribution(values, name in whole) for name, values in search.parameters.items()}
    sampler = optuna.samplers.TPESampler(seed=seed * 100_003 + len(tried))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in tried:
        state = optuna.trial.TrialState.FAIL if trial.score is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=state, value=trial.score, params=dict(trial.parameters), distributions=space
            )
        )
    return dict(study.ask(space).params)


def _distribution(values: Sequence[Any], whole: bool) -> Any:
    from optuna import distributions

    if not is_range(values):
        return distributions.CategoricalDistribution(list(values))
    low, high, log = values[0], values[1], len(values) == 3
    if whole:
        return distributions.IntDistribution(int(low), int(high), log=log)
    return distributions.FloatDistribution(float(low), float(high), log=log)
