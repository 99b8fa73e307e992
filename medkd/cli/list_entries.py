"""``medkd_list``: what there is — networks, methods, data sets, runs, formats."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from medkd.cli import common
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import MedkdError
from medkd.core.files import read_json
from medkd.core.paths import Root
from medkd.core.run import BEST, DATASET_FILE, FINAL, LATEST, PLANS_FILE, RUN_FILE, RunDescription
from medkd.core.serial import load
from medkd.core.teachers import apart
from medkd.io.writing.formats import FORMATS
from medkd.tasks import every_task, task_of_file

Row = tuple[str, ...]
ABSENT = "-"


def network_rows(names: Sequence[str] | None = None) -> list[Row]:
    """One row per network and rank: name, rank, parameters, multiply-adds, taps that can be distilled, paper.

    Counted at one channel, 14 classes and a patch of 96³ (3D) or 512² (2D) voxels, without computing anything. A
    planned network is marked ``*``: its shape is what nnU-Net plans for that patch.

    Args:
        names: registry names; all where None.

    Raises:
        RunError: a name is unknown.
    """
    # imported here, since the other lists do not need them
    from tqdm import tqdm

    from medkd.networks import NETWORKS
    from medkd.networks.complexity import count_macs, count_parameters
    from medkd.networks.reference import build_weightless, reference_spec

    rows: list[Row] = [("network", "rank", "parameters", "multiply-adds", "taps", "paper")]
    for name in tqdm(names if names is not None else list(NETWORKS), "counting", leave=False, disable=None):
        entry = NETWORKS[name]
        for rank in entry.ranks:
            spec = reference_spec(name, rank)
            network = build_weightless(spec)
            macs = count_macs(network, (1, spec.in_channels, *spec.patch_size))
            taps = str(sum(not tap.raw for tap in network.taps))
            cost = (f"{count_parameters(network) / 1e6:.3f} M", f"{macs / 1e9:.2f} G")
            rows.append((name + "*" * entry.planned, f"{rank}D", *cost, taps, entry.citation))
    return rows


def detector_rows() -> list[Row]:
    """One row per detector, in the columns of :func:`network_rows` but without a head: name, what it is, and which
    library trains it.

    Detectors whose library is not installed are not listed.
    """
    from medkd.detection.base import DETECTORS
    from medkd.detection.families import register_detectors

    register_detectors()
    rows: list[Row] = []
    for name in DETECTORS:
        entry = DETECTORS[name]
        rows.append((name, "detector", ABSENT, ABSENT, ABSENT, f"{entry.about} ({entry.family})"))
    return rows


def method_rows() -> list[Row]:
    """One row per distillation method: name, for which branch, what it needs of the networks, parameters with defaults,
    paper.

    A method that detectors define anew has a row of its own for them.
    """
    from medkd.detection.methods import DETECTION_METHODS
    from medkd.distillation import METHODS
    from medkd.distillation.describe import describe_methods

    rows: list[Row] = [("method", "for", "needs", "parameters", "paper")]
    for methods in (METHODS, DETECTION_METHODS):
        for card in describe_methods(methods):
            branch = "both" if card.detection else "segmentation"
            if methods is DETECTION_METHODS:
                branch = "detection"
            settings = " ".join(f"{name}={default}" for name, default in card.parameters)
            rows.append((card.name, branch, card.needs, settings or ABSENT, card.paper or ABSENT))
    return rows


def format_rows() -> list[Row]:
    """One row per format of predictions: name, task, ending of its files, what it is."""
    rows: list[Row] = [("format", "for", "files", "about")]
    for name, entry in FORMATS.items():
        rows.append((name, entry.task, f"CASE{entry.ending}", entry.about))
    return rows


def departure_lines() -> list[str]:
    """One line per place where a method or network differs from what its authors released, on purpose."""
    from medkd.distillation.departures import all_departures

    lines = []
    for entry in all_departures():
        variant = "" if entry.variant == "both" else " (variant=paper)"
        lines.append(f"{entry.id}{variant}: {entry.what} {entry.why} Size: {entry.size}. Source: {entry.source}.")
    return lines


def dataset_rows(root: Root) -> list[Row]:
    """One row per data set below the root: name, cases, channels, labels, planned configurations."""
    rows: list[Row] = [("data set", "cases", "channels", "labels", "planned")]
    folders = [*_folders(root.raw), *_folders(root.preprocessed)]
    for name in sorted({folder.name for folder in folders}):
        description = _first(root.raw_dataset(name) / DATASET_FILE, root.preprocessed / name / DATASET_FILE)
        if description is None:
            rows.append((name, *(ABSENT,) * 3, "no readable dataset.json"))
            continue
        labels = ", ".join(label for label, _ in description.labels.foreground)
        if description.labels.regions:
            labels += " (regions)"
        planned = _planned(root.preprocessed / name / PLANS_FILE)
        rows.append((name, str(description.num_training), ", ".join(description.channel_names), labels, planned))
    return rows


def run_rows(root: Root) -> list[Row]:
    """One row per run below the root: data set, run, method, its folds and their mean foreground Dice on the validation
    cases, or AP.
    """
    rows: list[Row] = [("data set", "run", "method", "folds (validation Dice or AP)")]
    for dataset in _folders(root.results):
        for folder in _folders(dataset):
            if (folder / RUN_FILE).exists():
                rows.append((dataset.name, folder.name, _method(folder / RUN_FILE), _folds(folder)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned columns, the first one as the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _first(*paths: Path) -> DatasetDescription | None:
    for path in paths:
        try:
            return DatasetDescription.load(path)
        except MedkdError:
            continue
    return None


def _planned(path: Path) -> str:
    try:
        plan = read_json(path)
        return task_of_file(plan).plan_line(plan)
    except (MedkdError, KeyError, TypeError, AttributeError):
        return ABSENT


def _method(path: Path) -> str:
    try:
        run = load(RunDescription, path)
    except MedkdError:
        return "run.json is not readable"
    names = [Path(name).name for name in apart(run.teacher)]
    return ABSENT if run.method is None else f"{run.method} from {' and '.join(names) or ABSENT}"


def _folds(run: Path) -> str:
    states = [f"{fold.name.removeprefix('fold_')}: {_state(fold)}" for fold in sorted(run.glob("fold_*"))]
    return ", ".join(states) or ABSENT


def _state(fold: Path) -> str:
    summary = fold / "validation" / "summary.json"
    if summary.exists():
        try:
            scores = read_json(summary)
            return task_of_file(scores).score_line(scores)
        except (MedkdError, KeyError, TypeError, AttributeError):
            return "summary.json is not readable"
    if (fold / FINAL).exists():
        return "trained"
    return "unfinished" if any((fold / name).exists() for name in (LATEST, BEST)) else "empty"


def _every_network() -> list[Row]:
    rows: list[Row] = []
    for task in every_task():
        if task.list_networks is not None:
            rows += task.list_networks()
    return rows


LISTS: dict[str, Callable[[Root], list[Row]]] = {
    "networks": lambda root: _every_network(),
    "methods": lambda root: method_rows(),
    "datasets": dataset_rows,
    "runs": run_rows,
    "formats": lambda root: format_rows(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_list``."""
    parser = common.parser(
        "List networks, distillation methods, data sets, runs, or formats of predictions.", "medkd_list networks"
    )
    parser.add_argument("what", choices=list(LISTS), help="what to list; datasets and runs are those below --root")
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects instead of a table")
    return common.run(_list, parser, argv)


def _list(options: argparse.Namespace) -> int:
    root = Root.resolve(options.root)
    rows = LISTS[options.what](root)
    if options.json:
        entries = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
        print(json.dumps(entries, indent=2))
        return 0
    print(table(rows))
    if options.what == "methods" and options.verbose:
        print("\n" + "\n".join(departure_lines()))
    if options.what == "networks":
        print(
            "\nat 1 channel, 14 classes, patch 96³ (3D) or 512² (2D); * takes its shape from the plan, here nnU-Net's "
            "for that patch"
        )
    elif len(rows) == 1 and options.what != "methods":
        print(f"(none below {root.raw.parent})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
