"""Decathlon tasks as they are downloaded: tar archives, not trusted."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from medkd.core.errors import DataError
from tests.dataset_conversion.task_trees import convert, make_task, tree


def pack(task: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w") as tar:
        tar.add(task, task.name)
    return archive


def test_a_tar_gives_the_same_as_its_folder_and_can_be_run_again(tmp_path: Path) -> None:
    task = make_task(tmp_path / "Task01_Brain")
    archive = pack(task, tmp_path / "Task01_Brain.tar")
    unpacked = convert(task, tmp_path / "a")
    result = convert(archive, tmp_path / "b")
    assert result.ok and archive.exists()
    strip = {k: v[1] for k, v in tree(unpacked.folder).items() if "/" in k}
    assert {k: v[1] for k, v in tree(result.folder).items() if "/" in k} == strip
    assert [p.name for p in result.folder.parent.iterdir()] == [result.folder.name]
    again = convert(archive, tmp_path / "b")
    assert again.ok and not again.conversion.converted and len(again.conversion.unchanged) == 4
    with pytest.raises(DataError, match="cannot be linked"):
        convert(archive, tmp_path / "c", mode="link")


@pytest.mark.parametrize("name", ["../evil.nii.gz", "/tmp/evil.nii.gz", "Task/../../evil.nii.gz"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(DataError, match="do not trust"):
        convert(tmp_path / "t.tar", tmp_path / "root/deep")
    assert not list(tmp_path.rglob("evil*"))


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    task = make_task(tmp_path / "Task01_Brain")
    (tmp_path / "secret.nii.gz").write_bytes(b"secret")
    (task / "imagesTs/BRATS_003.nii.gz").unlink()
    (task / "imagesTs/BRATS_003.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    result = convert(pack(task, tmp_path / "t.tar"), tmp_path / "root")
    assert result.ok and not list(result.folder.glob("imagesTs/*"))


def test_a_truncated_archive_is_one_error(tmp_path: Path) -> None:
    archive = pack(make_task(tmp_path / "Task01_Brain"), tmp_path / "t.tar")
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"download it again|holds no"):
        convert(archive, tmp_path / "root")
    assert not list((tmp_path / "root").rglob("dataset.json"))
