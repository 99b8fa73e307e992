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
    frequency = Counter(c for found in classes.values() for c in set(found))
    strata = [min(classes[case], key=lambda c: (frequency[c], c), default=0) for case in cases]
    strata = strata if max(Counter(strata).values()) >= folds else [0] * len(cases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class rarer than the folds: nothing can be done about it
        parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=SEED).split(cases, strata, names))
    return [(tuple(cases[i] for i in train), tuple(cases[i] for i in val)) for train, val in parts]


def joined_groups(cases: Iterable[str], patients: Mapping[str, str], twins: Sequence[Sequence[str]]) -> dict[str, str]:
    """Case → the group it must stay with: its patient's, joined over equal images.

    Args:
        cases: all cases.
        patients: case → patient, where known.
        twins: cases with equal images, two or more each.
    """
    groups = {case: f"patient {patients[case]}" if case in patients else case for case in cases}
    for twin in twins:
        members = [groups[case] for case in twin if case in groups]
        for case in [c for c, group in groups.items() if group in members]:
            groups[case] = min(members)
    return groups
