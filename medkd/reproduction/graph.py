"""A recipe as a graph of commands: what has to be done, and what must be there before."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from medkd.core.errors import DataError, RunError
from medkd.core.serial import load, nearest
from medkd.reproduction.folders import RunTags
from medkd.reproduction.recipe import Recipe, TeacherRow
from medkd.reproduction.search import BEST_FILE, Best
from medkd.reproduction.search_space import LOG, Search
from medkd.reproduction.words import check_option, flag, import_words, text

CONVERT = "convert"
PREPARE = "prepare"
SEARCHES = "searches"
"""Folder of the searches beside a recipe's records."""
_LONGEST = 150  # letters of a run's name; file systems take 255 with what is added
SEARCH_DECIDES = ("validate", "track")
"""Settings of a recipe that a search decides for each of its own trainings."""
Kind = Literal["prepare", "teacher", "search", "student"]


@dataclass(frozen=True)
class Trained:
    """In a command: the name of the run that another node trained."""

    node: str


@dataclass(frozen=True)
class Tuned:
    """In a command: the parameters that another node found."""

    node: str


Word = str | Trained | Tuned


@dataclass(frozen=True, kw_only=True)
class LessonPlan:
    """A training of a recipe.

    Attributes:
        network: what is trained.
        teacher: in a command, or what is trained as one for this training alone; None for a network alone.
        method: with which it teaches.
        settings: options of training by their names in Python, ``seed`` and ``tag`` included.
        parameters: ``method.parameter`` → value, but for those that are searched.
        searched: of the trainings of a search: parameter → bounds or choices.
        inner_folds: on which these are judged; 0 where nothing is searched.
    """

    network: str
    teacher: Word | LessonPlan | None = None
    method: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    searched: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    inner_folds: int = 0

    def variants(self) -> list[LessonPlan]:
        """The training itself, or of a search those at the bounds, or with each of the choices."""
        values = {name: [value for value in found if value != LOG] for name, found in self.searched.items()}
        tried = []
        for place in range(max(map(len, values.values()), default=0)):
            chosen = {name: found[min(place, len(found) - 1)] for name, found in values.items()}
            tried.append(replace(self, parameters={**self.parameters, **chosen}, searched={}))
        return tried or [self]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One command.

    Attributes:
        name: unique, and part of file names.
        kind: ``prepare``, ``teacher``, ``search`` or ``student``.
        words: of the command, after ``medkd``; names of runs are known when these are there.
        needs: nodes that must be done before.
        teacher: the row's teacher; None for a network alone.
        student: the row's student; None for a teacher.
        method: the row's method; None for a teacher.
        fold: ``0`` to ``4`` or ``all``.
        seed: of the training.
        lesson: of a training what its command says, for those that ask what it would do.
    """

    name: str
    kind: Kind
    words: tuple[Word, ...]
    needs: tuple[str, ...] = ()
    teacher: str | None = None
    student: str | None = None
    method: str | None = None
    fold: str = ""
    seed: int = 0
    lesson: LessonPlan | None = None

    def command(self, runs: Mapping[str, str]) -> list[str]:
        """The words, with the names of the runs that other nodes trained, and the parameters that they found."""
        found: list[str] = []
        for word in self.words:
            if isinstance(word, Tuned):
                best = load(Best, Path(runs[word.node]) / BEST_FILE)
                for name, value in best.parameters.items():
                    found += ["--set", f"{name}={text(value)}"]
            else:
                found.append(runs[word.node] if isinstance(word, Trained) else word)
        return found

    def shown(self, modules: Sequence[str] = ()) -> str:
        """The command for people, with the modules that it imports; runs that are not there yet stand as ``<node>``."""
        words = [word if isinstance(word, str) else f"<{word.node}>" for word in self.words]
        return f"medkd_{words[0]} {shlex.join([*import_words(modules), *words[1:]])}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a recipe is worked on.

    Attributes:
        name: of the recipe, which becomes a part of its runs' names.
        root: medkd's folder.
        models: teacher → folder, for teachers from elsewhere.
        device: of every training; None leaves it to medkd.
    """

    name: str
    root: Path
    models: Mapping[str, Path]
    device: str | None = None


def build_graph(recipe: Recipe, place: Place) -> dict[str, Node]:
    """All commands of a recipe by their names, in an order in which they may be done.

    Raises:
        DataError: a setting is none of a training's options, or two runs would have one folder.
    """
    builder = _Builder(recipe, place)
    builder.prepare()
    for name in recipe.teachers:
        for fold in recipe.folds_of(name):
            builder.teacher(name, fold)
    for teacher, student, method in recipe.combinations():
        for seed in recipe.seeds:
            for fold in recipe.folds_of(teacher):
                builder.student(teacher, student, method, fold, seed)
    return builder.nodes


def chosen_nodes(nodes: Mapping[str, Node], patterns: Sequence[str]) -> dict[str, Node]:
    """The nodes whose names fit a pattern, with all that they need; all nodes where there is no pattern.

    Raises:
        RunError: a pattern fits nothing.
    """
    wanted = set() if patterns else set(nodes)
    for pattern in patterns:
        fitting = [name for name in nodes if fnmatchcase(name, pattern)]
        if not fitting:
            raise RunError(
                f"--only: no run is called '{pattern}'.{nearest(pattern, nodes)} --status lists the names; * stands "
                "for any letters."
            )
        wanted.update(fitting)
    wanted = _with_needs(nodes, wanted)
    return {name: node for name, node in nodes.items() if name in wanted}


def _with_needs(nodes: Mapping[str, Node], wanted: set[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += nodes[name].needs
    return found


class _Builder:
    """Adds nodes one by one; a teacher's node comes before those that need it."""

    def __init__(self, recipe: Recipe, place: Place) -> None:
        self.recipe, self.place = recipe, place
        self.nodes: dict[str, Node] = {}
        self.tags = RunTags(recipe, place.name, place.models)
        self.dataset = f"Dataset{recipe.dataset.number:03d}_{recipe.dataset.name}"

    def prepare(self) -> None:
        words = ["plan_and_preprocess", "-d", self.dataset, *self._root()]
        if self.recipe.protocol is not None:
            words += ["--protocol", self.recipe.protocol]
        for option, value in self.recipe.dataset.prepare.items():
            if option == "like":
                words += ["--like", str(self.place.models[str(value)])]
            else:
                words += flag(option, value)
        self._add(Node(name=PREPARE, kind="prepare", words=tuple(words)))

    def teacher(self, name: str, fold: str) -> str:
        """Adds a teacher's node, where it is not there; returns the node's name."""
        node_name = f"{name}-fold{fold}"
        if node_name in self.nodes:
            return node_name
        row, words, needs = self.recipe.teachers[name], list[Word](), [PREPARE]
        lesson = None
        if row.model is not None:
            words = ["score_teacher", self.dataset, str(self.place.models[name]), fold, *self._root()]
            words += flag("device", self.place.device)
        else:
            above = None if row.taught_by is None else self._taught(row.taught_by, fold, needs)
            words = self._training(str(row.network), above, row.method, fold)
            way = {} if row.method is None else self.recipe.methods[row.method].settings
            asked = (way, row.settings), self.recipe.seeds[0], self.tags.teacher(name)
            words += self._options(*asked)
            lesson = self._lesson(str(row.network), above, row.method, *asked)
        self._add(
            Node(
                name=node_name,
                kind="teacher",
                words=tuple(words),
                needs=tuple(needs),
                teacher=name,
                fold=fold,
                lesson=lesson,
            )
        )
        return node_name

    def student(self, teacher: str | None, student: str, method: str, fold: str, seed: int) -> None:
        row, way = self.recipe.students[student], self.recipe.methods[method]
        needs = [PREPARE]
        above = None if teacher is None else self._taught(teacher, fold, needs)
        words = self._training(row.network, above, method, fold)
        if way.search is not None and teacher is not None:
            needs.append(self._search(teacher, student, method, fold, way.search))
            words.append(Tuned(needs[-1]))
        asked = (row.settings, way.settings), seed, self.tags.student(teacher, student, method, seed)
        words += self._options(*asked)
        origin = "" if teacher is None else f"-from-{teacher}"
        self._add(
            Node(
                name=f"{student}-{method}{origin}-seed{seed}-fold{fold}",
                kind="student",
                words=tuple(words),
                needs=tuple(needs),
                teacher=teacher,
                student=student,
                method=method,
                fold=fold,
                seed=seed,
                lesson=self._lesson(row.network, above, method, *asked),
            )
        )

    def _search(self, teacher: str, student: str, method: str, fold: str, search: Search) -> str:
        """Adds the node of a search, which all seeds share; returns its name."""
        name = f"{student}-{method}-from-{teacher}-search-fold{fold}"
        if name in self.nodes:
            return name
        row, way, above = self.recipe.students[student], self.recipe.methods[method], self.recipe.teachers[teacher]
        words = ["tune", self.dataset, str(above.network), row.network, way.method, fold]
        for parameter, values in search.parameters.items():
            mark = "," if isinstance(values[0], str) else ":"
            words += ["--search", f"{parameter}={mark.join(map(str, values))}"]
        words += ["--trials", str(search.trials), "--inner-folds", str(search.folds)]
        for parameter, value in way.parameters.items():
            words += ["--set", f"{parameter}={text(value)}"]
        seed = ["--seed", str(self.recipe.seeds[0])]
        words += [f"--teacher-options={shlex.join([*self._settings((above.settings,), SEARCH_DECIDES), *seed])}"]
        words += [*self._settings((row.settings, way.settings), SEARCH_DECIDES), *seed, *self._root()]
        # another search is another folder, and its result another command of the student
        mark = hashlib.blake2b("\0".join(words).encode(), digest_size=4).hexdigest()
        folder = self.place.root / "reproductions" / self.place.name / SEARCHES / f"{name}-{mark}"
        words += ["--folder", str(folder)]
        own = {"seed": self.recipe.seeds[0], "tag": f"{self.place.name}-{name}"}  # of runs that the root never has
        lesson = LessonPlan(
            network=row.network,
            teacher=LessonPlan(network=str(above.network), settings=self._merged((above.settings, own))),
            method=way.method,
            settings=self._merged((row.settings, way.settings, own)),
            parameters=way.parameters,
            searched=search.parameters,
            inner_folds=search.folds,
        )
        self._add(
            Node(
                name=name,
                kind="search",
                words=tuple(words),
                needs=(PREPARE,),
                teacher=teacher,
                student=student,
                method=method,
                fold=fold,
                lesson=lesson,
            )
        )
        return name

    def _taught(self, teacher: str, fold: str, needs: list[str]) -> Word:
        """A teacher as a word of a command; a trained one is needed before."""
        row: TeacherRow = self.recipe.teachers[teacher]
        if row.model is not None:
            return str(self.place.models[teacher])
        node = self.teacher(teacher, fold)
        needs.append(node)
        return Trained(node)

    def _training(self, network: str, teacher: Word | None, method: str | None, fold: str) -> list[Word]:
        if teacher is None or method is None:
            return ["train", self.dataset, network, fold]
        row = self.recipe.methods[method]
        words: list[Word] = ["train_distill", self.dataset, teacher, network, row.method, fold]
        for parameter, value in row.parameters.items():
            words += ["--set", f"{parameter}={text(value)}"]
        return words

    def _lesson(
        self,
        network: str,
        teacher: Word | None,
        method: str | None,
        settings: Iterable[Mapping[str, Any]],
        seed: int,
        tag: str,
    ) -> LessonPlan:
        merged = {**self._merged(settings), "seed": seed, "tag": tag}
        if teacher is None or method is None:
            return LessonPlan(network=network, settings=merged)
        row = self.recipe.methods[method]
        return LessonPlan(
            network=network, teacher=teacher, method=row.method, settings=merged, parameters=row.parameters
        )

    def _options(self, settings: Iterable[Mapping[str, Any]], seed: int, tag: str) -> list[str]:
        return [*self._settings(settings), "--seed", str(seed), "--tag", tag, "--continue", *self._root()]

    def _settings(self, settings: Iterable[Mapping[str, Any]], without: Sequence[str] = ()) -> list[str]:
        """Options of a command, but for those that it decides itself."""
        merged = self._merged(settings)
        for name in without:
            merged.pop(name, None)
        words = []
        for name, value in merged.items():
            check_option(name)
            words += flag(name, value)
        return words

    def _merged(self, settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        merged: dict[str, Any] = dict(self.recipe.settings)
        for part in settings:
            merged |= part
        if self.place.device is not None:
            merged["device"] = self.place.device
        return merged

    def _root(self) -> list[str]:
        return ["--root", str(self.place.root)]

    def _add(self, node: Node) -> None:
        if node.name in self.nodes:
            raise DataError(f"The recipe has two runs called '{node.name}'; rename a teacher, student or method.")
        if len(node.name) > _LONGEST:
            raise DataError(
                f"The recipe's run '{node.name:.60}…' has a name of {len(node.name)} letters, which becomes that of "
                f"files; expected {_LONGEST} at most, shorten the names of teachers, students or methods."
            )
        self.nodes[node.name] = node
