"""Zips of models: what leaves the folder, links, bombs and damage are refused in one sentence, and nothing is left."""

from __future__ import annotations

import stat
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from medkd.core.errors import MedkdError, RunError
from medkd.models import packed
from medkd.models.base import open_model
from medkd.models.packed import unpacked


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def craft(path: Path, entries: dict[str, bytes], mode: int = 0, way: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", way) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = way
            archive.writestr(entry, content)
    return path


def test_a_zip_is_unpacked_once(tmp_path: Path) -> None:
    file = craft(tmp_path / "model.zip", {"run/run.json": b"{}", "run/fold_0/a": b"1"})
    folder = unpacked(file)
    assert folder.name == "run" and (folder / "fold_0" / "a").read_bytes() == b"1"
    assert unpacked(file) is folder
    flat = unpacked(craft(tmp_path / "flat.zip", {"run.json": b"{}", "plans.json": b"{}"}))
    assert flat.name == "flat" and (flat / "plans.json").is_file()
    assert unpacked(tmp_path) == tmp_path and unpacked(tmp_path / "none.zip") == tmp_path / "none.zip"


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "..\\evil", "\\\\host\\evil", "a/..", "run/../../../x", "/"],
)
def test_entries_that_leave_the_folder_are_refused(tmp_path: Path, place: Path, name: str) -> None:
    file = craft(tmp_path / "evil.zip", {"run/run.json": b"{}", name: b"x"})
    with pytest.raises(RunError, match="may lie outside of the folder; it is not unpacked"):
        unpacked(file)
    assert list(place.iterdir()) == [] and not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["run/run.json/x", "RUN/run.json/x/y", "run/" + "x" * 300, "run/" + "d/" * 900 + "x"])
def test_names_that_no_folder_can_have_are_refused(tmp_path: Path, place: Path, name: str) -> None:
    file = craft(tmp_path / "odd.zip", {"run/run.json": b"{}", name: b"x"})
    with pytest.raises(RunError, match=r"below one that is a file|too long for the name of a file") as caught:
        unpacked(file)
    assert len(str(caught.value)) < 400 and list(place.iterdir()) == []


def test_what_macos_adds_to_a_zip_is_passed_over(tmp_path: Path) -> None:
    found = unpacked(craft(tmp_path / "mac.zip", {"run/run.json": b"{}", "__MACOSX/run/._run.json": b"x"}))
    assert found.name == "run" and (found / "run.json").is_file()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, place: Path, kind: int) -> None:
    file = craft(tmp_path / "link.zip", {"run/run.json": b"/etc/passwd"}, kind | 0o777)
    with pytest.raises(RunError, match="is a link or no plain file"):
        unpacked(file)
    assert list(place.iterdir()) == []


def test_bombs_are_refused_before_they_unpack(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = craft(tmp_path / "bomb.zip", {"run/run.json": b"\0" * (8 * 2**20)}, way=zipfile.ZIP_DEFLATED)
    with pytest.raises(RunError, match="would grow from"):
        unpacked(bomb)
    many = craft(tmp_path / "many.zip", {f"run/{i}": b"" for i in range(packed.RULES.entries + 1)})
    with pytest.raises(RunError, match="entries, a model at most"):
        unpacked(many)
    monkeypatch.setattr(packed, "RULES", replace(packed.RULES, entries=2))
    with pytest.raises(RunError, match="has a directory of 12"):
        unpacked(craft(tmp_path / "names.zip", {"a" * 12000: b""}))
    monkeypatch.setattr(packed, "RULES", replace(packed.RULES, size=1000))
    with pytest.raises(RunError, match="would unpack to"):
        unpacked(craft(tmp_path / "large.zip", {"a": b"x" * 600, "b": b"y" * 600}))
    assert list(place.iterdir()) == []


def test_an_entry_that_is_larger_than_it_says_is_refused(tmp_path: Path, place: Path) -> None:
    file = craft(tmp_path / "liar.zip", {"a": b"x" * 5000}, way=zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    for start in (22, directory + 24):  # the size, in the entry's own header and in the directory
        content[start : start + 4] = (10).to_bytes(4, "little")
    file.write_bytes(bytes(content))
    with pytest.raises(RunError):
        unpacked(file)
    assert list(place.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_twins_are_refused(tmp_path: Path, place: Path) -> None:
    with pytest.raises(RunError, match="twice"):
        unpacked(craft(tmp_path / "twins.zip", {"run/Run.json": b"1", "run/run.json": b"2"}))
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip at all" * 100])
def test_what_is_no_zip_is_one_sentence(tmp_path: Path, place: Path, content: bytes) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(RunError, match=r"model\.zip is damaged or no zip"):
        unpacked(tmp_path / "model.zip")
    assert list(place.iterdir()) == []


def test_damage_anywhere_is_one_sentence_or_harmless(tmp_path: Path, place: Path) -> None:
    file = craft(tmp_path / "model.zip", {"run/run.json": b"{}" * 50, "run/b": b"12" * 50}, way=zipfile.ZIP_DEFLATED)
    sound = file.read_bytes()
    for index in range(0, len(sound), 3):
        file.write_bytes(sound[:index] + bytes([sound[index] ^ 0xFF]) + sound[index + 1 :])
        try:
            unpacked(file)
        except RunError as error:
            assert "\n" not in str(error)


def test_errors_name_the_zip_and_not_the_folder_that_is_soon_gone(tmp_path: Path, place: Path) -> None:
    file = craft(tmp_path / "model.zip", {"run/run.json": b"{}"})
    for task in (None, "segmentation"):
        with pytest.raises(MedkdError, match=r"model\.zip/run\.json: the key '\w+' is missing") as caught:
            open_model(file, task)
        assert str(place) not in str(caught.value)


@pytest.mark.parametrize("other", ["preprocessing.json", "detection.json"])
def test_a_second_description_is_refused(tmp_path: Path, other: str) -> None:
    file = craft(tmp_path / "two.zip", {"run/run.json": b"{}", f"run/{other}": b"{}"})
    with pytest.raises(RunError, match=rf"two\.zip holds run\.json and {other}, which describe two models"):
        open_model(file)
