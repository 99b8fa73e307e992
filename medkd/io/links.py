"""Links that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medkd.core.errors import DataError


def refuse_dangling(paths: Iterable[Path]) -> None:
    """Name a link whose file is gone, instead of passing over a scan that somebody meant.

    Raises:
        DataError: one of the paths is such a link.
    """
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise DataError(
                f"{path} is a link to {path.readlink()}, which is not there; restore the file, or remove the link."
            )
