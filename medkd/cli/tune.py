"""``medkd_tune``: search parameters of a method on inner folds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkd.cli import common
from medkd.cli.training_options import add_target_options, add_training_options, training_settings
from medkd.core.allocator import reuse_freed_memory
from medkd.core.errors import RunError

if TYPE_CHECKING:
    from medkd.reproduction.search_space import Search

_DECIDED = ("tag", "resume", "overwrite", "no_validate", "track", "dry_run")
"""Options of a training that the search decides for each of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_tune``."""
    return common.run(_run, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    parser = common.parser(
        "Search parameters of a method on inner folds of the training cases of a fold. Teacher and students are "
        "trained anew there; the cases on which the fold is judged take no part. The same command goes on where it was "
        "stopped.",
        "medkd_tune 4 res_unet unet_tiny kd 0 --search kd.temperature=1:8:log --trials 10",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="number or full name, of a data set that is prepared")
    add("teacher", metavar="TEACHER", help="a network name; it is trained on the inner folds")
    add("student", metavar="STUDENT", help="a network name, see medkd_list networks")
    add("method", metavar="METHOD", help="a method, or several joined by +, see medkd_list methods")
    add("fold", metavar="FOLD", help="0 to 4, or all: whose training cases are searched on")
    add(
        "--search",
        action="append",
        required=True,
        metavar="METHOD.PARAMETER=LOW:HIGH[:log]",
        help="bounds of a parameter, or texts to choose from, as A,B,C; may be repeated",
    )
    add("--trials", type=common.positive, required=True, help="how many values are tried")
    add("--inner-folds", type=common.positive, default=1, help="on how many inner folds, 1 to 5 (default: 1)")
    add("--folder", type=Path, help="of the search (default: <root>/searches/DATASET_STUDENT_METHOD_FOLD)")
    add(
        "--teacher-options",
        type=_teacher_settings,
        default="",
        metavar="TEXT",
        help="options of the teacher's training, as one text",
    )
    add_target_options(parser, _DECIDED)
    add_training_options(parser, _DECIDED)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from medkd.core.paths import Root
    from medkd.reproduction.search import SearchOrder, search_parameters

    reuse_freed_memory()
    root = Root.resolve(arguments.root)
    name = root.dataset_name(arguments.dataset)
    default = root.raw.parent / "searches" / f"{name}_{arguments.student}_{arguments.method}_{arguments.fold}"
    folder = (arguments.folder or default).absolute()
    order = SearchOrder(
        dataset=name,
        teacher=arguments.teacher,
        student=arguments.student,
        method=arguments.method,
        fold=arguments.fold,
        search=_search(arguments),
        folder=folder,
        root=arguments.root,
        settings=_settings(arguments),
        teacher_settings=arguments.teacher_options,
    )
    best = search_parameters(order, lambda line: print(line, flush=True))
    found = " ".join(f"--set {key}={value}" for key, value in best.parameters.items())
    print(f"best of {best.trials} trials, {best.metric} {best.score:.4f} on the inner folds: {found}")
    print(folder)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in training_settings(arguments).items() if key != "root"}


def _teacher_settings(text: str) -> dict[str, Any]:
    import shlex

    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    add_training_options(parser, _DECIDED)
    try:
        arguments, others = parser.parse_known_args(shlex.split(text))
    except (argparse.ArgumentError, ValueError) as error:
        raise RunError(f"--teacher-options: {error}.") from error
    if others:
        raise RunError(f"--teacher-options: training has no option '{others[0]}'; leave it out.")
    return _settings(arguments)


def _search(arguments: argparse.Namespace) -> Search:
    from medkd.reproduction.search_space import Search

    parameters = {}
    for entry in arguments.search:
        key, equals, text = entry.partition("=")
        if not equals or key in parameters:
            raise RunError(f"--search expects METHOD.PARAMETER=LOW:HIGH[:log], each once, found '{entry}'.")
        parameters[key] = _values(text)
    return Search(parameters=parameters, trials=arguments.trials, folds=arguments.inner_folds)


def _values(text: str) -> tuple[Any, ...]:
    """Bounds or choices.

    >>> _values("1:8:log"), _values("a,b")
    ((1.0, 8.0, 'log'), ('a', 'b'))
    """
    if ":" not in text:
        return tuple(text.split(","))
    low, high, *scale = text.split(":")
    try:
        return (float(low), float(high), *scale)
    except ValueError as error:
        raise RunError(f"--search expects numbers as bounds, found '{text}'.") from error
