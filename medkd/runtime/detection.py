"""An exported detector on disk: a network with its choice of boxes, and what becomes of a radiograph before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from medkd.core.dataset_keys import are_categories
from medkd.core.errors import RunError
from medkd.core.serial import load
from medkd.runtime.package import check_file_of, check_sealed, write_sealed

DESCRIPTION = "detection.json"
NETWORK = "model.onnx"
SCORE, MOST = 0.001, 300
"""Lowest score and most boxes per class that the graph's own suppression keeps."""


@dataclass(frozen=True, kw_only=True)
class ExportedDetector:
    """``detection.json``: all that prediction needs beside the network, whose outputs are ``boxes`` (B, A, 4) left,
    top, right, bottom in pixels of the square, ``scores`` (B, K, A), and ``selected`` (n, 3): image, class and box of
    what survives non-maximum suppression; boxes are to be clipped to the square.

    Attributes:
        network: file of the network, beside this one.
        digest: sha256 of that file, hexadecimal.
        categories: the classes in order.
        image_size: side of the square in pixels; RGB in [0, 1], the long side fills it, centred on grey 114/255.
        sides: longest long and short side in pixels of an image that does not fill the square; None fills it.
        overlap: of the graph's suppression; None where the detector needs none.
        score: lowest score that is selected.
        most: most boxes of a class that are selected.
        single: whether the network takes one image at a time.
        scaling: how an image of more than 8 bits becomes 8: ``percentile`` (0.05th to 99.95th) or ``range`` (0 to the
            highest value).
        made_from: name of the model that was exported, its fold, its weights' digest, versions.
        checksum: sha256 of all the other entries, hexadecimal; empty in older exports.
    """

    network: str
    digest: str
    categories: tuple[str, ...]
    image_size: int
    overlap: float | None
    score: float = SCORE
    most: int = MOST
    single: bool = False
    sides: tuple[int, int] | None = None
    scaling: str = "percentile"
    made_from: Mapping[str, Any] = field(default_factory=dict)
    checksum: str = ""
    schema: int = 4
    oldest: ClassVar[int] = 2


def is_exported_detector(folder: Path) -> bool:
    """Whether a folder holds an exported detector."""
    return (Path(folder) / DESCRIPTION).is_file()


def read_detector(folder: Path) -> ExportedDetector:
    """Read and check an exported detector's description; its network is checked by :func:`check_detector`.

    Raises:
        MedkdError: a file is missing or damaged, or the description names another file.
    """
    path = Path(folder) / DESCRIPTION
    found = load(ExportedDetector, path)
    if found.network != NETWORK:
        raise RunError(f"{path}: 'network' must be {NETWORK} in this folder, found '{found.network}'.")
    sound = (
        are_categories(found.categories) and 0 < found.image_size <= 8192 and 0 <= found.score < 1 and found.most > 0
    )
    check_sides(found.sides, found.image_size, str(path))
    if not sound or not (found.overlap is None or 0 < found.overlap <= 1):
        raise RunError(
            f"{path}: expected categories of different names (none background or ignore), an image_size up to 8192, a "
            "score from 0 to below 1, an overlap above 0 up to 1 and at least one box; export the detector again."
        )
    check_sealed(path)
    return found


def check_sides(sides: tuple[int, int] | None, image_size: int, where: str) -> None:
    """See that the sides of an image on the square make sense.

    Raises:
        RunError: they do not.
    """
    if sides is not None and not 0 < sides[1] <= sides[0] <= image_size:
        raise RunError(
            f"{where}: expected sides, a long and a short one, within the image_size of {image_size}, found "
            f"{list(sides)}; correct them, or leave them out for images that fill the square."
        )


def check_detector(folder: Path, described: ExportedDetector) -> Path:
    """The network's file, if it is the one that was exported.

    Raises:
        RunError: it is missing, or not the one that belongs to the description.
    """
    return check_file_of(folder, described.network, described.digest, DESCRIPTION)


def write_detector(folder: Path, described: ExportedDetector) -> None:
    """Write the description; last, since its presence says that the export is finished."""
    write_sealed(Path(folder) / DESCRIPTION, described)
