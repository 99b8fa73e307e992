"""``report.html``: teacher, student alone and distilled students side by side, on one page that needs nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkd.core.agreements import agreement_text
from medkd.core.errors import DataError
from medkd.core.files import write_text
from medkd.core.paths import Root
from medkd.evaluation.report import figures, page
from medkd.evaluation.report.data import MARGIN, Report
from medkd.evaluation.report.html import chart, document, folded, section
from medkd.evaluation.report.provenance import provenance, settings
from medkd.evaluation.report.rank_figure import rank_section
from medkd.evaluation.report.read import read_report, shown_folds
from medkd.evaluation.report.recipes import read_tables, recipe_section
from medkd.evaluation.report.tables import csv_text, latex_text

_TABLES = (".csv", ".tex")  # beside the page
_log = logging.getLogger(__name__)


def make_report(
    dataset: str | int,
    *,
    root: str | Path | None = None,
    output: Path | None = None,
    fold: int | str | None = None,
    runs: Sequence[str] = (),
    margin: float = MARGIN,
) -> Path:
    """Write the report of the runs of a data set of any task, and beside it its numbers as ``.csv`` and ``.tex``.

    Args:
        dataset: number or full name.
        root: medkd's root folder, see :class:`medkd.core.paths.Root`.
        output: the page, or a folder for ``report.html``; ``<root>/results/DATASET/report.html`` where None.
        fold: show this fold only; None shows the folds that all scored runs have in common.
        runs: names or patterns of the runs to show; all where empty.
        margin: the loss of Dice or average precision up to which a student may replace its teacher.

    Returns:
        The page's path.

    Raises:
        DataError: the data set is unknown, a run's files are damaged, the margin is not above 0 and below 1, or the
            page has the ending of the tables beside it.
        RunError: there is no run, or none of such a name.
    """
    path = check_report(dataset, root=root, output=output, fold=fold, runs=runs, margin=margin)
    folders = Root.resolve(root)
    name = folders.dataset_name(dataset)
    results = folders.results / name
    report = read_report(results, fold, runs, margin=margin, raw=folders.raw_dataset(name))
    recipes = read_tables(folders.raw.parent / "reproductions", name)
    write_report(path, replace(report, recipes=recipes))
    return path


def check_report(
    dataset: str | int,
    *,
    root: str | Path | None,
    output: Path | None,
    fold: int | str | None,
    runs: Sequence[str],
    margin: float,
) -> Path:
    """The page that :func:`make_report` would write, after all that can be refused before anything is measured."""
    if not 0 < margin < 1:
        raise DataError(f"The margin is a loss of Dice or AP above 0 and below 1, for example 0.01; found {margin}.")
    folders = Root.resolve(root)
    results = folders.results / folders.dataset_name(dataset)
    path = results / "report.html" if output is None else _page(Path(output))
    shown_folds(results, fold, runs)
    return path


def _page(output: Path) -> Path:
    """The page that is meant: of a folder the one in it.

    Raises:
        DataError: a table would take its place.
    """
    if output.is_dir():
        return output / "report.html"
    if output.suffix.lower() in _TABLES:
        raise DataError(
            f"-o {output} names the page, which is HTML; end it with .html, its numbers lie beside it as "
            f"{' and '.join(_TABLES)}."
        )
    return output


def write_report(path: Path, report: Report) -> None:
    """Write a self-contained page, and its numbers as CSV and LaTeX beside it.

    Args:
        path: of the page, written atomically; the tables differ in their ending.
        report: what to show.

    Raises:
        DataError: two runs were scored differently, or the files cannot be written.
    """
    waiting = [entry.name for entry in report.entries if entry.scores is None and not agreement_text(entry.path)]
    if waiting:
        runs = "1 run has" if len(waiting) == 1 else f"{len(waiting)} runs have"
        _log.warning("%s no scores yet, folded away on the page: %s", runs, ", ".join(waiting))
    before, *after = report.task.sections(report) or [""]
    content = document(
        report.title,
        page.lead(report),
        page.cards(report),
        section(
            "Side by side",
            f"Means over the validation {report.task.case}s with 95 % intervals{page.over(report)}; differences are "
            "paired.",
            page.overview(report),
        ),
        page.decision_table(report),
        report.task.pictures(report),
        before,
        section(
            "Accuracy against cost",
            "Up is more accurate, left is cheaper.",
            *_with_legend(report, chart(figures.trade_off(report, report.task.main), "trade-off", kind="large")),
        ),
        rank_section(report),
        recipe_section(report.recipes),
        page.exports(report),
        *after,
        _training(report),
        section("How the runs were made", "Enough to make them again.", settings(report), _folded_provenance(report)),
        section("How it was measured", "The definitions behind every number on this page.", page.how_measured(report)),
    )
    write_text(path, content)
    write_text(path.with_suffix(".csv"), csv_text(report))
    write_text(path.with_suffix(".tex"), latex_text(report))


def _with_legend(report: Report, content: str) -> list[str]:
    return [page.legend(report), content] if content else []


def _folded_provenance(report: Report) -> str:
    return folded("splits and commands", provenance(report))


def _training(report: Report) -> str:
    entries = report.scored or report.entries
    key, title = report.task.progress
    charts = [
        chart(figures.curves(entries, "train_loss", "training loss (all terms)"), "training loss"),
        chart(figures.curves(entries, key, title), title),
    ]
    charts += [chart(figures.loss_terms(entry), f"loss terms of {entry.label}") for entry in entries]
    content = "".join(charts)
    if not content:
        return ""
    lead = "Losses of different methods have different terms and are compared in shape, not in height."
    return section("Training", lead, page.legend(report), f'<div class="two">{content}</div>')
