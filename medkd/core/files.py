"""Atomic writing and friendly reading of small files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medkd.core.errors import DataError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; it is renamed to ``path`` when the block ends without an error.

    The temporary name keeps all suffixes (``.nii.gz``), so that writers that look at them work. On an error nothing is
    left behind and an older ``path`` stays as it was.

    Raises:
        DataError: the folder cannot be created or written to (read-only, full disk).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix="-" + path.name, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise DataError(
            f"Cannot write {path}: {error.strerror or error}; choose a folder that can be written to."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"Writing {path} failed: {error.strerror or error}; nothing was changed there.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any, *, indent: int | None = 2) -> None:
    """Write ``data`` as JSON atomically, keys in the given order (region order in ``dataset.json`` matters)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing, unreadable or not JSON; the text says which and where.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # with or without a byte order mark
    except FileNotFoundError as error:
        raise DataError(f"Expected the file {path}, but it does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); mend it or make it anew."
        ) from error
