"""Of two exports to one folder the older one is kept until the newer one is in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medkd.core.errors import RunError
from medkd.exporting import output as output_module
from medkd.exporting.output import check_output, exchange, put_in_place
from medkd.runtime.package import RECORD


def exported(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / RECORD).write_text(text)
    return folder


def test_an_older_export_is_replaced(tmp_path: Path) -> None:
    output = exported(tmp_path / "model", "old")
    put_in_place(exported(tmp_path / "made", "new"), output)
    assert (output / RECORD).read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_at_every_moment_there_is_the_older_or_the_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where folders can be exchanged in one step, nothing else is renamed."""
    one, other = exported(tmp_path / "one", "1"), exported(tmp_path / "other", "2")
    if not exchange(one, other):
        pytest.skip("this system cannot exchange two folders in one step")
    assert ((one / RECORD).read_text(), (other / RECORD).read_text()) == ("2", "1")
    assert not exchange(one, tmp_path / "missing") and (one / RECORD).is_file()
    monkeypatch.setattr(Path, "rename", lambda *given: pytest.fail("a moment without an export"))
    put_in_place(one, other)
    assert (other / RECORD).read_text() == "2" and [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.fixture
def in_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot exchange two folders in one."""
    monkeypatch.setattr(output_module, "exchange", lambda one, other: False)


@pytest.mark.usefixtures("in_two_steps")
def test_an_export_that_was_killed_before_its_last_step_keeps_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, made = exported(tmp_path / "model", "old"), exported(tmp_path / "made", "new")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self == made:
            raise KeyboardInterrupt  # nothing of the function's runs after it, as after a kill
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(made, output)
    assert not output.exists()
    with pytest.raises(RunError, match="give --overwrite to replace it"):
        check_output(output, overwrite=False)
    assert (output / RECORD).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "model"]


@pytest.mark.usefixtures("in_two_steps")
def test_a_full_disk_keeps_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, made = exported(tmp_path / "model", "old"), exported(tmp_path / "made", "new")
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self == made:
            raise OSError(28, os.strerror(28))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="No space"):
        put_in_place(made, output)
    assert (output / RECORD).read_text() == "old"


def test_what_was_replaced_and_only_half_removed_is_in_nobodys_way(tmp_path: Path) -> None:
    output = exported(tmp_path / "model", "old")
    left = tmp_path / ".model.replaced"
    left.mkdir()
    (left / "model.onnx").write_text("of an export whose removal was killed")
    check_output(output, overwrite=True)
    put_in_place(exported(tmp_path / "made", "new"), output)
    assert (output / RECORD).read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["model"]
