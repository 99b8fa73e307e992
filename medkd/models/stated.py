"""Which cases the weights of a model from elsewhere have seen, where somebody states it: ``"train"`` in a
``teacher.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.core.boxes import IMAGE_ENDINGS
from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.core.run import TEACHER_FILE
from medkd.core.serial import load
from medkd.io.volumes import any_ending


@dataclass(frozen=True)
class Stated:
    """``teacher.json`` beside a model that says everything else itself.

    Attributes:
        train: the case ids that the weights were trained on; an empty list states that none of the data set's cases was
            among them.
    """

    train: tuple[str, ...]
    schema: int = 1


def stated_cases(folder: Path, cases: Sequence[str]) -> frozenset[str] | None:
    """What the ``teacher.json`` of such a model states; None where there is none.

    Args:
        folder: of the model.
        cases: of the data set.

    Raises:
        DataError: the file holds anything else.
        RunError: it names its cases otherwise than the data set.
    """
    file = folder / TEACHER_FILE
    return named_cases(load(Stated, file).train, cases, file) if file.is_file() else None


def stated_beside(weights: Path, cases: Sequence[str]) -> frozenset[str] | None:
    """What the ``teacher.json`` beside a file of weights states; None where there is none, or another file is meant.

    Args:
        weights: the file.
        cases: of the data set.

    Raises:
        RunError: ``train`` is no list of names, or names cases otherwise than the data set.
    """
    file = weights.parent / TEACHER_FILE
    content = read_json(file) if file.is_file() else None
    if not isinstance(content, Mapping) or "train" not in content:
        return None
    if content.get("weights", weights.name) != weights.name:
        return None
    names = content["train"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError(f"{file}: 'train' must be a list of case names, found {names!r:.60}; correct it.")
    return named_cases(names, cases, file)


def named_cases(train: Sequence[str], cases: Sequence[str], file: Path) -> frozenset[str]:
    """The stated cases, which must be named as the data set names its own.

    Raises:
        RunError: they are not.
    """
    strange = sorted(set(train) - set(cases))
    files = [name for name in strange if _is_file_name(name)]
    if files or (strange and len(strange) == len(set(train))):
        example = min(cases, default="case_01")
        raise RunError(
            f"{file}: 'train' names {(files or strange)[0]}, which is no case of the data set; list its cases without "
            f'folder, channel and ending, as in "{example}", or write [] if the weights have seen none of them.'
        )
    return frozenset(train)


def _is_file_name(name: str) -> bool:
    path = Path(name)
    ending = any_ending(path) or (path.suffix.lower() in IMAGE_ENDINGS)
    return "/" in name or "\\" in name or bool(ending) or name.endswith("_0000")
