"""Reading and writing checkpoints that cannot run code."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from medkd.core.errors import RunError
from medkd.core.files import atomic_path

SAFETENSORS = ".safetensors"
_NO_SAFETENSORS = "{} needs the package safetensors, which is not installed: pip install safetensors."
_WRITER = (
    "inline_container",
    "PytorchStreamWriter",
    "iostream error",
)  # one of them is in the text when torch cannot write on
_DEEPEST = 60  # modules within modules; no network comes near it
_MADE_OF = (  # what the files of torch, torchvision, timm and ultralytics name beside tensors; all of it stays inert
    "torch.nn.",
    "torch.torch_version.",
    "torchvision.models.",
    "torchvision.ops.",
    "timm.layers.",
    "timm.models.",
    "ultralytics.",
    "pathlib.",
    "numpy.core.multiarray.",
    "numpy._core.multiarray.",
)
_PLAIN = (
    "builtins.getattr",
    "builtins.object",
    "builtins.slice",
    "_codecs.encode",
    "functools.partial",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.device",
)
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # the names in pickles that Python 2 could read
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; the file can be read with ``weights_only=True``.

    Raises:
        RunError: torch cannot write the file to its end, as on a full disk; an older one stays as it was.
        DataError: the folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            if not any(text in str(error) for text in _WRITER):
                raise
            raise RunError(
                f"Writing {path} failed ({_first_line(error)}); is the disk full? What was there before is kept: make "
                "space and continue."
            ) from error


def load_checkpoint(path: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything that it may contain.

    Args:
        path: the file; where only its weights are there, as safetensors under the same name, those.
        allowed: harmless types and functions that the file may name beyond tensors and plain values, as
            :class:`torch.serialization.safe_globals` takes them.

    Raises:
        RunError: the file is missing, empty, damaged, or holds more than tensors and plain values.
    """
    path = stored_checkpoint(Path(path))
    if path.suffix == SAFETENSORS:
        return {"network": _read_safetensors(path)}
    if not path.exists():
        raise RunError(f"There is no checkpoint {path}; train this fold first, or name a fold that was trained.")
    if not path.is_dir() and path.stat().st_size == 0:
        raise RunError(f"{path} is empty, as a full disk or a crash may leave it; train again or restore the file.")
    try:
        with _only(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles' versions and TorchScript: what matters is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # no pickle at all
            raise RunError(f"{path} is damaged or not a checkpoint; train again or restore the file.") from error
        raise RunError(
            f"{path} holds objects other than tensors and plain values and is not loaded, since it could run code."
        ) from error
    except Exception as error:  # bytes that were changed make torch raise errors of almost any kind
        raise RunError(
            f"{path} is damaged or not a checkpoint ({_first_line(error)}); train again or restore the file."
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a medkd checkpoint: expected a dictionary, found {type(content).__name__}.")
    return content


def stored_checkpoint(path: Path) -> Path:
    """The file that holds a checkpoint: itself, or its weights beside it as safetensors where it is not there."""
    weights = path.with_suffix(SAFETENSORS)
    return weights if not path.exists() and weights.exists() else path


def save_safetensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights, and nothing else, as safetensors; atomically.

    Raises:
        RunError: the package safetensors is not installed.
        DataError: the folder cannot be written to.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise RunError(_NO_SAFETENSORS.format(path)) from error
    apart = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    with atomic_path(path) as temporary:
        save_file(apart, temporary)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise RunError(_NO_SAFETENSORS.format(path)) from error
    try:
        return load_file(path)
    except Exception as error:  # changed bytes make errors of several kinds
        raise RunError(
            f"{path} is damaged or holds no safetensors ({_first_line(error)}); restore the file."
        ) from error


@contextmanager
def _only(allowed: Sequence[Any]) -> Iterator[None]:
    """Let torch load these types and no others, whatever other libraries have permitted in this process."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A short hash of a network's weights, equal on every device: what was made with them can be told from what others
    made.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class Inert:
    """An object of a file whose class was not loaded: what it is called and what it held, without any behaviour.

    Attributes of the object are attributes of this one. Whatever a pickle asks to be called is one of these, too, so
    that nothing can happen.
    """

    named: ClassVar[str] = ""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Take all arguments and do nothing with them."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.items: list[Any] = []

    def append(self, item: Any) -> None:
        """What the object held as a list."""
        vars(self).setdefault("items", []).append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.append((key, value))

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse; networks call no part of themselves when they are read.

        Raises:
            RunError: always.
        """
        raise RunError(f"calls {self.named} and is not loaded, since it could run code.")


def read_inert(path: Path) -> dict[str, Any]:
    """Read a file of ``torch.save`` that holds whole objects, as data: tensors are tensors, objects :class:`Inert`.

    No class and no function that the file names is imported, let alone called.

    Raises:
        RunError: the file is missing, damaged, or names something that no network is made of.
    """
    if not path.exists():
        raise RunError(f"There is no checkpoint {path}; train this fold first, or name a fold that was trained.")
    if not path.is_file():
        raise RunError(f"{path} is no file; give a checkpoint.")
    try:
        with zipfile.ZipFile(path) as archive:
            content = _InertUnpickler(archive).load()
    except RunError as error:
        raise RunError(f"{path} {error}") from error
    except Exception as error:  # damaged bytes raise errors of almost any kind
        raise RunError(
            f"{path} is damaged or not a checkpoint ({_first_line(error)}); train again or restore the file."
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a checkpoint: expected a dictionary, found {type(content).__name__}.")
    return content


def inert_state(module: Any, depth: int = 0) -> dict[str, Tensor]:
    """The state dict of a network that :func:`read_inert` found.

    Raises:
        RunError: it is no network.
    """
    parts = getattr(module, "_modules", None)
    if not isinstance(module, Inert) or not isinstance(parts, dict) or depth > _DEEPEST:
        raise RunError("holds no network.")
    hidden = getattr(module, "_non_persistent_buffers_set", ())
    own = {**getattr(module, "_parameters", {}), **getattr(module, "_buffers", {})}
    state: dict[str, Tensor] = {}
    for name, value in own.items():
        if isinstance(value, Tensor) and name not in hidden:
            state[str(name)] = value
    for name, part in parts.items():
        if part is not None:
            for below, value in inert_state(part, depth + 1).items():
                state[f"{name}.{below}"] = value
    return state


class _InertUnpickler(pickle.Unpickler):
    """Builds tensors, and stand-ins for everything else."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        (entry,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        super().__init__(io.BytesIO(_stored(archive, entry)))
        self._archive = archive
        self._folder = entry.removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}
        self._classes: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,
            "torch.Size": torch.Size,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
        }
        order = f"{self._folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise RunError("was written on a machine of another byte order.")

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in under this name.

        Raises:
            RunError: networks are not made of such things.
        """
        full = f"{_RENAMED.get(module, module)}.{name}"
        known = getattr(torch, name, None) if module == "torch" else None
        if isinstance(known, torch.dtype):
            return known
        if full not in self._classes:
            if not full.startswith(_MADE_OF) and full not in _PLAIN and full not in _STORAGES:
                raise RunError(f"holds objects other than tensors and layers ({full}): it could run code.")
            self._classes[full] = type(name, (Inert,), {"named": full})
        return self._classes[full]

    def persistent_load(self, identity: Any) -> Tensor:
        """The numbers of a storage, flat."""
        _, kind, key, _, count = identity
        if key not in self._storages:
            dtype = _STORAGES[getattr(kind, "named", "")]
            data = bytearray(_stored(self._archive, f"{self._folder}data/{key}"))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            if len(flat) < count:
                raise RunError("is cut short.")
            self._storages[key] = flat
        return self._storages[key]


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of an entry, which unpack to no more than the file holds.

    Raises:
        RunError: it is compressed.
    """
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise RunError("is compressed, which torch never does.")
    return archive.read(name)


def _rebuild_tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """A tensor on a storage's numbers; it must not need more of them than there are."""
    if min([offset, *size, *stride], default=0) < 0 or math.prod(size) > len(storage):
        raise RunError("holds a tensor that is larger than its data.")
    return storage.as_strided(tuple(size), tuple(stride), offset)  # torch refuses to look beyond the storage


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data
