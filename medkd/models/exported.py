"""Exported models as models: they predict in an engine without torch, and teach by their outputs."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.models.base import Checkpoint, ModelFolder
from medkd.models.seen import how_cleared, kept_contents, stated_or_same
from medkd.models.segmentation import ImportedFolder, TrainedModel
from medkd.runtime.package import RECORD, check_network, is_exported, read_exported

FOLD = "exported"
"""Name of the one network of an exported model, the mean of the folds that it was made from."""


class ExportedFolder(ImportedFolder):
    """A folder that ``medkd_export`` made for ONNX Runtime or OpenVINO."""

    kind = "exported"
    title = "an exported model"
    predictor = "medkd.runtime.predictor:RuntimePredictor"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there is a ``preprocessing.json``."""
        return is_exported(path)

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """The one network."""
        return (FOLD,) if checkpoint == "final" else ()

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """The cases that ``export.json`` lists, which the source said of itself when it was exported."""
        record = self.path / RECORD
        stated = read_json(record) if record.is_file() else {}
        seen = stated.get("seen") if isinstance(stated, dict) else None
        if not isinstance(seen, list) or not all(isinstance(case, str) for case in seen):
            raise RunError(
                f"{record} does not say on which cases the exported model was trained; teach with the model that it "
                "was made from, or export that again where its splits are known."
            )
        return stated_or_same(self.path, seen, self._home, cases, raw, _contents_beside(raw))

    def cleared(self, raw: Path) -> str:
        """See :func:`~medkd.models.seen.how_cleared`."""
        return how_cleared(self.path, self._home, raw)

    @property
    def _home(self) -> str:
        """The data set that the source was trained on."""
        return self.describe().plan.dataset

    def weights_file(self, fold: str) -> Path:
        """The network's file."""
        return check_network(self.path, read_exported(self.path))

    def _describe(self) -> TrainedModel:
        exported = read_exported(self.path)
        return TrainedModel(
            folds=(FOLD,),
            plan=exported.plan,
            configuration=exported.planned,
            labels=exported.label_spec,
            channels=exported.channel_names,
            patch_size=exported.patch_size,
            mirror_axes=exported.mirror_axes,
        )

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedModel:
        from medkd.models.engine_network import EngineNetwork  # loads torch, which prediction does without

        self._check_wanted(folds, checkpoint)
        network: Any = EngineNetwork(self.describe(), self.weights_file(FOLD))
        return replace(self.describe(), networks=[network])

    def _check_wanted(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> None:
        if checkpoint != "final" or [str(fold) for fold in folds or [FOLD]] != [FOLD]:
            raise RunError(
                f"{self.path} is {self.title}, one network whose folds and checkpoint were chosen at export; leave "
                "them out."
            )


def _contents_beside(raw: Path) -> Callable[[str], Mapping[str, str]]:
    """The hashes of data sets beside the student's."""
    from medkd.preprocessing.fingerprint import known_contents  # reads scans, which other uses of the module do without

    return kept_contents([raw.parents[1] / "preprocessed"], known_contents)


def check_export(model: ModelFolder[Any], taken: Container[str]) -> None:
    """Refuse to time, beside runs, what is no exported model, or is named as another that takes turns.

    Raises:
        RunError: it is one of these.
    """
    if not model.kind.startswith("exported"):
        raise RunError(f"{model.path} is {model.title}; --exports times folders that medkd_export made for an engine.")
    if model.name in taken:
        raise RunError(f"Two models that are timed together are named {model.name}; rename the folder {model.path}.")
