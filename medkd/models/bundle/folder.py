"""MONAI bundles as models: a bundle describes itself, and a ``teacher.json`` beside it overrides single keys."""

from __future__ import annotations

from pathlib import Path

from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.core.serial import from_data
from medkd.models.bundle.config import INFERENCE, METADATA
from medkd.models.bundle.reading import read_bundle
from medkd.models.described import DescribedFolder
from medkd.models.description import FILE, ExternalModel


class BundleFolder(DescribedFolder):
    """A MONAI bundle: metadata, a configuration for inference, and a folder of weights."""

    kind = "bundle"
    title = "a MONAI bundle"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the folder is laid out as a bundle."""
        described = (path / METADATA).is_file() and any((path / file).is_file() for file in INFERENCE)
        return described and (path / "models").is_dir()

    def _read(self) -> ExternalModel:
        stated = read_json(self.path / FILE) if (self.path / FILE).is_file() else {}
        if not isinstance(stated, dict):
            raise RunError(f"{self.path / FILE}: expected an object, found {type(stated).__name__}.")
        return from_data(ExternalModel, {"train": None, **read_bundle(self.path, stated)}, str(self.path))

    def _unknown(self) -> str:
        return (
            f"{self.path} is a MONAI bundle, which does not say on which cases it was trained; list those of this data "
            f'set in {self.path / FILE}, for example {{"train": ["case_01"]}}, or {{"train": []}} where there are none.'
        )
