"""Whether a preprocessed data set's labels still mean what the raw one's do."""

from __future__ import annotations

from pathlib import Path

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.run import DATASET_FILE


def check_meaning(raw: Path, description: DatasetDescription, dataset: str) -> None:
    """See that the preprocessed data set's labels, or categories of boxes, are those of the raw one.

    Args:
        raw: the raw data set; where it is not there, or damaged, the preprocessed one is believed.
        description: the preprocessed ``dataset.json``.
        dataset: full name.

    Raises:
        DataError: they were changed since.
    """
    path = raw / DATASET_FILE
    try:
        now = DatasetDescription.load(path) if path.exists() else description
    except DataError:  # whoever prepares them says what is wrong
        return
    if (now.labels, now.categories) != (description.labels, description.categories):
        raise DataError(
            f"{path} states other labels than {dataset} was preprocessed with; run medkd_plan_and_preprocess -d "
            f"{dataset}."
        )
