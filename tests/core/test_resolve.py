"""One file, or an error: statements as other machines and programs write them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from medkd.core.errors import DataError
from medkd.core.resolve import FileIndex, files_below, files_ending, path_parts, read_lines

FILES = (
    "images/a b.png",
    "images/train/one.png",
    "images/val/one.png",
    "images/val/two.JPG",
    "hospitalA/images/1.png",
    "hospitalB/images/1.png",
    "hospitalB/images/2.png",
    unicodedata.normalize("NFC", "images/Rücken.png"),
    "images/scan.v1.png",
    "images/100%25.png",
)


@pytest.fixture
def index(tmp_path: Path) -> FileIndex:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return FileIndex(tmp_path, files_below(tmp_path), lambda name: Path(name).stem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("images/val/one.png", "images/val/one.png"),
        ("images\\val\\one.png", "images/val/one.png"),
        ("C:\\Users\\me\\set\\images\\val\\one.png", "images/val/one.png"),
        ("/home/me/set/images/val/one.png", "images/val/one.png"),
        ("./images/train/../val/one.png", "images/val/one.png"),
        ("../images/val/one.png", "images/val/one.png"),
        ("images/a%20b.png", "images/a b.png"),
        ("file:///home/me/images/a%20b.png", "images/a b.png"),
        ("http://host/data/images/two.jpg?d=1", "images/val/two.JPG"),
        ("IMAGES/VAL/TWO.jpg", "images/val/two.JPG"),
        (unicodedata.normalize("NFD", "Rücken.png"), "images/Rücken.png"),
        ("two", "images/val/two.JPG"),
        ("two.png", "images/val/two.JPG"),
        ("scan.v1", "images/scan.v1.png"),
        ("val/one", "images/val/one.png"),
        ('"images/val/one.png"', "images/val/one.png"),
        ("elsewhere/2.png", "hospitalB/images/2.png"),
        ("images/100%25.png", "images/100%25.png"),
        ("three.png", None),
        ("/home/me/pictures/one.png", None),
        ("", None),
        ("..", None),
        ("a\0b.png", None),
        ("hospitalA/images/2.png", None),
        ("train/two.jpg", None),
        ("testing/two.jpg", None),
    ],
)
def test_a_statement_means_one_file_or_none(index: FileIndex, text: str, expected: str | None) -> None:
    found = index.find(text)
    assert found == (None if expected is None else index.folder / expected)


@pytest.mark.parametrize("text", ["one.png", "images/1.png", "1", "ONE.PNG"])
def test_what_fits_several_files_is_an_error_that_names_them(index: FileIndex, text: str) -> None:
    with pytest.raises(DataError, match="is there 2 times") as caught:
        index.find(text)
    assert text in str(caught.value) and str(index.folder) in str(caught.value)


def test_a_place_near_the_statement_decides(index: FileIndex) -> None:
    assert index.find("one.png", index.folder / "images/train") == index.folder / "images/train/one.png"
    assert index.find("../val/one.png", index.folder / "images/train") == index.folder / "images/val/one.png"


def test_every_file_is_found_by_each_of_its_spellings(index: FileIndex) -> None:
    for path in index.paths:
        name = str(path.relative_to(index.folder))
        spellings = [name, name.replace("/", "\\"), f"D:\\x\\{name}", f"/mnt/other/{name}", name.upper(), str(path)]
        assert [index.find(text) for text in spellings] == [path] * len(spellings)


def test_what_systems_add_is_no_file_of_the_source(tmp_path: Path) -> None:
    for name in ("a.txt", "._a.txt", "__MACOSX/b.txt", ".hidden/c.txt", "@eaDir/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "e.txt").symlink_to("nowhere")
    assert [path.name for path in files_below(tmp_path)] == ["a.txt", "e.txt"]
    (tmp_path / "F.TXT").write_text("")
    (tmp_path / "g.txt").mkdir()  # in the place of a file
    (tmp_path / "h.txt/inside").mkdir(parents=True)
    (tmp_path / "h.txt/inside/i.png").write_text("")
    assert [path.name for path in files_ending(tmp_path, ".txt", ".csv")] == ["F.TXT", "a.txt", "e.txt", "g.txt"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_are_read_in_the_encodings_of_editors(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("a.png\r\n\r\nRücken.png\r\n".encode(encoding))
    assert read_lines(path) == [(1, "a.png"), (3, "Rücken.png")]


def test_paths_of_any_system_have_parts() -> None:
    assert path_parts("C:\\a\\.\\b\\..\\c.png") == ("a", "c.png") and path_parts("../../x/y") == ("x", "y")
