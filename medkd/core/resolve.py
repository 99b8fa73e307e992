"""Finding the files and cases that lists and annotations name, whoever wrote them on whatever machine.

A statement may have another machine's folders before it, ``\\`` between its folders, ``%20`` for a blank, ``..`` in it,
capitals that the file has not, accents composed in another way, or no ending. It means one file or it is an error: what
fits nothing, or several files, is never guessed.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from medkd.core.errors import DataError
from medkd.core.files import check_file

_SERVICE_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
_PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_CHANNEL = re.compile(r"_\d{4}$")
_ENDINGS = (
    (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh")
    + (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
    + (".json", ".txt", ".xml", ".npz", ".npy", ".h5", ".hdf5", ".pkl", ".b2nd")
)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # at the beginning of a file


def part_of_name(name: str) -> str | None:
    """``train``, ``val`` or ``test`` where the words in a file or folder name say one of them, and only one."""
    words = re.findall("[a-z]+", name.lower())
    found = {_PARTS.get(word) for word in words} - {None}
    return found.pop() if len(found) == 1 else None


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file below ``folder`` is one that systems add: ``.name``, the ``._name`` of macOS, ``__MACOSX/...``."""
    parts = path.relative_to(folder).parts
    return any(map(_is_service, parts))


def _is_service(name: str) -> bool:
    return name.startswith(".") or name in _SERVICE_FOLDERS


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and its sub-folders, sorted, without hidden ones; links to nothing are among them."""
    folder = Path(folder)
    found = []
    for path in folder.rglob("*"):
        if not path.is_dir() and not is_hidden(path, folder):
            found.append(path)
    return sorted(found)


def files_ending(folder: Path, *endings: str) -> list[Path]:
    """The files below a folder whose names have one of these endings, in any capitals, sorted, without hidden ones.

    Links to nothing are among them, and empty folders of such a name, so that they are missed when they are read.
    """
    folder = Path(folder)
    found = []
    for path in folder.rglob("*"):
        named = path.name.lower().endswith(endings) and not is_hidden(path, folder)
        if named and (not path.is_dir() or stands_for_file(path)):
            found.append(path)
    return sorted(found)


def stands_for_file(folder: Path) -> bool:
    """Whether a folder lies where a file should: it has a file's ending and no file in it."""
    inside = map(Path.is_file, folder.rglob("*"))
    return "." in folder.name and not any(inside)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines of a text file that are not blank, with or without a byte order mark.

    Raises:
        DataError: it cannot be read as text.
    """
    check_file(path)
    try:
        content = path.read_bytes()
        encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
        lines = content.decode(encoding).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found.append((number, line.strip()))
    return found


class FileIndex:
    """Files below a folder, found by what others call them.

    Args:
        folder: the statements are relative to it, or to places that :meth:`find` is given.
        paths: the files.
        stem: gives a file name without its ending; names are compared without endings where nothing else fits.
    """

    def __init__(self, folder: Path, paths: Iterable[Path], stem: Callable[[str], str]) -> None:
        self.folder = Path(folder)
        self.paths = list(paths)
        self._stem = stem
        self._by_place = {os.path.abspath(path): path for path in self.paths}
        self._parts: dict[Path, tuple[str, ...]] = {}
        self._by_key: list[dict[str, list[Path]]] = [defaultdict(list) for _ in range(3)]
        self._folders: set[str] = set()
        for path in self.paths:
            self._enter(path)

    def find(self, text: str, *near: Path) -> Path | None:
        """The file that ``text`` names: a path relative to one of ``near`` or to the folder, else the file whose path
        ends as the statement does.

        A file is not meant where the statement and its path differ in a folder that is there: ``a/1.png`` is not
        ``b/1.png`` if there is a folder ``a``. An image of ``train`` is never one of ``val`` or ``test``.

        Raises:
            DataError: several files are meant.
        """
        readings = _readings(text)
        for reading in readings:
            for base in (*near, self.folder):
                place = _join(base, reading)
                if place in self._by_place:
                    return self._by_place[place]
        meant = dict.fromkeys(filter(None, map(path_parts, readings)))
        for level in range(len(self._by_key)):
            for parts in meant:
                found = self._agreeing(level, parts, near)
                if found:
                    return _only(found, text)
        return None

    def _enter(self, path: Path) -> None:
        below = Path(path.name)
        if path.is_relative_to(self.folder):
            below = path.relative_to(self.folder)
        parts = tuple(map(_plain, below.parts))
        self._parts[path] = parts
        self._folders.update(parts[:-1])
        for table, key in zip(self._by_key, self._keys(path.name), strict=True):
            table[key].append(path)

    def _keys(self, name: str) -> tuple[str, str, str]:
        """By what a file is looked up: its name, its name in small letters, its name without ending."""
        composed = unicodedata.normalize("NFC", name)
        return composed, composed.casefold(), _plain(self._stem(name))

    def agrees(self, text: str, path: Path) -> bool:
        """Whether the folders of a statement are those of the file, as far as both have some; otherwise it was found by
        its name alone, as the only one.
        """
        there = self._parts[path][:-1]
        for reading in _readings(text):
            folders = tuple(map(_plain, path_parts(reading)[:-1]))
            most = min(len(folders), len(there))
            if self._depth(folders, there) == most:
                return True
        return False

    def _agreeing(self, level: int, parts: tuple[str, ...], near: Sequence[Path]) -> list[Path]:
        """The files of this name whose folders agree best with the statement; one, if there is a best."""
        folders = tuple(map(_plain, parts[:-1]))
        best, deepest = self._deepest(folders, self._named(level, parts[-1]))
        if len(best) > 1 and folders:
            best = self._whole(best, deepest)
        inside = [path for path in best if not set(near).isdisjoint(path.parents)]
        return _fewer(best, inside)

    def _deepest(self, folders: tuple[str, ...], candidates: Sequence[Path]) -> tuple[list[Path], int]:
        """The files with which most stated folders agree, and how many do; those that contradict are left out."""
        best: list[Path] = []
        deepest = 0
        for path in candidates:
            depth = self._depth(folders, self._parts[path][:-1])
            if depth is None or depth < deepest:
                continue
            if depth > deepest:
                best, deepest = [], depth
            best.append(path)
        return best, deepest

    def _whole(self, best: list[Path], deepest: int) -> list[Path]:
        """Of files that agree equally, the one all of whose folders were stated; none where it is by the name alone."""
        whole = [path for path in best if len(self._parts[path]) - 1 == deepest]
        if not deepest and not whole:
            return []
        return _fewer(best, whole)

    def _named(self, level: int, name: str) -> list[Path]:
        table = self._by_key[level]
        named = table.get(self._keys(name)[level], [])
        if level == 2 and not named:  # a dot in a name without ending
            named = table.get(_plain(name), [])
        return named

    def _depth(self, stated: Sequence[str], there: Sequence[str]) -> int | None:
        """How many folders before the name agree; None where one of them contradicts."""
        pairs = zip(reversed(stated), reversed(there), strict=False)
        for depth, (wanted, found) in enumerate(pairs):
            if wanted != found:
                if wanted in there:  # images/a.png for images/left/a.png
                    return depth
                parts = {part_of_name(wanted), part_of_name(found)} - {None}
                return None if wanted in self._folders or len(parts) == 2 else depth
        return min(len(stated), len(there))


class NameIndex:
    """Case ids found by what others call them: ``imagesTr\\case_01_0000.nii.gz`` is ``case_01``.

    Args:
        names: the case ids.
        spellings: what a file name may call a case, the likeliest first; None is :func:`case_spellings`.
    """

    def __init__(self, names: Iterable[str], spellings: Callable[[str], Sequence[str]] | None = None) -> None:
        self._spellings = spellings or case_spellings
        self._names: dict[str, None] = dict.fromkeys(names)
        self._composed: dict[str, list[str]] = defaultdict(list)
        self._folded: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            self._composed[unicodedata.normalize("NFC", name)].append(name)
            self._folded[_plain(name)].append(name)

    def find(self, text: str) -> str | None:
        """The name that ``text`` means; None where it means none.

        Raises:
            DataError: several names are meant.
        """
        if text in self._names:
            return text
        for reading in _readings(text):
            parts = path_parts(reading)
            spellings = self._spellings(parts[-1]) if parts else ()
            for spelling in spellings:
                found = self._called(spelling)
                if len(found) > 1:
                    shown = ", ".join(sorted(found)[:3])
                    raise DataError(f"The name '{text}' means {len(found)} cases: {shown}; write it as the case is.")
                if found:
                    return found[0]
        return None

    def find_all(self, texts: Iterable[str]) -> tuple[list[str], dict[str, str]]:
        """The names that texts mean, each once, and for each text that means none, or several, why not."""
        found: dict[str, None] = {}
        faults: dict[str, str] = {}
        for text in texts:
            try:
                name = self.find(text)
            except DataError as error:
                faults[text] = str(error).rstrip(".")
                continue
            if name is None:
                faults[text] = f"'{text[:200]}', which is no case"
            else:
                found[name] = None
        return list(found), faults

    def _called(self, spelling: str) -> list[str]:
        composed = self._composed.get(unicodedata.normalize("NFC", spelling))
        return composed or self._folded.get(_plain(spelling), [])


def case_spellings(name: str) -> list[str]:
    """What a file name may call a case: itself, itself without the ending of a file, and without a channel's number."""
    spellings = [name]
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            spellings.append(name[: -len(ending)])
            break
    spellings.append(_CHANNEL.sub("", spellings[-1]))
    return list(dict.fromkeys(filter(None, spellings)))


def path_parts(text: str) -> tuple[str, ...]:
    """Folders and name in a path of any system, ``.`` and ``..`` taken out, without a drive."""
    parts: list[str] = []
    for part in text.replace("\\", "/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", ".") and not re.fullmatch("[A-Za-z]:", part):
            parts.append(part)
    return tuple(parts)


def _only(found: list[Path], text: str) -> Path:
    if len(found) > 1:
        first = sorted(found)[:3]
        shown = ", ".join(map(str, first))
        raise DataError(
            f"The file '{text}' is there {len(found)} times: {shown}; give its path, or rename or remove the others."
        )
    return found[0]


def _fewer(all_of_them: list[Path], some: list[Path]) -> list[Path]:
    return some if len(some) == 1 else all_of_them


def _readings(text: str) -> list[str]:
    """What a statement may be meant to say: itself, with ``/`` for ``\\``, without an address, with ``%20`` as a
    blank.
    """
    plain = text.strip().strip("\"'")
    readings = [text, plain, plain.replace("\\", "/")]
    address = re.fullmatch(r"[a-z][a-z0-9+.-]+://(.*?)([?#].*)?", plain, re.IGNORECASE)
    if address:
        readings.append("/" + address[1])
    readings += list(map(unquote, readings))
    different = dict.fromkeys(readings)
    return [reading for reading in different if reading and "\0" not in reading]


def _join(base: Path, reading: str) -> str:
    return os.path.abspath(os.path.join(base, reading))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
