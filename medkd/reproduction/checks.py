"""Whether the networks, methods and parameters of a recipe exist, without training anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from medkd.core.dataset import SEGMENTATION
from medkd.core.device import check_device_of_runs
from medkd.core.errors import DataError, MedkdError
from medkd.core.protocol_rows import NO_PROTOCOL
from medkd.core.run import DETECTION
from medkd.core.serial import from_data, nearest
from medkd.reproduction.recipe import MethodRow, Recipe
from medkd.reproduction.recipe_values import PHANTOM
from medkd.reproduction.search import whole_parameters
from medkd.tasks import TASKS, refuse_beside_like, refuse_foreign

PREPARE_OPTIONS = (
    "configuration",
    "workers",
    "gpu_memory",
    "protocol",
    "like",
    "reorient",
    "mirror_axes",
    "image_size",
    "batch_size",
    "overwrite_plan",
    "strict",
    "no_verify",
)
"""Options of ``medkd_plan_and_preprocess`` that a recipe may set, by the command's names."""

_OF_EVERY_PREPARATION = ("workers", "overwrite_plan", "strict", "no_verify")
_IN_PYTHON = {"configuration": "configurations", "gpu_memory": "gpu_memory_gb", "reorient": "orientation"}


def unknown_names(recipe: Recipe) -> list[str]:
    """One sentence per format, network, method or parameter of a recipe that medkd does not have."""
    from dataset_conversion import CONVERTERS

    found, tasks = [], set[str]()
    data_format = recipe.dataset.format
    if data_format != PHANTOM and data_format not in CONVERTERS:
        known = f"{nearest(data_format, CONVERTERS)} There are: {PHANTOM}, {', '.join(CONVERTERS)}."
        found.append(f"dataset.format: medkd_convert knows no '{data_format}'.{known}")
    networks = {f"teachers.{name}": row.network for name, row in recipe.teachers.items() if row.network is not None}
    networks |= {f"students.{name}": row.network for name, row in recipe.students.items()}
    for where, network in networks.items():
        found += _said(where, lambda network=network: tasks.add(task_of_network(network)))  # type: ignore[misc]
    if len(tasks) > 1:
        found.append("teachers and students: networks for segmentation and detectors cannot be in one table.")
    for task in sorted(tasks)[:1]:
        found += _said("dataset.format", partial(_check_format, data_format, task))
        for name, method in recipe.methods.items():
            found += _said(f"methods.{name}", partial(_check_method, method, task))
        found += unknown_settings(recipe, task)
    return found


def unknown_settings(recipe: Recipe, task: str) -> list[str]:
    """One sentence per setting or protocol that the trainings, or the preparation, would refuse."""
    found = []
    for option in recipe.dataset.prepare:
        if option not in PREPARE_OPTIONS:
            known = f"{nearest(option, PREPARE_OPTIONS)} There are: {', '.join(PREPARE_OPTIONS)}."
            found.append(f"dataset.prepare: medkd_plan_and_preprocess has no '{option}'.{known}")
    found += _said("dataset.prepare", partial(_check_prepare, recipe, task))
    protocols = {"protocol": recipe.protocol}
    shared = _said("settings", partial(_check_settings, recipe.settings, task))
    found += shared
    for where, values in {} if shared else trained_settings(recipe).items():
        found += _said(where, partial(_check_settings, values, task))
        protocols[f"{where}: protocol"] = values.get("protocol")
    found += dict.fromkeys(_searches_of_unlabelled(recipe))
    for where, protocol in protocols.items():
        if protocol not in (None, NO_PROTOCOL):
            found += _said(where, partial(_check_protocol, str(protocol), recipe.dataset.format, task))
    return found


def _searches_of_unlabelled(recipe: Recipe) -> Iterator[str]:
    """Searches that would be refused, since scans without labels take no part in them."""
    for _, student, method in recipe.combinations():
        row = recipe.methods[method]
        asked = {**recipe.settings, **recipe.students[student].settings, **row.settings}
        if row.search is not None and asked.get("unlabelled_share"):
            yield (
                f"methods.{method}.search: a search trains on the labelled cases of a fold alone, so that "
                "'unlabelled_share' has nothing to draw from there; leave one of them out."
            )


def trained_settings(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Where the settings of a training stand → what they are together."""
    found = {}
    for name, teacher in recipe.teachers.items():
        if teacher.network is not None:
            taught: Mapping[str, Any] = {} if teacher.method is None else recipe.methods[teacher.method].settings
            found[f"teachers.{name}"] = {**recipe.settings, **taught, **teacher.settings}
    for _, student, method in recipe.combinations():
        row, way = recipe.students[student], recipe.methods[method]
        found[f"students.{student} by methods.{method}"] = {**recipe.settings, **row.settings, **way.settings}
    return found


def _check_format(data_format: str, task: str) -> None:
    """A format makes data sets for the task of the networks."""
    from dataset_conversion import CONVERTERS

    made: str | None = SEGMENTATION if data_format == PHANTOM else None
    if data_format in CONVERTERS:
        made = CONVERTERS[data_format].task
    if made not in (None, task):
        raise DataError(
            f"'{data_format}' makes a data set for {made}, but the networks are for {task}; name another format, or "
            "other networks"
        )


def _check_prepare(recipe: Recipe, task: str) -> None:
    """Options of another task, and those of a plan of its own beside ``like``."""
    given = {"protocol": recipe.protocol, **recipe.dataset.prepare}
    names = [_IN_PYTHON.get(name, name) for name, value in given.items() if value not in (None, False)]
    own = [name for name in names if name not in _OF_EVERY_PREPARATION]
    refuse_foreign(TASKS[task], "prepare", own, "the recipe", DataError)
    if "like" in own:
        refuse_beside_like(own)


def _check_settings(settings: Mapping[str, Any], task: str) -> None:
    values = {name: value for name, value in settings.items() if value is not None}
    options = from_data(TASKS[task].column("training_options"), values, "")
    if options.device is not None:
        check_device_of_runs(options.device)


def _check_protocol(text: str, data_format: str, task: str) -> None:
    from medkd.core.protocol_files import find_detection_protocol, find_protocol

    find = find_protocol if task == SEGMENTATION else find_detection_protocol
    find(text, {"medkd": {"format": data_format}})


def task_of_network(name: str) -> str:
    """The task of a network or detector.

    Raises:
        DataError: there is none of this name.
        RunError: it may be a detector of a library that is not installed.
    """
    from medkd.detection.base import DETECTORS
    from medkd.detection.families import register_detectors
    from medkd.networks import NETWORKS

    if name in NETWORKS:
        return SEGMENTATION
    register_detectors(name)
    if name not in DETECTORS:
        raise DataError(f"there is no network or detector '{name}'; medkd_list networks lists them")
    return DETECTION


def _check_method(row: MethodRow, task: str) -> None:
    from medkd.detection.methods import DETECTION_METHODS
    from medkd.distillation.build import check_method

    check_method(row.method, row.parameters, task, DETECTION_METHODS if task == DETECTION else None)
    if row.search is not None:
        whole_parameters(row.method, row.search, task)


def _said(where: str, look: Callable[[], object]) -> list[str]:
    try:
        look()
    except MedkdError as error:
        text = str(error).removeprefix(": ")
        return [f"{where}: {text}" if text.endswith((".", "?")) else f"{where}: {text}."]
    return []
