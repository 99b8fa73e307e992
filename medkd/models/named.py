"""Models as users name them: by a folder, or by data set and run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medkd.core.errors import RunError
from medkd.core.paths import Root
from medkd.core.serial import nearest
from medkd.tasks import TASKS, Task

if TYPE_CHECKING:
    from medkd.core.dataset import DatasetDescription


def find_model(model: str | Path, root: str | Path | None = None) -> Path:
    """A folder that can predict, given as a path or as ``DATASET/RUN``.

    Raises:
        RunError: neither exists; the runs of the data set are named.
    """
    path = Path(model)
    if path.exists() or len(path.parts) != 2:
        return path
    dataset, run = path.parts
    place = Root.resolve(root)
    folder = place.results / place.dataset_name(dataset)
    if not (folder / run).is_dir():
        runs = sorted(entry.name for entry in folder.glob("*") if entry.is_dir())
        known = ", ".join(runs) or "none"
        raise RunError(f"{folder} has no run '{run}'.{nearest(run, runs)} Runs: {known}.")
    return folder / run


def task_of_model(model: Path) -> Task:
    """The task of a run folder, or of another model.

    Raises:
        RunError: the folder holds no model.
    """
    from medkd.models.base import open_model  # loads torch, which the other questions do without

    return TASKS[open_model(model).task]


def data_of_model(path: str | Path) -> DatasetDescription:
    """Labels, channels and the ending of the files that a model for segmentation takes, as a ``dataset.json`` says
    them; of several in a list the structures of all, in their order.

    Args:
        path: the model's folder.

    Raises:
        MedkdError: there is no such model, or it cannot be rebuilt.
    """
    from medkd.core.dataset import DatasetDescription
    from medkd.models.base import open_model  # loads torch
    from medkd.models.several import SeveralTeachers, joined_labels

    model = open_model(Path(path), "segmentation")
    found = model.describe()
    count = len(found.configuration.normalization)
    names = found.channels or tuple(f"channel_{number}" for number in range(count))
    labels = joined_labels(model.members) if isinstance(model, SeveralTeachers) else found.labels
    ending = _ending_of(Path(path))
    data = DatasetDescription(channel_names=names, labels=labels, num_training=0, file_ending=ending)
    if isinstance(model, SeveralTeachers):
        model.check_fits(found.plan, found.configuration.name, data)
    return data


def _ending_of(model: Path) -> str:
    """Of pictures, where the model was trained on such; all else is written as NIfTI."""
    from medkd.core.dataset import DatasetDescription
    from medkd.io.volumes import PICTURES

    described = model / "dataset.json"
    ending = DatasetDescription.load(described).file_ending if described.is_file() else ""
    return ending if ending in PICTURES else ".nii.gz"
