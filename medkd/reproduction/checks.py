"""Whether the networks, methods and parameters of a recipe exist, without training anything."""

from __future__ import annotations

from collections.abc import Callable

from medkd.core.dataset import SEGMENTATION
from medkd.core.errors import DataError, MedkdError
from medkd.core.run import DETECTION
from medkd.core.serial import nearest
from medkd.reproduction.recipe import PHANTOM, MethodRow, Recipe
from medkd.reproduction.search import whole_parameters


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
    for name, method in recipe.methods.items():
        for task in sorted(tasks)[:1]:
            found += _said(f"methods.{name}", lambda method=method, task=task: _check_method(method, task))  # type: ignore[misc]
    return found


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
        return [f"{where}: {str(error).rstrip('.')}."]
    return []
