"""``medkd_reproduce``: all runs of a table, resumable, and the table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.cli.common import parser, positive, run
from medkd.core.errors import WARNING, RunError

if TYPE_CHECKING:
    from medkd.reproduction.reproduce import ReproduceOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_reproduce``; status 1 when a run failed, or with ``--check`` when something is missing."""
    return run(_main, _arguments(), argv)


def _arguments() -> argparse.ArgumentParser:
    arguments = parser(
        "Make the table of a recipe: prepare the data, train teachers, then students, fold by fold and seed by seed.\n"
        "What is done is not done again; a killed command goes on when it is given again. The table, as far as it is "
        "known,\nlies in <root>/reproductions/RECIPE as text, Markdown, CSV, LaTeX and JSON.",
        "medkd_reproduce recipes/quick_phantom.json\n  medkd_reproduce recipes/quick_hippocampus.json --data "
        "Task04_Hippocampus --model strong=MODEL",
    )
    add = arguments.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="a JSON file, see docs/recipes.md")
    add("--data", type=Path, metavar="SOURCE", help="the data set as downloaded, where it is not converted yet")
    add(
        "--model",
        action="append",
        default=[],
        metavar="TEACHER=FOLDER",
        help="where a teacher from elsewhere lies; may be repeated",
    )
    add("--only", action="append", default=[], metavar="RUN", help="runs to do, with what they need; * for any letters")
    add("--margin", type=float, default=0.01, help="loss up to which a student may replace its teacher (default: 0.01)")
    add("--device", help="cpu, cuda, cuda:N or mps (default: cuda where present)")
    shown = arguments.add_mutually_exclusive_group()
    shown.add_argument("--status", action="store_true", help="what is done, each run's command, and the table; no run")
    shown.add_argument("--check", action="store_true", help="what is missing, and what it will cost; no run")
    shown.add_argument("--write", action="store_true", help="slurm: write the job scripts, and submit nothing")
    _add_engine(arguments)
    return arguments


def _add_engine(arguments: argparse.ArgumentParser) -> None:
    group = arguments.add_argument_group("where it runs")
    group.add_argument(
        "--engine", choices=("local", "ray", "slurm"), default="local", help="default: local, one run per GPU, or one"
    )
    group.add_argument("--jobs", type=positive, help="most runs at a time")
    group.add_argument("--cpus", type=positive, default=1, help="ray, slurm: cores of a run (default: 1)")
    group.add_argument(
        "--gpus", type=float, help="ray, slurm: GPUs of a run, 0.5 for two to share one (ray: default 1, if any)"
    )
    group.add_argument("--memory", type=float, metavar="GIB", help="ray, slurm: memory of a run")
    group.add_argument("--address", help="ray: of a running cluster (default: one on this machine)")
    group.add_argument(
        "--slurm", action="append", default=[], metavar="OPTION=VALUE", help="slurm: for sbatch, as partition=gpu"
    )


def _main(arguments: argparse.Namespace) -> int:
    from medkd.reproduction import reproduce as recipes
    from medkd.reproduction.table import text

    options = _options(arguments)
    if arguments.check:
        found = recipes.check(arguments.recipe, options)
        doubts = (f"{WARNING}{found.data}",) if found.data else ()
        print("\n".join((*found.problems, *doubts, *found.open, *found.costs)))
        return int(bool(found.problems))
    if arguments.write:
        print("\n".join(map(str, recipes.write_jobs(arguments.recipe, options))) or "nothing is left to do")
        return 0
    work = recipes.open_recipe(arguments.recipe, options)
    if arguments.status:
        print("\n".join(recipes.status_lines(work)))
        print(f"\n{text(work.results())}")
        return 0
    outcome = recipes.reproduce(arguments.recipe, options, say=lambda line: print(line, flush=True))
    print(f"\n{text(work.results())}\nwritten: {work.state.folder}/table.txt, .md, .csv, .tex, .json")
    for name, need in outcome.blocked.items():
        print(f"not begun: {name}, which needs {need}")
    if outcome.failed:
        raise RunError(
            f"{len(outcome.failed)} runs failed twice, {len(outcome.blocked)} need them; look at their logs in "
            f"{work.state.folder / 'runs'}, then give the same command again."
        )
    return 0


def _options(arguments: argparse.Namespace) -> ReproduceOptions:
    from medkd.reproduction.engines import Needs
    from medkd.reproduction.reproduce import ReproduceOptions
    from medkd.reproduction.words import parse_pairs

    needs = Needs(
        jobs=arguments.jobs,
        gpus=arguments.gpus,
        cpus=arguments.cpus,
        memory_gb=arguments.memory,
        address=arguments.address,
        options=parse_pairs("--slurm", arguments.slurm),
    )
    models = {name: Path(folder) for name, folder in parse_pairs("--model", arguments.model).items()}
    return ReproduceOptions(
        root=arguments.root,
        data=arguments.data,
        models=models,
        only=arguments.only,
        engine=arguments.engine,
        needs=needs,
        device=arguments.device,
        margin=arguments.margin,
        modules=arguments.imports,
    )
