"""A recipe from its file to its table: what ``medkd_reproduce`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medkd.core.device import check_device_of_runs
from medkd.core.errors import WARNING, DataError, RunError
from medkd.core.files import atomic_path, write_json
from medkd.core.paths import Root
from medkd.core.run import PLANS_FILE
from medkd.core.serial import nearest
from medkd.evaluation.report.data import MARGIN
from medkd.evaluation.report.rank_figure import rank_picture
from medkd.reproduction.checks import unknown_names
from medkd.reproduction.commands import refused_words
from medkd.reproduction.costs import costs
from medkd.reproduction.engines import Engine, Needs, make_engine
from medkd.reproduction.graph import CONVERT, PREPARE, Node, Place, build_graph, chosen_nodes
from medkd.reproduction.origin import Origin
from medkd.reproduction.recipe import Recipe, load_recipe
from medkd.reproduction.recipe_values import PHANTOM
from medkd.reproduction.rehearsals import Answer, open_lines, rehearse_runs
from medkd.reproduction.results import collect
from medkd.reproduction.rows import Results
from medkd.reproduction.runner import LOST, Outcome, Runner, ensure_data, is_lost, other_cases
from medkd.reproduction.scripts import write_scripts
from medkd.reproduction.search import check_optuna
from medkd.reproduction.state import State, standing
from medkd.reproduction.table import WRITERS, json_table
from medkd.reproduction.words import import_words


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """How a recipe is worked on.

    Attributes:
        root: medkd's folder; None takes ``$MEDKD_ROOT``, else ``./medkd_data``.
        data: the data set as downloaded, where it is not converted yet.
        models: teacher → folder, for teachers from elsewhere; others are looked for beside the recipe.
        only: names or patterns of runs; with what they need. All where empty.
        engine: ``local``, ``ray`` or ``slurm``.
        needs: what the engine is asked for.
        device: of every training; None leaves it to medkd.
        margin: the loss of the main metric up to which a student may replace its teacher.
        modules: of the user's, which register networks or methods and which every command imports.

    Raises:
        RunError: device or margin mean nothing, or the engine has no use for what it is told.
    """

    root: Path | None = None
    data: Path | None = None
    models: Mapping[str, Path] = field(default_factory=dict)
    only: Sequence[str] = ()
    engine: str = "local"
    needs: Needs = field(default_factory=Needs)
    device: str | None = None
    margin: float = MARGIN
    modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.device is not None:
            check_device_of_runs(self.device)
        if not 0 < self.margin < 1:
            raise RunError(f"--margin expects a loss above 0 and below 1, for example 0.01, found {self.margin:g}.")
        for option, value, engine in (
            ("--address", self.needs.address, "ray"),
            ("--slurm", self.needs.options, "slurm"),
        ):
            if value and self.engine != engine:
                raise RunError(f"{option} is for --engine {engine}, found --engine {self.engine}; change one of them.")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A recipe that was read.

    Attributes:
        recipe: its content.
        nodes: its runs.
        state: what became of them.
        root: medkd's folders.
        options: how it is worked on.
    """

    recipe: Recipe
    nodes: Mapping[str, Node]
    state: State
    root: Root
    options: ReproduceOptions

    @property
    def chosen(self) -> dict[str, Node]:
        """The runs that ``--only`` leaves.

        Raises:
            RunError: a pattern fits nothing.
        """
        return chosen_nodes(self.nodes, self.options.only)

    @property
    def dataset(self) -> str:
        """Full name of the data set."""
        return f"Dataset{self.recipe.dataset.number:03d}_{self.recipe.dataset.name}"

    def results(self) -> Results:
        """The table as far as it is known."""
        found = collect(self.recipe, self.nodes, self.state.read(), self.options.margin)
        return replace(found, data=other_cases(self.recipe.dataset, self.root))

    def write(self) -> list[Path]:
        """Write the table in every form; returns the files."""
        results = self.results()
        written = []
        for name, writer in WRITERS.items():
            path = self.state.folder / name
            with atomic_path(path) as temporary:
                temporary.write_text(writer(results), encoding="utf-8")
            written.append(path)
        path = self.state.folder / "table.json"
        write_json(path, json_table(results))
        return [*written, path, *self._draw(results)]

    def _draw(self, results: Results) -> list[Path]:
        """The critical-difference diagram of each student, where the test is permitted; older ones go."""
        kinds: tuple[Literal["png", "svg"], ...] = ("png", "svg")
        wanted = {}
        for student, found in results.differences.items():
            for kind in kinds:
                wanted[self.state.folder / f"ranks_{student}.{kind}"] = rank_picture(found, kind)
        for path in self.state.folder.glob("ranks_*.*"):
            if path not in wanted:
                path.unlink(missing_ok=True)  # where another run of the recipe ends at this moment
        for path, picture in wanted.items():
            with atomic_path(path) as temporary:
                temporary.write_bytes(picture)
        return list(wanted)


def open_recipe(path: Path, options: ReproduceOptions) -> Work:
    """Read a recipe and lay out its runs; nothing is written or started.

    Args:
        path: of the recipe.
        options: how it is worked on.

    Raises:
        DataError: the recipe, or a setting in it, means nothing, or one of the same file name was worked on there.
        RunError: a model is named that the recipe does not have.
    """
    recipe = load_recipe(path)
    root = Root.resolve(options.root)
    for name in options.models:
        if name not in recipe.teachers or recipe.teachers[name].model is None:
            known = [teacher for teacher, row in recipe.teachers.items() if row.model is not None]
            raise RunError(
                f"--model: the recipe has no teacher '{name}' from elsewhere.{nearest(name, known)} There are: "
                f"{', '.join(known) or 'none'}."
            )
    models = {}
    for name, row in recipe.teachers.items():
        if row.model is not None:
            chosen = options.models.get(name) or path.parent / row.model
            models[name] = Path(chosen).absolute()
    place = Place(name=path.stem, root=root.raw.parent, models=models, device=options.device)
    state = State(root.raw.parent, path.stem)
    Origin.of(path, recipe).refuse_other(state.folder)
    return Work(recipe=recipe, nodes=build_graph(recipe, place), state=state, root=root, options=options)


def reproduce(path: str | Path, options: ReproduceOptions | None = None, say: Callable[[str], None] = print) -> Outcome:
    """Do what is missing of a recipe and write its table, also when it is stopped.

    Args:
        path: of the recipe.
        options: how; None is the defaults.
        say: takes a line about the progress.

    Returns:
        What is done, and what failed and why.

    Raises:
        DataError: the recipe means nothing, or its data set or a model is not there.
        RunError: the engine cannot be had.
    """
    work = open_recipe(Path(path), options or ReproduceOptions())
    for sentence in _unknown(work):
        raise DataError(f"{path}: {sentence}")
    _refuse_missing_models(work)
    nodes = work.chosen
    _refuse_missing_optuna(work)
    conversion = ensure_data(work.recipe, work.root, work.options.data, say)
    _refuse_impossible(work, path, say)
    if conversion is not None:
        nodes = _with_conversion(nodes, (*conversion, "--root", str(work.root.raw.parent)))
    needs = replace(work.options.needs, folder=work.state.folder, device=work.options.device)
    engine: Engine = make_engine(work.options.engine, needs)
    if doubt := other_cases(work.recipe.dataset, work.root):
        say(f"{WARNING}{doubt}")
    Origin.of(Path(path), work.recipe).keep(work.state.folder)
    say(f"{len(nodes)} runs; records and logs: {work.state.folder}")
    try:
        return Runner(nodes, work.state, engine, say, work.options.modules).run()
    finally:
        work.write()


def write_jobs(path: str | Path, options: ReproduceOptions | None = None) -> list[Path]:
    """Write Slurm's job scripts for what is missing of a recipe, and submit nothing.

    Args:
        path: of the recipe.
        options: how; the engine must be ``slurm``.

    Returns:
        The scripts, of which the last one, ``submit.sh``, submits the others; nothing where all is done.

    Raises:
        DataError: the recipe means nothing, or its data set or a model is not there.
        RunError: another engine is asked for.
    """
    options = options or ReproduceOptions()
    if options.engine != "slurm":
        raise RunError(f"--write is for --engine slurm, found --engine {options.engine}; change one of them.")
    work = open_recipe(Path(path), options)
    for sentence in _unknown(work):
        raise DataError(f"{path}: {sentence}")
    _refuse_missing_models(work)
    _refuse_missing_optuna(work)
    ensure_data(work.recipe, work.root, options.data, lambda line: None)
    _refuse_impossible(work, path, lambda line: None)
    Origin.of(Path(path), work.recipe).keep(work.state.folder)
    words = [str(Path(path).absolute()), "--root", str(work.root.raw.parent.absolute()), *_own_words(options)]
    return write_scripts(work.state.folder.absolute() / "slurm_scripts", _left(work), words, options.needs)


def _left(work: Work) -> dict[str, Node]:
    """The chosen nodes that are not done; preparing is one of them where there are others."""
    records = standing(work.nodes, work.state.read()).records
    left = {}
    for name, node in work.chosen.items():
        if node.kind == "prepare" or name not in records or records[name].status != "done":
            left[name] = node
    return left if any(node.kind != "prepare" for node in left.values()) else {}


def _own_words(options: ReproduceOptions) -> list[str]:
    """The options as words of a command that is given elsewhere."""
    words = [*import_words(options.modules), "--margin", f"{options.margin:g}"]
    if options.data is not None:
        words += ["--data", str(Path(options.data).absolute())]
    for teacher, folder in options.models.items():
        words += ["--model", f"{teacher}={Path(folder).absolute()}"]
    if options.device is not None:
        words += ["--device", options.device]
    return words


@dataclass(frozen=True)
class Check:
    """What :func:`check` found.

    Attributes:
        problems: what is missing, and names that mean nothing, a sentence each.
        costs: what the recipe's runs would need.
        open: of which runs nobody can say yet whether they would begin, and why.
        data: in what the data are not those of the recipe, or empty.
    """

    problems: tuple[str, ...]
    costs: tuple[str, ...]
    open: tuple[str, ...] = ()
    data: str = ""


def check(path: str | Path, options: ReproduceOptions | None = None) -> Check:
    """What is missing for a recipe, what it would cost, and whether its networks and methods exist.

    Raises:
        DataError: the recipe means nothing.
    """
    work = open_recipe(Path(path), options or ReproduceOptions())
    absent = {teacher: folder for teacher, folder in _models(work).items() if not folder.exists()}
    problems = [f"missing: {what}" for what in _missing(work, absent)]
    unknown = _unknown(work)
    problems += [f"unknown: {sentence}" for sentence in unknown]
    answers = [] if unknown else _answers(work, frozenset(absent))
    problems += [f"impossible: {answer.name}: {answer.reason}" for answer in answers if not answer.open]
    return Check(
        tuple(problems), tuple(costs(work)), tuple(open_lines(answers)), other_cases(work.recipe.dataset, work.root)
    )


def _unknown(work: Work) -> list[str]:
    """Names that mean nothing; where all mean something, what the commands would not understand."""
    planned = (work.root.preprocessed / work.dataset / PLANS_FILE).exists()
    return unknown_names(work.recipe) or refused_words(work.recipe, work.nodes, planned)


def _missing(work: Work, absent: Mapping[str, Path]) -> Iterator[str]:
    """Data set, models and packages that are not there."""
    raw, data_format = work.root.raw_dataset(work.dataset), work.recipe.dataset.format
    if not (raw / "dataset.json").exists() and data_format != PHANTOM:
        yield f"{raw} (medkd_convert {data_format} --help says what to download)"
    for teacher, folder in absent.items():
        yield f"the teacher '{teacher}' at {folder} (give --model {teacher}=FOLDER)"
    try:
        _refuse_missing_optuna(work)
    except RunError as error:
        yield str(error)


def _answers(work: Work, absent: frozenset[str] = frozenset()) -> list[Answer]:
    """Of the runs that need no teacher which is absent; of the others nobody can say."""
    records = standing(work.nodes, work.state.read()).records
    asked, found = {}, []
    for name, node in work.chosen.items():
        lacking = sorted(absent.intersection(_above(work.recipe, node.teacher)))
        if not lacking:
            asked[name] = node
        elif node.lesson is not None:
            found.append(Answer(name, f"the teacher '{lacking[0]}' is missing", open=True))
    return [*rehearse_runs(asked, records, work.dataset, work.root, work.recipe.dataset.labels), *found]


def _refuse_impossible(work: Work, path: str | Path, say: Callable[[str], None]) -> None:
    """Refuse runs that would not begin; of those that were tried before it is said, and the others go on."""
    tried = work.state.read()
    for answer in _answers(work):
        if answer.open:
            continue
        if answer.name not in tried:
            raise DataError(f"{path}: {answer.name}: {answer.reason}")
        say(f"{answer.name} will not begin: {answer.reason}")


def _above(recipe: Recipe, teacher: str | None) -> list[str]:
    """A teacher, and those above it."""
    found = []
    while teacher is not None:
        found.append(teacher)
        teacher = recipe.teachers[teacher].taught_by
    return found


def _models(work: Work) -> dict[str, Path]:
    """Teacher → folder, of those from elsewhere that the chosen runs need."""
    used = set[str]()
    like = work.recipe.dataset.prepare.get("like")
    for named in (*(node.teacher for node in work.chosen.values()), like):
        used.update(_above(work.recipe, named))
    found: dict[str, Path] = {}
    for node in work.nodes.values():
        if node.words[0] == "score_teacher" and node.teacher in used:
            found[str(node.teacher)] = Path(str(node.words[2]))
    return found


def _refuse_missing_models(work: Work) -> None:
    for teacher, folder in _models(work).items():
        if not folder.exists():
            raise DataError(f"The teacher '{teacher}' is not at {folder}; give --model {teacher}=FOLDER.")


def _refuse_missing_optuna(work: Work) -> None:
    if any(node.kind == "search" for node in work.chosen.values()):
        check_optuna()


def _with_conversion(nodes: Mapping[str, Node], words: tuple[str, ...]) -> dict[str, Node]:
    conversion = Node(name=CONVERT, kind="prepare", words=words)
    changed = dict(nodes)
    if PREPARE in changed:
        changed[PREPARE] = replace(changed[PREPARE], needs=(CONVERT,))
    return {CONVERT: conversion, **changed}


def status_lines(work: Work) -> list[str]:
    """A line per run: what became of it, its command, and why it is due again where it was done before."""
    now = standing(work.nodes, work.state.read())
    lines = []
    for name, node in work.chosen.items():
        status = now.records[name].status if name in now.records else "to do"
        again = f" (again: {now.outdated[name]})" if name in now.outdated else ""
        lost = f" ({LOST})" if name in now.records and is_lost(now.records[name]) else ""
        why = f" ({now.records[name].error})" if status == "failed" else ""
        lines.append(f"{status:8}{name}: {node.shown(work.options.modules)}{again}{lost}{why}")
    return lines
