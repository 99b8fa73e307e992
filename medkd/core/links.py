"""Files that lie at two places and take room once, where the file system can."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link_or_copy(source: Path, target: Path) -> None:
    """Let a file lie at a second place, too; what lies there already is replaced, unless it is this file.

    Args:
        source: the file; of a link what it leads to. Nothing is done where it is not there.
        target: the second place, whose folder is made.
    """
    if not source.exists() or (target.exists() and _is_copy(source.resolve(), target)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of a file that was made anew since
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _is_copy(source: Path, target: Path) -> bool:
    """Whether a file is the other one, or was copied from it as it is."""
    ours, theirs = source.stat(), target.stat()
    return os.path.samestat(ours, theirs) or (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
