"""The single place that imports ultralytics: without network, and without changing the process that it is imported
into.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from medkd.core.cache import cache_folder
from medkd.core.errors import RunError
from medkd.core.files import atomic_path

SWITCHES = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "ULTRALYTICS_SAFE_LOAD": "1"}
"""Environment variables that ultralytics reads when it is imported; one that the user has set stays as it is."""

OFF = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "vscode_msg", "openvino_msg")
"""Settings of ultralytics that report to somebody or log to a service."""

_FONTS = ("Arial.ttf", "Arial.Unicode.ttf")
_PRINTING = ("precision", "threshold", "edgeitems", "linewidth", "sci_mode")


def require() -> ModuleType:
    """Import ultralytics; once it is there, this costs nothing.

    Left to itself, ultralytics looks up two hosts when it is imported, downloads a font when a data set is checked, may
    install packages that a checkpoint names, and reports runs to services. Here it works offline, on a configuration
    folder of medkd's own in the user's cache. The number of threads and the way tensors are printed are what they were.

    Raises:
        RunError: ultralytics is not installed.
    """
    if sys.modules.get("ultralytics") is not None:
        return _quiet(importlib.import_module("ultralytics"), keep=False)
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    folder = cache_folder("Ultralytics").parent
    os.environ["YOLO_CONFIG_DIR"] = str(folder)
    _provide_fonts(folder / "Ultralytics")
    with unchanged_process(), _alone():
        try:
            ultralytics = importlib.import_module("ultralytics")
            importlib.import_module("ultralytics.nn.tasks")  # the package itself is lazy; its effects are in here
        except ModuleNotFoundError as error:
            raise RunError(
                f"YOLO detectors need ultralytics ({error.name} is missing); run pip install medkd[detection]."
            ) from error
        return _quiet(ultralytics, keep=True)


@contextmanager
def _alone() -> Iterator[None]:
    """Let ultralytics believe that this is the only process: that there are several, medkd sees to."""
    names = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Put back the number of threads, in torch and for child processes, the print options of torch and NumPy, and
    Pillow's reader.

    ultralytics puts a reader of its own before Pillow's, which answers an unreadable file with a missing module.
    """
    reader = Image.open
    variable, threads = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    printing = {name: getattr(torch._tensor_str.PRINT_OPTS, name) for name in _PRINTING}
    arrays = np.get_printoptions()
    try:
        yield
    finally:
        if variable is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = variable
        Image.open = reader
        torch.set_num_threads(threads)
        torch.set_printoptions(**printing)
        np.set_printoptions(**arrays)


@contextmanager
def quiet() -> Iterator[None]:
    """Let ultralytics log warnings only, unless medkd logs details: its progress would stand beside medkd's, and differ
    from it.
    """
    theirs = logging.getLogger("ultralytics")
    level = theirs.level
    if not logging.getLogger("medkd").isEnabledFor(logging.DEBUG):
        theirs.setLevel(logging.WARNING)
    try:
        yield
    finally:
        theirs.setLevel(level)


def _provide_fonts(folder: Path) -> None:
    """Any font under the names that ultralytics would download; medkd draws no text with it."""
    missing = [folder / name for name in _FONTS if not (folder / name).exists()]
    if missing:
        import matplotlib

        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        for path in missing:
            with atomic_path(path) as temporary:
                shutil.copyfile(font, temporary)


def _quiet(ultralytics: ModuleType, keep: bool) -> ModuleType:
    """Switch reporting off: in the settings file where that is medkd's own, else in this process only."""
    from ultralytics.utils import SETTINGS

    changes = {name: False for name in OFF if SETTINGS.get(name)}
    if changes and keep:
        SETTINGS.update(changes)
    elif changes:
        dict.update(SETTINGS, changes)  # the file belongs to the user, who imported ultralytics first
    return ultralytics
