"""How the runs of a report were made: settings, splits, and the commands that make them again."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import PureWindowsPath

from medkd.core.made_from import changed_inputs
from medkd.core.protocol_files import protocol_names
from medkd.core.run import RunDescription
from medkd.core.teachers import apart
from medkd.evaluation.cross_validation import validation_cases
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.report.html import table, without_folders
from medkd.evaluation.report.labels import tag_of
from medkd.tasks import TASKS


def settings(report: Report) -> str:
    """How each run was trained."""
    head = ("run", "configuration", "patch", "epochs × steps", "batch", "learning rate", "precision", "seed", "folds")
    rows = []
    for entry in report.entries:
        run, budget = entry.run, entry.run.budget
        parameters = []
        for name, value in run.method_parameters.items():
            parameters.append(f"{name} = {without_folders(str(value))}")
        cells = (
            entry.name,
            run.configuration,
            " × ".join(map(str, run.network.patch_size)),
            f"{budget.epochs} × {budget.iterations_per_epoch}",
            str(budget.batch_size),
            f"{budget.learning_rate:g}",
            run.precision,
            str(budget.seed),
            ", ".join(entry.folds) or "–",
            ", ".join(parameters) or "–",
        )
        rows.append([escape(cell) for cell in cells])
    return table([*head, "method parameters"], rows, "wide")


def provenance(report: Report) -> str:
    """Splits and the commands that make the runs again."""
    rows = []
    for entry in report.entries:
        counts = [f"fold {fold}: {_split(entry, fold)}" for fold in entry.folds]
        commands = [f"<code>{escape(command)}</code>" for command in commands_of(entry)]
        rows.append([escape(entry.name), escape("; ".join(counts) or "–"), "<br>".join(commands)])
    return table(["run", "validation cases", "commands"], rows, "wide")


def _split(entry: RunEntry, fold: str) -> str:
    cases = validation_cases(entry.path / f"fold_{fold}")
    if not cases:
        return "not recorded"
    shown = ", ".join(cases[:3])
    changed = changed_inputs(entry.path / f"fold_{fold}", entry.run.configuration) is not None
    outdated = "; its teacher or its data have changed since it was trained" if changed else ""
    return f"{len(cases)} cases ({shown}{', …' if len(cases) > 3 else ''}){outdated}"


def commands_of(entry: RunEntry) -> list[str]:
    """The commands that train this run, one per fold, without the folders of this machine: a file or model of
    elsewhere is only its name, and must be given where it lies.
    """
    run = entry.run
    teachers = _teachers(entry)
    if run.method is None:
        start = ["medkd_train", run.dataset, run.network.name]
    else:
        start = ["medkd_train_distill", run.dataset, teachers[0], run.network.name, run.method]
    further = [word for name in teachers[1:] for word in ("--teacher", name)]
    options = [*further, *_budget_options(run), *_network_options(run), *_teacher_options(run)]
    for module in dict.fromkeys(run.modules.values()):
        options += ["--import", module]
    tag = tag_of(entry)
    if tag:
        options += ["--tag", tag]
    return [shlex.join([*start, fold, *options]) for fold in entry.folds or ("0",)]


def _teachers(entry: RunEntry) -> list[str]:
    """The models that taught, runs by the names of their folders where these are known."""
    named = entry.run.taught_by or entry.origin.sure or apart(entry.run.teacher)
    return [PureWindowsPath(name).name for name in named] or ["TEACHER"]


def _budget_options(run: RunDescription) -> list[str]:
    budget = run.budget
    options = {
        "--epochs": str(budget.epochs),
        "--iterations-per-epoch": str(budget.iterations_per_epoch),
        "--batch-size": str(budget.batch_size),
        "--learning-rate": f"{budget.learning_rate:g}",
        "--seed": str(budget.seed),
        "--precision": run.precision,
    }
    return [word for option in options.items() for word in option] + run.speed.options()


def _network_options(run: RunDescription) -> list[str]:
    """Configuration and patch, or the side of the image; and what the network was started from."""
    size = [str(side) for side in run.network.patch_size]
    options = []
    if run.configuration in TASKS:  # which has just one
        if "image_size" in TASKS[run.configuration].own["train"]:
            options += ["--image-size", size[0]]
    else:
        options += ["-c", run.configuration, "--patch-size", *size]
        options += ["--mirror-axes", *(map(str, run.mirror_axes) if run.mirror_axes else ["none"])]
    if run.network.width_divisor != 1:
        options += ["--width-divisor", str(run.network.width_divisor)]
    return options + _start_options(run)


def _start_options(run: RunDescription) -> list[str]:
    """First weights, and a protocol that comes with medkd."""
    options = []
    if run.backbone_weights is not None:
        options += ["--backbone-weights", without_folders(run.backbone_weights)]
    if run.weights is not None:
        named = run.weights.source != "file"
        options += ["--weights", run.weights.source if named else without_folders(run.weights.file)]
    if run.protocol is not None and run.protocol.partition(":")[0] in protocol_names():
        options += ["--protocol", run.protocol]
    return options


_USUALLY = {"targets": "live", "init": "random", "labels": "given", "unlabelled_share": None, "confidence": 0.0}
"""What is not said on a command, by the options' names in Python."""


def _teacher_options(run: RunDescription) -> list[str]:
    options = []
    for name, usual in _USUALLY.items():
        value = getattr(run, name)
        if value != usual:
            options += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    if run.targets_tta:
        options.append("--targets-tta")
    for name, value in run.method_parameters.items():
        options += ["--set", f"{name}={without_folders(str(value))}"]
    return options
