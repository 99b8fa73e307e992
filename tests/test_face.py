"""``import medkd``: what it exports, late, and what it says to wrong arguments."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import medkd
from medkd import api
from medkd.core.errors import MethodError, RunError
from medkd.detection.options import DetectorOptions
from tests.training.builders import make_dataset

SOURCE = Path(medkd.__file__)
HEAVY = ("torch", "numpy", "monai", "matplotlib", "scipy", "dataset_conversion")


def names_for_type_checkers() -> set[str]:
    """What the ``TYPE_CHECKING`` block of the package imports."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def test_importing_it_loads_nothing() -> None:
    code = f"import sys, medkd; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_every_name_is_there_for_people_and_type_checkers() -> None:
    exported = set(medkd.__all__) - {"__version__"}
    assert exported == names_for_type_checkers()
    assert exported <= set(dir(medkd))
    for name in exported:
        assert getattr(medkd, name).__doc__, name


def test_what_a_notebook_needs_is_exported() -> None:
    steps = {"convert", "plan_and_preprocess", "train", "train_distill", "predict", "report"}
    kinds = {f"register_{kind}" for kind in ("network", "method", "detector", "converter")}
    assert steps | kinds | {"TrainOptions", "MedkdError"} <= set(medkd.__all__)


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'medkd' has no attribute 'trian'; it has"):
        medkd.trian  # noqa: B018


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    make_dataset(folder, cases=2)
    return folder


def test_wrong_arguments_are_answered_in_the_callers_words(root: Path) -> None:
    with pytest.raises(RunError, match=r"^save_every expects a whole number"):
        medkd.train(900, "unet_tiny", 0, root=root, save_every=0)
    with pytest.raises(RunError, match=r"^medkd\.train has no setting 'epoch'\. Did you mean 'epochs'\?"):
        medkd.train(900, "unet_tiny", 0, root=root, epoch=5)
    with pytest.raises(RunError, match=r"^image_size is for detection, but 900 is for segmentation; leave it out\.$"):
        medkd.train(900, "unet_tiny", 0, root=root, image_size=64)
    with pytest.raises(RunError, match="options must be a TrainOptions, found 5"):
        medkd.train(900, "unet_tiny", 0, 5)  # type: ignore[arg-type]
    with pytest.raises((MethodError, RunError), match=r"Unknown method|neither a model folder"):
        medkd.train_distill(900, "unet_tiny", "unet_tiny", "kdd", 0, root=root)


def test_options_of_another_task_are_refused_and_common_ones_taken(root: Path) -> None:
    with pytest.raises(RunError, match="image_size is for detection"):
        medkd.train(900, "unet_tiny", 0, DetectorOptions(root=root, image_size=64))
    lines = api.dry_run(900, "unet_tiny", 0, DetectorOptions(root=root, epochs=7, device="cpu"))
    assert "7 epochs" in "\n".join(lines)


def test_settings_go_before_options(root: Path) -> None:
    options = medkd.TrainOptions(root=root, epochs=7, device="cpu")
    assert "3 epochs" in "\n".join(medkd.dry_run(900, "unet_tiny", 0, options, epochs=3))
