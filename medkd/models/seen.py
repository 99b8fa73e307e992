"""What a network of one data set has seen of another: cases are the same where their content is, whatever they are
called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from medkd.core.errors import RunError
from medkd.core.run import TEACHER_FILE
from medkd.models.stated import stated_cases

Contents = Callable[[Path], Mapping[str, str]]
"""Preprocessed data set → case → hash of its voxels or pixels; empty where nobody has kept any."""


def seen_here(
    seen: Collection[str], home: str, cases: Sequence[str], raw: Path, contents: Callable[[str], Mapping[str, str]]
) -> frozenset[str]:
    """Seen cases as the student's data set names them, and beside them those of other data sets as ``DATASET/case``.

    A case counts as seen if its content was; where the content of one of two is not known, names decide.

    Args:
        seen: as a ``split.json`` names them: cases of ``home``, or ``DATASET/case``.
        home: the data set of the network.
        cases: the training cases of the student's data set.
        raw: its raw folder, which is called as the data set.
        contents: data set → case → hash, see :data:`Contents`.
    """
    found = set[str]()
    for dataset, names in _by_dataset(seen, home).items():
        if dataset == raw.name:
            found |= names
        else:
            found |= same_cases(cases, contents(raw.name), names, contents(dataset))
            found |= {f"{dataset}/{name}" for name in names}
    return frozenset(found)


def stated_or_same(
    model: Path,
    seen: Collection[str],
    home: str,
    cases: Sequence[str],
    raw: Path,
    contents: Callable[[str], Mapping[str, str]],
) -> frozenset[str]:
    """The same; of another data set a ``teacher.json`` in the model's folder may state it, against what names say.

    Args:
        model: the folder.
        seen: as for :func:`seen_here`, like the rest.
        home: likewise.
        cases: likewise.
        raw: likewise.
        contents: likewise.

    Raises:
        RunError: the content of the cases contradicts the statement.
    """
    stated = None if home == raw.name else stated_cases(model, cases)
    if stated is None:
        return seen_here(seen, home, cases, raw, contents)
    names = {name for name in seen if "/" not in name}
    missing = same_cases(cases, contents(raw.name), names, contents(home), sure=True) - stated
    if missing:
        raise RunError(
            f"{model / TEACHER_FILE} does not name {len(missing)} cases of the data set under 'train' that are, by "
            f"their content, cases of {home} on which the model was trained, for example {min(missing)}; list them, or "
            "remove the file."
        )
    others = seen_here(seen, home, (), raw, contents)
    return stated | {name for name in others if "/" in name}


def how_cleared(model: Path, home: str, raw: Path) -> str:
    """The end of a sentence: what to do where cases of another data set count as seen; empty for the model's own."""
    if home == raw.name:
        return ""
    return (
        f"; or, if its cases of {home} are others that are only called so, preprocess both data sets, so that they are "
        f'told apart by their content, or state it in {model / TEACHER_FILE}: {{"train": []}}'
    )


def same_cases(
    cases: Sequence[str],
    ours: Mapping[str, str],
    names: Collection[str],
    theirs: Mapping[str, str],
    *,
    sure: bool = False,
) -> frozenset[str]:
    """Those of the ``cases`` that are among another data set's ``names``.

    Args:
        cases: of the student's data set.
        ours: their hashes, as far as they are known.
        names: of the other data set's cases.
        theirs: their hashes, likewise.
        sure: by their content alone.
    """
    hashes = {theirs[name] for name in names if theirs.get(name)}
    nameless = {name for name in names if not theirs.get(name)}
    found = set()
    for case in cases:
        content = ours.get(case)
        if content in hashes or (not sure and case in (nameless if content else names)):
            found.add(case)
    return frozenset(found)


def kept_contents(folders: Sequence[Path], read: Contents) -> Callable[[str], Mapping[str, str]]:
    """Looks for the hashes of a data set's cases in the first of some preprocessed folders that holds any.

    Args:
        folders: ``preprocessed`` folders of root folders.
        read: reads those of a data set.
    """

    def contents(dataset: str) -> Mapping[str, str]:
        for folder in dict.fromkeys(folders):
            found = read(folder / dataset)
            if found:
                return found
        return {}

    return contents


def _by_dataset(seen: Collection[str], home: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in seen:
        dataset, _, case = name.rpartition("/")
        found.setdefault(dataset or home, set()).add(case)
    return found
