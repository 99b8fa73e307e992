"""What a trained fold, or the scores of a model from elsewhere, were made from, and whether that is another by now.

Whoever takes finished work for done asks here: trainings that continue, recipes, compressions, searches and reports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from medkd.core.checkpoint import SAFETENSORS, load_checkpoint, stored_checkpoint, weights_digest
from medkd.core.errors import MedkdError
from medkd.core.files import read_json
from medkd.core.made_with import known_digest, state_of
from medkd.core.run import DETECTION, FINAL, PLANS_FILE
from medkd.core.serial import load, save

MADE_FROM_FILE = "made_from.json"
_INDEX = "cases.json"  # of a store of radiographs
_NOT_LEARNT = ("ignored", "ignored_classes")  # crowds, by which a detector is judged only
_NOT_SHOWN = "crowds_alone"  # of an image that would be a negative without them, and is not trained on
_UNLABELLED = "unlabelled"  # folder of the scans without labels


@dataclass(frozen=True, kw_only=True)
class MadeFrom:
    """``fold_K/made_from.json``; folds of earlier versions have none, and are taken as they are.

    Attributes:
        weights: file of weights, below medkd's folder relative to it → hash of the weights in it.
        cases: preprocessed case that it was trained on, with label or not, or that a model from elsewhere predicted →
            hash of what it was made from, and how.
        plan: hash of the configuration in the data set's plan.
        called: what the folders or files of models were called before they were moved.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    cases: Mapping[str, str] = field(default_factory=dict)
    plan: str = ""
    called: tuple[str, ...] = ()
    schema: int = 1


def note_inputs(fold: Path, configuration: str, weights: Iterable[Path], cases: Iterable[str] = ()) -> None:
    """Write what a fold is made from, as it is now.

    Args:
        fold: ``<root>/results/DATASET/RUN/fold_K``.
        configuration: of the run.
        weights: files of the networks that teach it, or that it starts from.
        cases: on which it is trained, or which are predicted.
    """
    digests = {}
    for file in dict.fromkeys(weights):
        if file.is_file():
            digests[_told(file, _root(fold))] = weights_in(file)
    plan = prepared_plan(_prepared(fold), configuration)
    known = prepared_cases(_prepared(fold) / configuration, cases)
    save(fold / MADE_FROM_FILE, MadeFrom(weights=digests, cases=known, plan=plan, called=former_names(fold)))


def renew_inputs(fold: Path, configuration: str) -> None:
    """Write the same things as they are now, once it is known that their differences do not matter to this fold."""
    known = _read(fold)
    note_inputs(fold, configuration, [stored_checkpoint(_root(fold) / told) for told in known.weights], known.cases)


def noted_weights(fold: Path) -> dict[Path, str]:
    """File of weights, absolute, where it lay when a fold was made from it → hash of the weights in it.

    Raises:
        DataError: the record is damaged.
    """
    return {_root(fold) / told: digest for told, digest in _read(fold).weights.items()}


def former_names(fold: Path) -> tuple[str, ...]:
    """What the models from which a fold was made were called before they were moved."""
    return _read(fold).called


def note_places(fold: Path, places: Mapping[Path, Path], called: str) -> None:
    """Write where files of weights lie now that were moved since a fold was made from them.

    Args:
        fold: fold folder.
        places: old → new, absolute.
        called: what their model was called.
    """
    weights = {}
    for file, digest in noted_weights(fold).items():
        weights[_told(places.get(file, file), _root(fold))] = digest
    names = tuple(dict.fromkeys((*former_names(fold), called)))
    save(fold / MADE_FROM_FILE, replace(_read(fold), weights=weights, called=names))


def changed_weights(fold: Path) -> str | None:
    """What has happened to the weights that taught a fold, or were scored in it; None where they are the same, are not
    there, or nobody knows.

    Raises:
        DataError: the record is damaged.
    """
    for told, digest in _read(fold).weights.items():
        file = stored_checkpoint(_root(fold) / told)
        if file.is_file() and weights_in(file) != digest:
            return f"{file} holds other weights than when {fold} was made with it"
    return None


def changed_cases(fold: Path, configuration: str) -> str | None:
    """What has happened to the preprocessed cases from which a fold was made; None where they are the same, are not
    there, or nobody knows.

    Raises:
        DataError: the record is damaged.
    """
    store, cases = _prepared(fold) / configuration, _read(fold).cases
    now = prepared_cases(store, cases)
    found = [case for case, digest in now.items() if digest != cases[case]]
    if not found:
        return None
    return (
        f"{len(found)} of the {len(cases)} cases from which {fold} was made were preprocessed anew from other files, "
        f"or otherwise, for example {found[0]}"
    )


def changed_inputs(fold: Path, configuration: str) -> str | None:
    """The first of :func:`changed_weights` and :func:`changed_cases`: the fold has to be made anew."""
    return changed_weights(fold) or changed_cases(fold, configuration)


def outdated(fold: Path, configuration: str) -> str | None:
    """Likewise, or that the plan is another; the fold's command says whether that matters to it.

    Args:
        fold: that was trained or scored.
        configuration: of its run.

    Raises:
        DataError: the record is damaged.
    """
    known, now = _read(fold).plan, prepared_plan(_prepared(fold), configuration)
    if known and now and known != now:
        return changed_inputs(fold, configuration) or f"{_prepared(fold) / PLANS_FILE} is another than for {fold}"
    return changed_inputs(fold, configuration)


def weights_in(file: Path) -> str:
    """A hash of the weights in a file: of a checkpoint of medkd's of these alone, of others of all that they hold."""
    return _weights_in(file, state_of(file))


@lru_cache(maxsize=1_000)
def _weights_in(file: Path, state: tuple[int, ...]) -> str:
    if file.name in (FINAL, Path(FINAL).with_suffix(SAFETENSORS).name):
        try:
            return weights_digest(load_checkpoint(file)["network"])
        except (MedkdError, KeyError, AttributeError):  # of another library that calls its files so
            pass
    return known_digest(file)


def prepared_case(store: Path, case: str) -> str | None:
    """A hash of what a preprocessed case was made from, and how, by content; None where it is not there.

    Args:
        store: ``<root>/preprocessed/DATASET/CONFIGURATION``.
        case: with or without label.
    """
    if (store / _INDEX).is_file():
        return _radiographs(store / _INDEX, state_of(store / _INDEX)).get(case)
    for path in (store / f"{case}.json", store / _UNLABELLED / f"{case}.json"):
        if path.is_file():
            return _scan(path, state_of(path))
    return None


def prepared_cases(store: Path, cases: Iterable[str]) -> dict[str, str]:
    """:func:`prepared_case` of those that are there."""
    return {case: digest for case in cases if (digest := prepared_case(store, case)) is not None}


def prepared_plan(folder: Path, configuration: str) -> str:
    """A hash of what the plan of a preprocessed data set says of a configuration; empty where there is none.

    Args:
        folder: ``<root>/preprocessed/DATASET``.
        configuration: of a run.
    """
    path = folder / PLANS_FILE
    plan = read_json(path) if path.is_file() else None
    if not isinstance(plan, Mapping):
        return ""
    if configuration == DETECTION:
        return _hash(plan)
    planned = plan.get("configurations")
    return _hash(planned[configuration]) if isinstance(planned, Mapping) and configuration in planned else ""


@lru_cache(maxsize=100_000)
def _scan(path: Path, state: tuple[int, ...]) -> str:
    record = read_json(path)
    return _hash([record["recipe"], [file["content"] for file in record["files"]]])


@lru_cache(maxsize=16)
def _radiographs(path: Path, state: tuple[int, ...]) -> dict[str, str]:
    found = {}
    for case, entry in read_json(path)["cases"].items():
        left_out = (*_NOT_LEARNT, "source") if entry.get("pixels") else _NOT_LEARNT
        told = {name: value for name, value in entry.items() if name not in left_out}
        if not told.get("scaling"):  # an image of 8 bits, as entries of earlier versions were written
            told.pop("scaling", None)
        if entry.get("ignored") and not entry["boxes"]:
            told[_NOT_SHOWN] = True
        found[case] = _hash(told)
    return found


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _read(fold: Path) -> MadeFrom:
    path = fold / MADE_FROM_FILE
    return load(MadeFrom, path) if path.is_file() else MadeFrom()


def _root(fold: Path) -> Path:
    return fold.absolute().parents[3]


def _prepared(fold: Path) -> Path:
    return _root(fold) / "preprocessed" / fold.absolute().parents[1].name


def _told(file: Path, root: Path) -> str:
    return str(file.relative_to(root) if file.is_relative_to(root) else file.absolute())
