"""Files of other versions: older ones are read, newer ones are refused as newer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest

from medkd.core.errors import DataError
from medkd.core.files import write_json
from medkd.core.run import RunDescription, RunFolder
from medkd.core.serial import load, to_data
from medkd.inference.settings import PredictSettings
from medkd.runtime.detection import ExportedDetector
from medkd.runtime.package import Exported

KEYS: dict[type, tuple[int, str]] = {
    RunDescription: (
        3,
        "dataset configuration network budget mirror_axes precision speed method method_parameters "
        "teacher taught_by targets targets_tta backbone_weights weights init random_layers unlabelled_share labels "
        "confidence protocol published modules",
    ),
    Exported: (
        2,
        "network digest channel_names labels regions_class_order plan configuration patch_size "
        "mirror_axes mirror step_size blending postprocessing made_from checksum",
    ),
    ExportedDetector: (
        4,
        "network digest categories image_size overlap score most single sides scaling made_from checksum",
    ),
    PredictSettings: (
        3,
        "run folds checkpoint step_size mirror_axes precision medkd blending weights engine "
        "engine_version written postprocessing preprocessing",
    ),
}


@dataclass(frozen=True)
class _File:
    name: str
    added: str = ""
    schema: int = 3
    oldest: ClassVar[int] = 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "a", "schema": 4, "unheard_of": 1}, r"written by a newer medkd \(schema 4, this one reads 3\)"),
        ({"name": "a", "schema": 1}, "has schema 1, this medkd reads schema 3"),
        ({"name": "a", "schema": "2"}, "has schema '2'"),
        ({"name": "a", "schema": [2]}, "has schema"),
    ],
)
def test_other_schemas_are_refused(tmp_path: Path, content: dict[str, object], message: str) -> None:
    write_json(tmp_path / "a.json", content)
    with pytest.raises(DataError, match=message) as caught:
        load(_File, tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_an_older_file_is_read_and_written_in_the_present_form(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "a", "schema": 2})
    found = load(_File, tmp_path / "a.json")
    assert found == _File("a") and to_data(found)["schema"] == 3


def test_a_run_of_an_older_version_is_read() -> None:
    folder = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0" / "plain_unet__3d_fullres"
    found = RunFolder.load(folder).run
    assert found.schema == 3 and found.network.name == "plain_unet"


@pytest.mark.parametrize("described", KEYS, ids=lambda kind: kind.__name__)
def test_a_key_more_is_a_schema_more(described: type) -> None:
    """Versions before it refuse the key; they say why, where the schema says that the file is newer."""
    schema, keys = KEYS[described]
    names = [field.name for field in fields(described) if field.name != "schema"]
    assert (described.schema, " ".join(names)) == (schema, keys)
