"""Folds of a detection data set: every class in all of them, and what belongs together in one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

FOLDS = 5
SEED = 12345  # nnU-Net's

Fold = tuple[tuple[str, ...], tuple[str, ...]]
"""Training and validation cases."""


def stratified_folds(classes: Mapping[str, Sequence[int]], groups: Mapping[str, str]) -> list[Fold]:
    """Five folds, stratified by the rarest class of an image, groups kept whole (scikit-learn's
    ``StratifiedGroupKFold``).

    Args:
        classes: case → the classes of its boxes, from 1 on; none for a negative.
        groups: case → what must stay together.

    Returns:
        The folds, as many as there are groups where those are fewer than five; none where there is one group only.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    cases = sorted(classes)
    names = [groups.get(case, case) for case in cases]
    folds = min(FOLDS, len(set(names)))
    if folds < 2:
        return []
    strata = _rarest_classes([classes[case] for case in cases])
    if max(Counter(strata).values()) < folds:
        strata = [0] * len(cases)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class rarer than the folds: nothing can be done about it
        parts = list(splitter.split(cases, strata, names))
    return [(_picked(cases, train), _picked(cases, val)) for train, val in parts]


def _rarest_classes(images: Sequence[Sequence[int]]) -> list[int]:
    """Of the classes in each image the one that the fewest images have; 0 for an image without boxes."""
    frequency: Counter[int] = Counter()
    for found in images:
        frequency.update(set(found))
    return [min(found, key=lambda c: (frequency[c], c), default=0) for found in images]


def _picked(cases: Sequence[str], places: Iterable[int]) -> tuple[str, ...]:
    return tuple(cases[place] for place in places)


def joined_groups(cases: Iterable[str], patients: Mapping[str, str], twins: Sequence[Sequence[str]]) -> dict[str, str]:
    """Case → the group it must stay with: its patient's, joined over equal images.

    Args:
        cases: all cases.
        patients: case → patient, where known.
        twins: cases with equal images, two or more each.
    """
    groups = {}
    for case in cases:
        groups[case] = f"patient {patients[case]}" if case in patients else case
    for twin in twins:
        members = [groups[case] for case in twin if case in groups]
        for case, group in groups.items():
            if group in members:
                groups[case] = min(members)
    return groups
