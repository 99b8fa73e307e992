"""``report.html``: teacher, student alone and distilled students side by side, on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medkd.core.files import write_text
from medkd.core.paths import Root
from medkd.core.run import RUN_FILE, is_detection
from medkd.evaluation.report import figures
from medkd.evaluation.report import segmentation_page as page
from medkd.evaluation.report.detection_data import gather_detection
from medkd.evaluation.report.detection_write import write_detection_report
from medkd.evaluation.report.segmentation_data import RunEntry, gather
from medkd.evaluation.report.segmentation_pictures import Picture, pictures


def make_report(
    dataset: str | int, *, root: str | Path | None = None, output: Path | None = None, fold: int | str | None = None
) -> Path:
    """Write the report of all runs of a data set.

    Args:
        dataset: number or full name.
        root: medkd's root folder, see :class:`medkd.core.paths.Root`.
        output: the page; ``<root>/results/DATASET/report.html`` where None.
        fold: show this fold only; None shows the folds that all scored runs have in common.

    Returns:
        The page's path.

    Raises:
        DataError: the data set is unknown, or a run's files are damaged.
        RunError: there is no run.
    """
    folders = Root.resolve(root)
    name = folders.dataset_name(dataset)
    path = Path(output) if output is not None else folders.results / name / "report.html"
    if any(is_detection(run.parent) for run in (folders.results / name).glob(f"*/{RUN_FILE}")):
        write_detection_report(path, name, gather_detection(folders.results / name, fold), folders.raw_dataset(name))
        return path
    entries = gather(folders.results / name, fold)
    shown, judge = pictures(entries, folders.raw_dataset(name))
    write_report(path, name, entries, pictures=shown, ranked_by=judge)
    return path


def write_report(
    path: Path, title: str, entries: Sequence[RunEntry], *, pictures: Sequence[Picture] = (), ranked_by: str = ""
) -> None:
    """Write a self-contained page: style and pictures are inside, there is no script.

    Args:
        path: where to write, atomically.
        title: heading, for instance the data set's name.
        entries: the runs, in the order in which they shall appear
            (:func:`medkd.evaluation.report.segmentation_data.gather`).
        pictures: pictures of single cases.
        ranked_by: label of the run that chose these cases.
    """
    content = page.document(
        title,
        page.verdict(entries),
        page.cards(entries),
        page.section(
            "Side by side",
            "Means over the validation cases with 95 % intervals; failures are structures missed / invented.",
            page.overview(entries),
        ),
        page.section(
            "Accuracy against cost",
            "Up is more accurate, left is cheaper.",
            page.image(figures.trade_off(entries), "trade-off", kind="wide"),
        ),
        _structures(entries),
        page.section(
            "What it looks like",
            f"The worst, the median and the best case of {ranked_by}, on the slice that shows most.",
            page.gallery(pictures, _structure_names(entries)),
        ),
        page.section(
            "What was missed or invented",
            "A structure that only one of prediction and reference holds counts as a failure in every mean, and is "
            "listed here.",
            page.failures(entries),
        ),
        _training(entries),
        page.section("How the runs were made", "Enough to make them again.", page.settings(entries)),
        page.section(
            "How it was measured", "The definitions behind every number on this page.", page.how_measured(entries)
        ),
    )
    write_text(path, content)


def _structures(entries: Sequence[RunEntry]) -> str:
    charts = [
        page.image(figures.per_structure(entries, metric), f"{metric} per structure")
        for metric in ("Dice", "HD95", "NSD")
    ]  # type: ignore[arg-type]
    charts.append(page.image(figures.per_case(entries), "Dice of every case"))
    tables = "".join(page.structure_table(entries, metric) for metric in ("Dice", "HD95", "NSD"))  # type: ignore[arg-type]
    details = f"<details><summary>the same as tables</summary>{tables}</details>" if tables else ""
    content = "".join(charts)
    return page.section(
        "Structure by structure",
        "Dots are means over cases, bars 95 % intervals.",
        f'{page.legend(entries)}<div class="two">{content}</div>{details}' if content else "",
    )


def _training(entries: Sequence[RunEntry]) -> str:
    charts = [
        page.image(figures.curves(entries, "train_loss", "training loss (all terms)"), "training loss"),
        page.image(figures.curves(entries, "validation_dice", "validation Dice (patches)"), "validation Dice"),
        *(page.image(figures.loss_terms(entry), f"loss terms of {entry.label}") for entry in entries),
    ]
    content = "".join(charts)
    lead = "Losses of different methods have different terms and are compared in shape, not in height."
    return page.section("Training", lead, f'<div class="two">{content}</div>' if content else "")


def _structure_names(entries: Sequence[RunEntry]) -> list[str]:
    return next(([name for name, _ in e.summary.structures] for e in entries if e.summary is not None), [])
