"""What runs an exported network on a processor: ONNX Runtime or OpenVINO; both take and give numpy arrays."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medkd.core.errors import RunError
from medkd.runtime.signal_stack import kept_signal_stack

EngineName = Literal["onnxruntime", "openvino"]
Engine = Callable[[np.ndarray], np.ndarray]
Outputs = Callable[[np.ndarray], list[np.ndarray]]

ENGINES: tuple[EngineName, ...] = ("onnxruntime", "openvino")


def open_engine(
    network: Path, engine: EngineName | None = None, threads: int | None = None, *, every: bool = False
) -> Any:
    """Load an exported network.

    Args:
        network: ``*.onnx``, or ``*.xml`` of OpenVINO, which only that runs.
        engine: None takes OpenVINO for its own files, else ONNX Runtime where it is installed, else OpenVINO.
        threads: None leaves it to the engine.
        every: give the list of all outputs instead of the first; ONNX Runtime only.

    Returns:
        An :data:`Engine`, ``(B, C, *patch) → (B, K, *patch)``, float32; or what gives the list.

    Raises:
        RunError: the engine is not installed, or the file is none that it can read.
    """
    chosen = choose_engine(network, engine)
    if threads is not None and threads < 1:
        raise RunError(f"--threads expects a whole number of at least 1, found {threads}.")
    opener = {"onnxruntime": _onnxruntime, "openvino": _openvino}[chosen]
    try:
        run = opener(network, threads)
        return run if every else lambda batch: run(batch)[0]
    except ImportError as error:
        raise RunError(
            f"{network} needs the package {chosen}, which is not installed: pip install {chosen}."
        ) from error
    except Exception as error:
        raise RunError(
            f"{network} is damaged, or no network that {chosen} can read ({_reason(error):.200}); export it again."
        ) from error


def _reason(error: Exception) -> str:
    """What an engine says, without the place in its source that OpenVINO begins with."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    return said[0] if said else repr(error)


def choose_engine(network: Path, engine: EngineName | None = None) -> EngineName:
    """The engine that runs a network; arguments as for :func:`open_engine`.

    Raises:
        RunError: there is no engine of this name, or it cannot read this file.
    """
    if engine is not None and engine not in ENGINES:
        raise RunError(f"--engine expects {' or '.join(ENGINES)}, found '{engine}'.")
    if network.suffix == ".xml":
        if engine == "onnxruntime":
            raise RunError(f"{network} is a network of OpenVINO; give --engine openvino, or export with --format onnx.")
        return "openvino"
    if engine is not None:
        return engine
    return "openvino" if not is_installed("onnxruntime") and is_installed("openvino") else "onnxruntime"


def is_installed(package: str) -> bool:
    """Whether a package can be imported here."""
    try:
        return find_spec(package) is not None
    except ValueError:  # an entry of sys.modules that is None
        return False


def _onnxruntime(network: Path, threads: int | None) -> Outputs:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> list[np.ndarray]:
        return list(session.run(None, {name: batch}))

    return run


def _openvino(network: Path, threads: int | None) -> Outputs:
    import openvino

    # OpenVINO would choose bf16 by itself where the processor has it, which changes label maps
    settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    with kept_signal_stack():
        compiled = openvino.Core().compile_model(str(network), "CPU", settings)
    request = compiled.create_infer_request()

    def run(batch: np.ndarray) -> list[np.ndarray]:
        request.infer({0: batch})
        return [np.array(request.get_output_tensor(0).data)]

    return run
