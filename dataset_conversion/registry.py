"""The formats that ``medkd_convert`` knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataset_conversion.report import ConversionReport
from medkd.core.dataset import SEGMENTATION
from medkd.core.errors import DataError
from medkd.core.registry import Registry


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """What a user may set for a conversion.

    Attributes:
        labels: names of the label values 1, 2, …; for sources that do not name them.
        channels: names of the image channels; for sources that do not name them.
        mode: copy files that can be taken over as they are, or link to them.
        workers: threads; None follows from cores and memory.
        reorient: axis code that scans are turned to (``RAS``); None leaves them as they are.
        settings: further options of one format.
    """

    labels: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    mode: Literal["copy", "link"] = "copy"
    workers: int | None = None
    reorient: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Converter:
    """One format.

    Attributes:
        summary: one line for the list of formats.
        guide: what to download from where, what it must look like, how large it is, its licence.
        convert: ``(source, folder to write, options) -> report``.
        name: proposes a data set name (without the number) for a source.
        settings: options of this format alone, name → help text; they arrive in :attr:`ConversionOptions.settings`.
        task: of the data sets that it makes; None where that depends on the source, or nobody says.
    """

    summary: str
    guide: str
    convert: Callable[[Path, Path, ConversionOptions], ConversionReport]
    name: Callable[[Path], str]
    settings: Mapping[str, str] = field(default_factory=dict)
    task: str | None = field(default=SEGMENTATION, kw_only=True)


CONVERTERS: Registry[Converter] = Registry("format", DataError, "medkd.converters")


def name_from_path(source: Path) -> str:
    """A data set name from a file or folder name: ``Task04_Hippocampus.tar`` → ``Hippocampus``."""
    name = re.sub(r"(\.tar)?(\.gz|\.tgz|\.tar|\.zip)?$", "", Path(source).absolute().name)
    name = re.sub(r"^(Task|Dataset)\d+_", "", name)
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "Unnamed"
