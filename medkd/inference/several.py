"""Prediction with several models together, each with its own preprocessing: the mean of their probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medkd.core.errors import RunError
from medkd.core.geometry import Geometry
from medkd.core.limits import option_name
from medkd.core.postprocessing import LargestComponent, keep_largest
from medkd.core.serial import to_data
from medkd.inference.opening import open_predictor
from medkd.models.segmentation import label_meaning, shown_labels
from medkd.models.several import SeveralTeachers, counted, refuse_other_channels, refuse_twice
from medkd.preprocessing.pipeline import Preprocessed
from medkd.runtime.decoding import labels_of
from medkd.runtime.prediction import CasePredictor, Prediction


@dataclass(frozen=True)
class PreparedForSeveral(Preprocessed):
    """A scan as each of several models wants it.

    Attributes:
        parts: one per model; the fields of the case itself are the first one's.
    """

    parts: tuple[Preprocessed, ...] = ()


class SeveralPredictor:
    """Models of equal labels, which are averaged; a :class:`~medkd.runtime.prediction.CasePredictor`.

    The folds of each model are averaged as they always are, then the models' probabilities on the scan's own grid, each
    model counting the same. What :class:`~medkd.runtime.prediction.CasePredictor` says of one model, this says of the
    first.

    Args:
        members: the models' predictors.
        names: of the models, for errors.

    Raises:
        RunError: their labels or channels differ.
    """

    def __init__(self, members: Sequence[CasePredictor], names: Sequence[str]) -> None:
        first = members[0]
        for member in members[1:]:
            if label_meaning(member.labels) != label_meaning(first.labels):
                raise RunError(
                    f"Models that predict together must have the same labels, found {shown_labels(first.labels)} and "
                    f"{shown_labels(member.labels)}; predict with each alone."
                )
        inputs = [(member.channels, len(member.configuration.normalization)) for member in members]
        refuse_other_channels(names, inputs)
        self.members = tuple(members)
        self.plan, self.configuration, self.labels = first.plan, first.configuration, first.labels
        self.channels = first.channels
        self.folds = tuple(dict.fromkeys(fold for member in members for fold in member.folds))
        self.postprocessing: tuple[LargestComponent, ...] = ()

    @classmethod
    def of(
        cls, model: SeveralTeachers, folds: Sequence[int | str] | None = None, device: Any = None, **more: Any
    ) -> SeveralPredictor:
        """The predictor of a list of models.

        Args:
            model: the list.
            folds: of each model, where the list names none; None takes every trained one.
            device: where the networks run.
            more: as for :func:`~medkd.inference.opening.open_predictor`.

        Raises:
            MedkdError: a model cannot be loaded, or they do not belong together.
        """
        members = []
        for member in model.members:
            if member.folds and folds is not None:
                raise RunError(
                    f"{model.path} says itself which folds of {member.model.path} predict; leave out "
                    f"{option_name('folds')}, or the folds there."
                )
            chosen = member.folds or folds
            members.append(open_predictor(member.model, chosen, postprocessing=False, device=device, **more))
        names = [str(member.model.path) for member in model.members]
        weights = [counted(part, member.digests()) for part, member in zip(model.members, members, strict=True)]
        refuse_twice(names, weights)
        return cls(members, names)

    @property
    def step_size(self) -> float:
        """Of the first model."""
        return self.members[0].step_size

    @property
    def used_axes(self) -> tuple[int, ...]:
        """Of the first model."""
        return self.members[0].used_axes

    @property
    def blending(self) -> str:
        """Of the first model."""
        return self.members[0].blending

    @property
    def arithmetic(self) -> str:
        """Of the first model."""
        return self.members[0].arithmetic

    @property
    def engine_name(self) -> str:
        """Of all models."""
        return ", ".join(dict.fromkeys(member.engine_name for member in self.members))

    def digests(self) -> tuple[str, ...]:
        """A hash of each network's weights, model by model."""
        return tuple(digest for member in self.members for digest in member.digests())

    def circumstances(self) -> dict[str, str]:
        """All that a label map depends on besides weights and scan, by name, of every model."""
        found = {"postprocessing": json.dumps(to_data(self.postprocessing))}
        for number, member in enumerate(self.members, 1):
            found |= {f"model {number}, {name}": value for name, value in member.circumstances().items()}
        return found

    def prepare(self, case: str, image: np.ndarray, geometry: Geometry, *, overwrite: bool = False) -> Preprocessed:
        """A raw image ``(C, z, y, x)`` as each model wants it; it is left as it is."""
        parts = tuple(member.prepare(case, image, geometry) for member in self.members)
        return PreparedForSeveral(**vars(parts[0]), parts=parts)

    def predict(self, prepared: Preprocessed, *, probabilities: bool = False) -> Prediction:
        """Label map and, where asked for, probabilities of what :meth:`prepare` made, in its native grid.

        Raises:
            RunError: it was prepared for a single model.
        """
        if not isinstance(prepared, PreparedForSeveral):
            raise RunError("Several models need a scan each as they want it; prepare it with their own 'prepare'.")
        total: np.ndarray | None = None
        for member, part in zip(self.members, prepared.parts, strict=True):
            found = member.predict(part, probabilities=True).probabilities
            assert found is not None  # narrowed for the type checker; it was asked for
            total = found.astype(np.float32) if total is None else np.add(total, found, out=total)
        assert total is not None  # narrowed for the type checker; there is a model at least
        total /= len(self.members)
        labels = keep_largest(labels_of(total, self.labels, threshold=0.5), self.postprocessing, self.labels)
        return Prediction(labels, total.astype(np.float16) if probabilities else None)

    def predict_case(self, image: np.ndarray, geometry: Geometry, case: str) -> np.ndarray:
        """Label map ``(z, y, x)`` of a raw image ``(C, z, y, x)`` in its own grid."""
        return self.predict(self.prepare(case, image, geometry)).labels
