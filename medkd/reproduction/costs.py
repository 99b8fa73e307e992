"""What a recipe's runs would need: steps, hours, and space on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from medkd.core.dataset import SEGMENTATION
from medkd.core.errors import MedkdError
from medkd.core.numbers import whole_number
from medkd.reproduction.checks import task_of_network
from medkd.reproduction.graph import Node, Word
from medkd.reproduction.state import Record

if TYPE_CHECKING:
    from medkd.reproduction.reproduce import Work

GIB = 2**30
_BYTES_PER_PARAMETER = 16  # final, best and latest weights, and the momentum, 4 bytes each
_BESIDE = 50 * 2**20  # logs, pictures and predictions of a fold, roughly
_PREPARED = 4.0  # preprocessed cases take so many times the space of compressed scans, roughly


def costs(work: Work) -> list[str]:
    """Lines about what the recipe's runs need."""
    recipe = work.recipe
    trained = [node for node in work.chosen.values() if node.words[0] in ("train", "train_distill")]
    lines = [f"runs: {len(trained)} trainings"]
    counted = [_steps(node) for node in trained]
    known = [steps for steps in counted if steps is not None]
    if len(known) < len(counted):
        lines.append(f"steps: unknown for {len(counted) - len(known)} of the trainings; their protocol or plan says")
    if known:
        lines.append(f"steps: {sum(known):,} in {len(known)} trainings")
    if recipe.seconds_per_step is not None:
        hours = recipe.seconds_per_step * sum(known) / 3600
        lines.append(f"time: about {hours:.1f} h of {recipe.hardware or 'the stated hardware'} for the known steps")
    lines += _time_here(trained, work.state.read(), stated=recipe.seconds_per_step is not None)
    return [*lines, *_searches(work), *_disk(work, trained)]


def _time_here(trained: Sequence[Node], records: Mapping[str, Record], *, stated: bool) -> list[str]:
    """How long the trainings that are left will take, one after another, if they take what those that are done did."""
    done = {node.name: records[node.name].seconds for node in trained if _took(records.get(node.name))}
    left = [node for node in trained if node.name not in done]
    if not done and not stated:
        return ["time: unknown, the recipe states no measured seconds per step, and no training is done"]
    if not done or not left:
        return []
    hours = _seconds_of(left, trained, done) / 3600
    trainings = "1 training that is" if len(left) == 1 else f"{len(left)} trainings that are"
    return [f"time: about {hours:.1f} h for the {trainings} left, one after another, by the {len(done)} that are done"]


def _seconds_of(left: Sequence[Node], trained: Sequence[Node], done: Mapping[str, float]) -> float:
    """As those of the same network, width and method took, or all that are done in the mean."""
    alike: dict[str, list[float]] = {}
    for node in trained:
        if node.name in done:
            alike.setdefault(_way(node), []).append(done[node.name])
    mean = fmean(done.values())
    return sum(fmean(alike.get(_way(node), [mean])) for node in left)


def _took(record: Record | None) -> bool:
    return record is not None and record.status == "done" and record.seconds > 0


def _way(node: Node) -> str:
    """Network, width and method of a training, on which its time depends most."""
    return f"{_network(node)}/{node.method}"


def _searches(work: Work) -> list[str]:
    """What searches train beside the runs."""
    teachers = students = 0
    for node in work.chosen.values():
        search = work.recipe.methods[node.method].search if node.kind == "search" and node.method else None
        if search is not None:
            teachers += search.folds
            students += search.trials * search.folds
    return [f"searches: {teachers} teachers and {students} students on inner folds"] if students else []


def _steps(node: Node) -> int | None:
    """Optimiser steps of a training, where its own words say both numbers."""
    numbers = []
    for option in ("--epochs", "--iterations-per-epoch"):
        number = whole_number(str(_after(node.words, option))) if option in node.words else None
        if number is None:
            return None
        numbers.append(number)
    return numbers[0] * numbers[1]


def _after(words: tuple[Word, ...], option: str) -> Word:
    return words[words.index(option) + 1]


def _disk(work: Work, trained: list[Node]) -> list[str]:
    """What is free, and what runs and preprocessed cases are going to take."""
    records = work.state.read()
    measured, missing = [], []
    for node in trained:
        folder = _folder(records, node)
        if folder is None:
            missing.append(node)
        else:
            measured.append(size_of(folder))
    runs = _size_to_come(missing)
    lines = []
    if measured:
        lines.append(f"disk: {sum(measured) / GIB:.1f} GiB in the {len(measured)} trainings that are done")
    cases = _prepared(work)
    free = shutil.disk_usage(_existing(work.root.raw.parent)).free
    text = f"disk: about {runs / GIB:.1f} GiB for {len(missing)} trainings"
    text += ", preprocessed cases unknown until the data are there" if cases is None else ""
    text += f" and {cases / GIB:.1f} GiB for preprocessed cases" if cases else ""
    lines.append(f"{text}; {free / GIB:.0f} GiB are free")
    if runs + (cases or 0) > free:
        lines.append("disk: that is more than is free; give another --root, or make room")
    return lines


def _size_to_come(missing: list[Node]) -> float:
    """Bytes that trainings will take, of which many have the same network."""
    sizes: dict[str, float] = {}
    for node in missing:
        network = _network(node)
        if network not in sizes:
            sizes[network] = _fold_size(node)
    return sum(sizes[_network(node)] for node in missing)


def _folder(records: Mapping[str, Record], node: Node) -> Path | None:
    record = records.get(node.name)
    done = record is not None and record.status == "done" and record.folder and Path(record.folder).is_dir()
    return Path(record.folder) if record is not None and done else None


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _network(node: Node) -> str:
    """Network and width of a training, by which its size is known."""
    place = 2 if node.words[0] == "train" else 3
    width = _after(node.words, "--width-divisor") if "--width-divisor" in node.words else "1"
    return f"{node.words[place]}/{width}"


def _fold_size(node: Node) -> float:
    """Bytes that a fold of a network takes, from its parameters at the size at which networks are compared."""
    name, _, width = _network(node).partition("/")
    flat = "--configuration" in node.words and _after(node.words, "--configuration") == "2d"
    try:
        parameters = _parameters(name, 2 if flat else 3)
    except (MedkdError, ImportError):  # what exists not is said elsewhere
        parameters = 0
    return parameters / max(whole_number(width) or 1, 1) ** 2 * _BYTES_PER_PARAMETER + _BESIDE


def _parameters(name: str, rank: int) -> int:
    from medkd.networks import NETWORKS
    from medkd.networks.complexity import count_parameters
    from medkd.networks.reference import build_weightless, reference_spec

    if task_of_network(name) == SEGMENTATION:
        ranks = NETWORKS[name].ranks
        return count_parameters(build_weightless(reference_spec(name, rank if rank in ranks else min(ranks))))
    from medkd.detection.base import DETECTORS, DetectorSpec

    return count_parameters(DETECTORS[name].build(DetectorSpec(name, ("object",), 640, 2.0)))


def _prepared(work: Work) -> float | None:
    """Bytes of preprocessed cases that are not there yet; None where the data are not there either."""
    data = work.recipe.dataset
    name = f"Dataset{data.number:03d}_{data.name}"
    if (work.root.preprocessed / name).is_dir():
        return 0.0
    raw = work.root.raw_dataset(name)
    return _PREPARED * size_of(raw) if raw.is_dir() else None


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
