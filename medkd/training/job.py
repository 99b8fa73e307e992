"""What is trained, for every task: the data of one fold, the job that trains it, and what a task has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from medkd.core.arithmetic import chosen_precision
from medkd.core.checkpoint import weights_digest
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import MedkdError, RunError
from medkd.core.paths import Root
from medkd.core.registry import Registry, foreign_modules
from medkd.core.run import Budget, NetworkSpec, RunDescription, StartWeights
from medkd.core.splits import Split
from medkd.models.base import ModelFolder, Task
from medkd.models.guard import Teacher
from medkd.training.options import RunOptions
from medkd.training.plausibility import Score
from medkd.training.tracking import Tracking

HELPER_SEED = 7919
"""Added to the seed for a method's helpers, so that the student starts equal under every method."""

Plan = TypeVar("Plan")
Options = TypeVar("Options", bound=RunOptions)
Store = TypeVar("Store", bound="Cases")


class Cases(Protocol):
    """A store of preprocessed cases, as far as all tasks are concerned."""

    folder: Path

    def cases(self) -> list[str]:
        """The ids of all cases, sorted."""
        ...


@dataclass(frozen=True, kw_only=True)
class FoldData(Generic[Plan, Store, Options]):
    """The data of one fold, and how they are going to be used.

    Attributes:
        dataset: full name.
        root: medkd's root folder.
        plan: of the task's own kind, with what the options change in it.
        description: of the data set.
        configuration: of the plan; every detector has the same one.
        store: the preprocessed cases.
        split: the fold's training and validation cases.
        fold: 0-4 or ``all``.
        options: what the user set, with what the protocol says of the method.
        device: where to train.
        weights: that it starts from, where ``--weights`` names any.
        protocol: the published protocol that the training follows, where its rows say something about it.
        published: what they say, see :attr:`medkd.core.run.RunDescription.published`.
    """

    dataset: str
    root: Root
    plan: Plan
    description: DatasetDescription
    configuration: str
    store: Store
    split: Split
    fold: str
    options: Options
    device: torch.device
    weights: StartWeights | None = None
    protocol: str | None = None
    published: Mapping[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return self.root.raw_dataset(self.dataset)

    @property
    def results(self) -> Path:
        """Where the data set's runs lie."""
        return self.root.results / self.dataset

    @property
    def precision(self) -> str:
        """Of the networks' arithmetic."""
        return chosen_precision(self.options.precision, self.device)


@dataclass(frozen=True, kw_only=True)
class Job(FoldData[Plan, Store, Options]):
    """One fold of one run: everything that is known before a network is built.

    Attributes:
        run: what is going to be trained, as ``run.json`` will say.
        folder: the fold folder.
        teacher: the fold of a model that may teach; None for a network alone.
        seen: the cases that the teacher, and weights that training starts from, were trained on.
        tracking: what is told of the epochs; None where nobody is.
    """

    run: RunDescription
    folder: Path
    teacher: Teacher[Any] | None
    seen: frozenset[str]
    tracking: Tracking | None = None


def describe_run(
    data: FoldData[Any, Any, Any],
    network: NetworkSpec,
    budget: Budget,
    method: str | None,
    teacher: Teacher[Any] | None,
    registries: Sequence[Registry[Any]],
) -> RunDescription:
    """``run.json``, as far as it is the same for all tasks.

    Args:
        data: what is trained on.
        network: what is trained.
        budget: how long.
        method: with which the teacher teaches.
        teacher: the fold that does.
        registries: of networks, then of methods; modules from elsewhere that registered a name are recorded.
    """
    networks, *methods = registries
    named = [(networks, network.name), *((registry, method or "none") for registry in methods)]
    return RunDescription(
        dataset=data.dataset,
        configuration=data.configuration,
        network=network,
        budget=budget,
        mirror_axes=(),
        precision=data.precision,
        speed=data.options.speed,
        method=method,
        method_parameters=dict(data.options.method_parameters),
        teacher=None if teacher is None else teacher.model.recorded,
        taught_by=() if teacher is None else teacher.model.taught_as(data.results),
        weights=data.weights,
        protocol=data.protocol,
        published=data.published,
        modules=foreign_modules(*named),
    )


def protocol_lines(run: RunDescription) -> list[str]:
    """The protocol that a training follows, with what its rows say about it, and what the user set himself."""
    if run.protocol is None:
        return []
    lines = [f"protocol   {run.protocol}"]
    lines += [f"           {name} = {said}" for name, said in run.published.items()]
    own = [name for name in run.method_parameters if name not in run.published]
    return lines + [f"           {name} = {run.method_parameters[name]} (--set)" for name in own]


def method_names(method: str) -> list[str]:
    """The methods that are joined by ``+``.

    >>> method_names("kd + cwd")
    ['kd', 'cwd']
    """
    return [part.strip() for part in method.split("+")]


class Lesson(ABC):
    """The networks of a job, built: what is trained, and what teaches it.

    Attributes:
        seen: every case that whatever teaches, or was started from, was trained on.
        distiller: teacher and method, if any, of which ``digests()`` is asked.
        teachers: the folds that teach, where they are others than the job's.
        first: the network whose weights are the student's first ones, until its training begins.
    """

    seen: frozenset[str]
    distiller: Any = None
    teachers: Sequence[Teacher[Any]] = ()
    first: Any = None

    def prepare(self) -> None:  # noqa: B027 - most lessons need nothing
        """What takes long and is done before the fold counts as begun; by itself nothing."""

    def teacher_weights(self) -> tuple[str, ...]:
        """A hash of each network that teaches, or whose weights are the student's first ones."""
        weights: tuple[str, ...] = () if self.distiller is None else self.distiller.digests()
        return weights or (() if self.first is None else (weights_digest(self.first.state_dict()),))

    def described(self, run: RunDescription) -> RunDescription:
        """What ``run.json`` says, with what is known once the networks are built; by itself nothing more."""
        return run

    @abstractmethod
    def fit(self) -> None:
        """Train to the end; leaves the final checkpoint in the fold folder."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What the training would do and need, for people."""


class TrainingTask(ABC, Generic[Plan, Store, Options]):
    """What a task has to say so that :mod:`medkd.training.run` can train its networks.

    A further task is a subclass in its own package; guards, run folders, options and continuation are the same for all.

    Attributes:
        name: of the task, as ``dataset.json`` says it.
        options: the dataclass of what may be set.
        noun: what its cases are, for sentences.
        mark: what is drawn in them, for sentences.
        in_several_processes: whether its trainings read their part of a batch and take the whole one's loss, as
            :mod:`medkd.training.ranks` asks of those that several processes share.
    """

    name: ClassVar[Task]
    options: ClassVar[type[RunOptions]]
    noun: ClassVar[str] = "cases"
    mark: ClassVar[str] = "voxel"
    in_several_processes: ClassVar[bool] = False

    @abstractmethod
    def configuration(self, options: Options) -> str:
        """The configuration that these options are about."""

    @abstractmethod
    def read_plan(self, path: Path) -> Plan:
        """Read a ``plans.json``."""

    @abstractmethod
    def open_store(self, folder: Path, plan: Plan, configuration: str) -> Store:
        """The preprocessed cases of a data set.

        Raises:
            MedkdError: they are not there, or are not those of the plan.
        """

    def check_store(self, data: FoldData[Plan, Store, Options]) -> None:
        """See that all preprocessed cases were made as plan and labels say now; by itself nothing is known.

        Raises:
            MedkdError: some were made otherwise; the text says what to run.
        """

    def adapt_plan(self, plan: Plan, store: Store, options: Options) -> Plan:
        """The plan with what the options change in it; by itself nothing."""
        return plan

    @abstractmethod
    def facts(self, plan: Plan, description: DatasetDescription, configuration: str) -> Mapping[str, Any]:
        """What all folds of one run must have in common: how the input is made and what the output means."""

    @abstractmethod
    def structures(self, data: FoldData[Plan, Store, Options]) -> tuple[str, ...]:
        """The names of what is to be found."""

    @abstractmethod
    def structures_of(self, data: FoldData[Plan, Store, Options], case: str) -> frozenset[str]:
        """Those of them that a preprocessed case has."""

    @abstractmethod
    def check(self, data: FoldData[Plan, Store, Options], network: str, method: str | None) -> None:
        """Refuse unknown names, and data from which nothing can be learnt.

        Raises:
            MedkdError: the first thing that does not fit.
        """

    def start(self, data: FoldData[Plan, Store, Options], network: str) -> FoldData[Plan, Store, Options]:
        """The data with the weights that ``--weights`` means for a network; by itself nothing.

        Raises:
            RunError: there are none.
        """
        return data

    def follow(
        self, data: FoldData[Plan, Store, Options], network: str, method: str | None, teacher: str | None
    ) -> FoldData[Plan, Store, Options]:
        """The data with what a published protocol says of this training; by itself nothing.

        Args:
            data: of the fold.
            network: what is trained.
            method: with which the teacher teaches.
            teacher: the teacher's network, where it is one of medkd's.
        """
        return data

    def check_teacher(self, data: FoldData[Plan, Store, Options], model: ModelFolder[Any], method: str | None) -> None:
        """Refuse a model that cannot teach on these data; by itself one that sees or means something else.

        Raises:
            RunError: the first thing that differs, and what to do.
        """
        model.check_fits(data.plan, data.configuration, data.description)

    def further_teachers(self, options: Options) -> tuple[str, ...]:
        """Teachers that are named beside the first; by itself none."""
        return ()

    def together(self, models: Sequence[ModelFolder[Any]]) -> ModelFolder[Any]:
        """Several teachers as one, where the task knows how."""
        raise NotImplementedError

    def untrained(self, job: Job[Plan, Store, Options]) -> ModelFolder[Any]:
        """What a job is going to train as a teacher without weights, where the task can tell of it."""
        raise NotImplementedError

    def unlabelled(self, store: Store) -> tuple[str, ...]:
        """The preprocessed cases that have no labels; by itself none."""
        return ()

    def with_unlabelled(self, data: FoldData[Plan, Store, Options], method: str | None) -> Split:
        """The split with the cases without labels from which a method learns.

        Raises:
            LeakError: one of them is also a case on which the fold is judged.
            MedkdError: there is nothing to learn from.
        """
        return data.split

    def prepare_like(self, dataset: str | int, model: ModelFolder[Any], options: Options) -> None:
        """Prepare a data set that has no plan yet like its teacher, where the task knows how."""

    def seen_at_start(self, data: FoldData[Plan, Store, Options]) -> frozenset[str]:
        """The cases that weights which training starts from were trained on; by itself none.

        Raises:
            LeakError: they have seen a case on which the fold is judged.
        """
        return frozenset()

    def network_label(self, network: str, options: Options) -> str:
        """The network in the run's name."""
        return network

    @abstractmethod
    def describe(
        self, data: FoldData[Plan, Store, Options], network: str, method: str | None, teacher: Teacher[Any] | None
    ) -> RunDescription:
        """What is going to be trained.

        Raises:
            MedkdError: an option does not fit.
        """

    @abstractmethod
    def score(self, summary: Mapping[str, Any]) -> Score | None:
        """The score in the content of a fold's ``summary.json``, and up to where it says that nothing is found."""

    def part_scores(self, summary: Mapping[str, Any]) -> Mapping[str, Score]:
        """The same of each structure by name, as far as the file tells them apart."""
        return {}

    @abstractmethod
    def build(self, job: Job[Plan, Store, Options], *, weightless: bool = False) -> Lesson:
        """Build the networks of a job.

        Args:
            job: what is trained.
            weightless: shapes suffice, since nothing is going to be trained.
        """

    def check_side_by_side(self) -> None:
        """See that several methods can be trained side by side; by itself they cannot.

        Raises:
            RunError: they cannot.
        """
        raise RunError(f"Several methods at once are not possible for {self.name}; train one after another.")

    def fit_together(
        self,
        jobs: Sequence[Job[Plan, Store, Options]],
        prepare: Callable[[Job[Plan, Store, Options], Any], None],
        begin: Callable[[Job[Plan, Store, Options], Any], None],
    ) -> Mapping[str, MedkdError]:
        """Train jobs with one teacher and a method each side by side.

        Args:
            jobs: of one fold and one budget.
            prepare: called with every job and its lesson, before ``begin`` with any.
            begin: called with a job and its lesson before the first step.

        Returns:
            Run's name → why it failed; the others were trained to their end.
        """
        self.check_side_by_side()
        return {}

    @abstractmethod
    def validate(self, job: Job[Plan, Store, Options], cases: tuple[str, ...]) -> None:
        """Predict and score these cases with the final weights."""
