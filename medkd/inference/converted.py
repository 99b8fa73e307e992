"""Networks of torch in another engine on the CPU: converted once, kept in the user's cache, and compared with torch on
a random patch whenever they are opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from medkd.core.cache import cache_folder, forget_oldest, used
from medkd.core.errors import MedkdError, RunError
from medkd.core.files import read_json, write_json
from medkd.inference.tuning import tune
from medkd.models.onnx import OPSET, export_onnx
from medkd.models.weights import mean_logits
from medkd.runtime.engines import ENGINES, Engine, EngineName, is_installed, open_engine

EngineChoice = Literal["torch", "auto", "openvino", "onnxruntime"]
ENGINE_CHOICES: tuple[EngineChoice, ...] = get_args(EngineChoice)

SPREAD = 1e-4
"""By how much an engine's logits may differ from torch's: root mean square, as a share of their standard deviation."""

_AUTO: tuple[EngineName, ...] = ("openvino", "onnxruntime")  # the first that can is compared with torch by time
_TURNS = 3
_KEPT = 4 * 2**30  # bytes in the cache
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertedNetworks:
    """The mean of some networks' logits in an engine.

    Attributes:
        engine: that computes it.
        run: ``(B, C, *patch) → (B, K, *patch)``, arrays of float32.
    """

    engine: EngineName
    run: Engine

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``(B, K, *patch)`` of ``(B, C, *patch)``, both on the CPU."""
        return torch.from_numpy(_computed(self.engine, self.run, np.ascontiguousarray(x.numpy(), np.float32)))


class _OtherNumbersError(RunError):
    """An engine computes something else than torch."""


def _computed(engine: EngineName, run: Engine, batch: np.ndarray) -> np.ndarray:
    """What an engine answers.

    Raises:
        RunError: it cannot compute this network.
    """
    try:
        return run(batch)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{engine} cannot compute this network ({reason:.200}); give --engine torch.") from error


@dataclass(frozen=True)
class EnginePlace:
    """Where and how networks are to be computed.

    Attributes:
        device: where torch would compute them.
        precision: of the forwards.
        threads: of another engine than torch; None leaves them to it.
    """

    device: torch.device
    precision: str
    threads: int | None = None

    def check(self, choice: EngineChoice | None) -> None:
        """Refuse an engine for what it cannot do, before anything is loaded.

        Raises:
            RunError: there is none of this name, it is asked for on a GPU or in another arithmetic than fp32, or
                threads are given to torch.
        """
        if choice is not None and choice not in ENGINE_CHOICES:
            raise RunError(
                f"--engine expects {', '.join(ENGINE_CHOICES[:-1])} or {ENGINE_CHOICES[-1]}, found '{choice}'."
            )
        if self.threads is not None and choice not in ENGINES:
            engines = " or ".join(ENGINES)
            raise RunError(
                f"--threads belongs to --engine {engines}; name one of them, or set OMP_NUM_THREADS, which torch "
                "follows."
            )
        if choice in ENGINES and self.device.type != "cpu":
            raise RunError(f"--engine {choice} computes on the CPU; give --device cpu with it, or leave it out.")
        if choice in ENGINES and self.precision != "fp32":
            raise RunError(f"--engine {choice} computes in fp32, not in {self.precision}; leave out one of the two.")

    @property
    def suits(self) -> bool:
        """Whether other engines than torch can compute here."""
        return self.device.type == "cpu" and self.precision == "fp32"


def in_engine(
    networks: Sequence[nn.Module],
    channels: int,
    patch_size: Sequence[int],
    choice: EngineChoice | None,
    place: EnginePlace,
) -> ConvertedNetworks | None:
    """What computes networks as ``--engine`` says; None for torch itself.

    ``auto`` takes the faster of torch and the first of OpenVINO and ONNX Runtime that is installed and computes what
    torch does, on the CPU and in fp32. What was faster is kept beside the converted network, so that it stays the same.
    Where torch alone can, a sentence says why.

    Args:
        networks: in evaluation mode, not tuned (:func:`~medkd.inference.tuning.tune`); ``auto`` tunes them.
        channels: of their input.
        patch_size: the only size that they are asked for.
        choice: None is torch.
        place: where and how.

    Raises:
        RunError: an engine was named that is not installed, cannot express the networks or computes something else; or
            see :meth:`EnginePlace.check`.
    """
    place.check(choice)
    if choice is None or choice == "torch":
        return None
    if choice == "auto" and not place.suits:
        said = f"{place.precision} on {place.device}"
        _log.info("torch predicts: other engines compute in fp32 on the CPU, and this is %s.", said)
        return None
    conversion = _Conversion(networks, channels, patch_size, place)
    if choice == "auto":
        return conversion.fastest()
    try:
        return conversion.opened(choice)
    except RunError as error:
        raise RunError(f"--engine {choice} is of no use here, --engine torch is: {error}") from error


class _Conversion:
    """Networks, and their files in the cache; arguments as for :func:`in_engine`."""

    def __init__(
        self, networks: Sequence[nn.Module], channels: int, patch_size: Sequence[int], place: EnginePlace
    ) -> None:
        self.networks, self.place = networks, place
        self.shape = (1, channels, *patch_size)
        self.file = cache_folder("engines") / f"{self._digest()}.onnx"
        self._is_new = False

    def opened(self, engine: EngineName) -> ConvertedNetworks:
        """The networks in an engine, converted where they are not."""
        if not is_installed(engine):
            raise RunError(f"it needs the package {engine}, which is not installed: pip install {engine}.")
        if self.file.is_file():
            try:
                found = self._checked(engine)
                used(self.file)
                return found
            except RunError as error:
                if self._is_new:
                    raise
                _log.debug("the network in the cache is converted anew: %s", error)
        _log.info("converting the network for other engines, once; it is kept in %s", self.file.parent)
        export_onnx(self.networks, self.shape[1], self.shape[2:], self.file)
        self._is_new = True
        forget_oldest(self.file.parent, _KEPT)
        return self._checked(engine)

    def fastest(self) -> ConvertedNetworks | None:
        """The networks in the engine that is faster than torch; None for torch."""
        known = self._known()
        if known == "torch":
            used(self.file)
            return None
        reasons: list[MedkdError] = []
        for engine in _AUTO if known is None else (known, *(other for other in _AUTO if other != known)):
            try:
                found = self.opened(engine)
            except MedkdError as error:  # whatever it is, torch can predict
                reasons.append(error)
                continue
            is_faster = engine == known or self._is_faster(found)
            self._keep(engine if is_faster else "torch")
            return found if is_faster else None
        self._give_up(reasons)
        return None

    def _give_up(self, reasons: Sequence[MedkdError]) -> None:
        """Say why torch predicts, and keep it where the engines' numbers are the reason."""
        _log.warning("torch predicts, since no other engine can: %s", reasons[0])
        if any(isinstance(reason, _OtherNumbersError) for reason in reasons):
            self._keep("torch")

    def _checked(self, engine: EngineName) -> ConvertedNetworks:
        """Open the converted network, and compare it with torch on a random patch."""
        run = open_engine(self.file, engine, self.place.threads)
        expected = self._answer.double()
        found = torch.from_numpy(_computed(engine, run, self._patch.numpy())).double()
        if found.shape != expected.shape:
            shapes = f"{tuple(found.shape)} where torch gives {tuple(expected.shape)}"
            raise _OtherNumbersError(f"{engine} gives logits {shapes}.")
        spread = float((found - expected).square().mean().sqrt() / expected.std().clamp_min(1e-12))
        if not spread <= SPREAD:  # NaN, too
            raise _OtherNumbersError(
                f"{engine} computes other logits than torch: on a random patch they differ by {100 * spread:.2g} % of "
                f"their spread, {100 * SPREAD:g} % are allowed."
            )
        said = "%s %s computes what torch does: the logits of a random patch differ by %.1g of their spread"
        _log.info(said, engine, _version(engine), spread)
        return ConvertedNetworks(engine, run)

    @cached_property
    def _patch(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(0))

    @cached_property
    def _answer(self) -> Tensor:
        with torch.inference_mode():
            return mean_logits(self.networks, self._patch)

    def _is_faster(self, found: ConvertedNetworks) -> bool:
        """Whether an engine needs less time for the patch than torch, in turns."""
        tuned = [tune(network, self.place.device) for network in self.networks]
        seconds: dict[str, float] = {}
        with torch.inference_mode():
            rivals: dict[str, Callable[[], Tensor]] = {
                "torch": partial(mean_logits, tuned, self._patch),
                found.engine: partial(found, self._patch),
            }
            for turn in range(_TURNS + 1):
                for name, run in rivals.items():
                    begun = time.perf_counter()
                    run()
                    if turn:  # the first warms up
                        seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - begun)
        ours, theirs = seconds["torch"], seconds[found.engine]
        faster = found.engine if theirs < ours else "torch"
        _log.info("%s predicts: a patch takes %.3g s in torch, %.3g s in %s", faster, ours, theirs, found.engine)
        return theirs < ours

    @property
    def _choice_file(self) -> Path:
        return self.file.with_suffix(".json")

    def _known(self) -> EngineName | Literal["torch"] | None:
        """What was found to be the fastest on this machine, if everything is as it was then."""
        try:
            kept = read_json(self._choice_file) if self._choice_file.is_file() else {}
        except MedkdError:  # damaged: it is measured again
            return None
        engine = kept.get("engine") if isinstance(kept, dict) and kept.get("where") == self._where() else None
        return engine if engine in ("torch", *ENGINES) else None

    def _keep(self, engine: str) -> None:
        try:
            write_json(self._choice_file, {"engine": engine, "where": self._where()}, indent=None)
        except MedkdError as error:
            _log.debug("what is faster is measured again next time: %s", error)

    def _where(self) -> list[str]:
        """Everything besides the network on which its speed depends."""
        machine = [platform.node(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
        return [*machine, *map(_version, ("torch", *ENGINES))]

    def _digest(self) -> str:
        """Of everything that the converted network depends on."""
        content = hashlib.sha256()
        described = [OPSET, torch.__version__, *self.shape, *(f"{type(n)} {n!r}" for n in self.networks)]
        content.update(json.dumps(described).encode())
        for network in self.networks:
            for name, value in network.state_dict().items():
                content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                content.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return content.hexdigest()[:40]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
