"""Which training images an epoch shows, and how often: classes balanced and negatives limited, as the plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medkd.core.errors import PlanError
from medkd.core.serial import nearest
from medkd.detection.plan import DetectionPlan

JOIN = "+"
"""Between the categories of a key of the plan's ``sampling`` that names several."""


def draw_epoch(
    cases: Sequence[str], annotations: Mapping[str, Sequence[str]], plan: DetectionPlan, seed: int, epoch: int
) -> list[str]:
    """The training images of one epoch, in random order; an image may occur several times or not at all.

    Images fall into groups: those whose boxes have exactly the categories of a key of ``plan.sampling``
    (``fracture+text``: some of both and of nothing else), those without boxes, and all others. Of a group of ``n``
    images with weight ``w`` an epoch shows ``w n`` on average, of the negatives ``min(n, negatives × shown images with
    boxes)``. The group is walked through in a random, fixed order, and every epoch goes on where the last one stopped,
    so that all images of a group are shown equally often.

    The idea is the sampler of SFD-KD, which keeps a tenth of the images with nothing but a fracture and a text marker.

    Args:
        cases: training cases of the fold.
        annotations: case → category of each of its boxes, empty for a negative.
        plan: ``sampling`` and ``negatives`` are read.
        seed: of the run.
        epoch: 0-based.

    Returns:
        Case ids; the same for the same arguments.

    Raises:
        PlanError: a key of ``sampling`` names an unknown category or two keys the same ones, a weight is negative, or
            nothing is drawn.
    """
    weights = sampling_groups(plan)
    groups: dict[frozenset[str], list[str]] = {}
    for case in sorted(set(cases)):
        groups.setdefault(_group(annotations[case], weights), []).append(case)
    negatives = groups.pop(_NEGATIVES, [])
    rates = {key: weights.get(key, 1.0) * len(members) for key, members in groups.items()}
    most = len(negatives) if plan.negatives is None else min(len(negatives), plan.negatives * sum(rates.values()))
    drawn: list[str] = []
    for key, members in [*sorted(groups.items(), key=lambda item: sorted(item[0])), (_NEGATIVES, negatives)]:
        drawn += _window(members, rates.get(key, most), seed, epoch)
    if not drawn:
        raise PlanError(
            "The plan's sampling draws no training image; check 'sampling' and 'negatives' in plans.json against this "
            "fold."
        )
    order = np.random.default_rng([seed, epoch]).permutation(len(drawn))
    return [drawn[i] for i in order]


@dataclass(frozen=True)
class UnlabelledSteps:
    """Which steps of a training show images without annotation: whole batches, evenly spread.

    A batch is of one kind, so that the detector's own loss and the mosaics of its augmentation never see an image whose
    boxes are missing.

    Attributes:
        share: of the steps.

    >>> steps = UnlabelledSteps(0.4)
    >>> [steps.is_unlabelled(step) for step in range(5)]
    [False, False, True, False, True]
    """

    share: float = 0.0

    def is_unlabelled(self, step: int) -> bool:
        """Whether the batch of a step is of images without annotation."""
        return self.before(step + 1) > self.before(step)

    def before(self, step: int) -> int:
        """How many of the steps before this one are."""
        return int(np.floor(step * self.share + 1e-9))

    def steps_of(self, labelled: int, unlabelled: int) -> int:
        """Steps of an epoch in which so many labelled batches are shown once; of all unlabelled ones, where there are
        no others.
        """
        return unlabelled if self.share >= 1 else round(labelled / (1 - self.share))


def walk(cases: Sequence[str], seed: int, position: int, count: int) -> list[str]:
    """Cases of a walk through random orders of all of them, from a position on.

    Args:
        cases: at least one.
        seed: of the run.
        position: how many were drawn before.
        count: how many to draw.
    """
    drawn: list[str] = []
    order, turn = np.empty(0, np.int64), -1
    for place in range(position, position + count):
        if place // len(cases) != turn:
            turn = place // len(cases)
            order = np.random.default_rng([seed, turn, 1]).permutation(len(cases))
        drawn.append(cases[order[place % len(cases)]])
    return drawn


def sampling_groups(plan: DetectionPlan) -> dict[frozenset[str], float]:
    """The keys of ``plan.sampling`` as sets of categories, with their weights.

    Raises:
        PlanError: see :func:`draw_epoch`.
    """
    groups: dict[frozenset[str], float] = {}
    for key, weight in plan.sampling.items():
        names = frozenset([key] if key in plan.categories else key.split(JOIN))
        unknown = sorted(names - set(plan.categories))
        if unknown:
            raise PlanError(
                "plans.json: 'sampling' names the unknown category "
                f"'{unknown[0]}'.{nearest(unknown[0], plan.categories)}"
            )
        if names in groups or not weight >= 0:
            wrong = "is there twice" if names in groups else f"has the weight {weight}"
            raise PlanError(
                f"plans.json: '{key}' in 'sampling' {wrong}; expected each set of categories once, with a number from "
                "0 on."
            )
        groups[names] = weight
    if plan.negatives is not None and not plan.negatives >= 0:
        raise PlanError(f"plans.json: expected 'negatives' from 0 on, or null for all, found {plan.negatives}.")
    return groups


_NEGATIVES: frozenset[str] = frozenset()
_OTHERS = frozenset([""])  # no category is called so


def _group(names: Sequence[str], weights: Mapping[frozenset[str], float]) -> frozenset[str]:
    found = frozenset(names)
    return found if not found or found in weights else _OTHERS


def _window(members: Sequence[str], rate: float, seed: int, epoch: int) -> list[str]:
    """The ``rate`` members (on average) that are this epoch's turn."""
    if not members:
        return []
    order = np.random.default_rng(seed).permutation(len(members))
    first, last = (int(np.floor(e * rate + 1e-9)) for e in (epoch, epoch + 1))
    return [members[order[i % len(members)]] for i in range(first, last)]
