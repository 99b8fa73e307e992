"""How the runs of a report were made: settings, splits, and the commands that make them again."""

from __future__ import annotations

from html import escape

from medkd.evaluation.cross_validation import validation_cases
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.report.html import table, without_folders
from medkd.tasks import TASKS


def settings(report: Report) -> str:
    """How each run was trained."""
    head = ("run", "configuration", "patch", "epochs × steps", "batch", "learning rate", "precision", "seed", "folds")
    rows = []
    for entry in report.entries:
        run, budget = entry.run, entry.run.budget
        parameters = ", ".join(f"{name} = {value}" for name, value in run.method_parameters.items())
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
            without_folders(parameters) or "–",
        )
        rows.append([escape(cell) for cell in cells])
    return table([*head, "method parameters"], rows, "wide")


def provenance(report: Report) -> str:
    """Splits and the commands that make the runs again."""
    rows = []
    for entry in report.entries:
        counts = [f"fold {fold}: {_split(entry, fold)}" for fold in entry.folds]
        rows.append([escape(entry.name), escape("; ".join(counts) or "–"), f"<code>{escape(command(entry))}</code>"])
    return table(["run", "validation cases", "command"], rows, "wide")


def _split(entry: RunEntry, fold: str) -> str:
    cases = validation_cases(entry.path / f"fold_{fold}")
    return f"{len(cases)} cases ({', '.join(cases[:3])}{', …' if len(cases) > 3 else ''})" if cases else "not recorded"


def command(entry: RunEntry) -> str:
    """The command that trains this run, without the folders of this machine."""
    run, budget = entry.run, entry.run.budget
    folds = entry.folds[0] if entry.folds else "0"
    words: list[str] = ["medkd_train" if run.method is None else "medkd_train_distill", run.dataset]
    if run.method is not None:
        words += [entry.teacher_name or "TEACHER", run.network.name, run.method]
    else:
        words.append(run.network.name)
    words.append(folds)
    if run.configuration not in TASKS:  # which has just one
        words += ["-c", run.configuration]
    words += ["--epochs", str(budget.epochs), "--iterations-per-epoch", str(budget.iterations_per_epoch)]
    words += ["--batch-size", str(budget.batch_size), "--learning-rate", f"{budget.learning_rate:g}"]
    words += ["--seed", str(budget.seed), "--precision", run.precision]
    if run.network.width_divisor != 1:
        words += ["--width-divisor", str(run.network.width_divisor)]
    for name, value in run.method_parameters.items():
        words += ["--set", f"{name}={without_folders(str(value))}"]
    return " ".join(words)
