"""A process that used OpenVINO survives the signals that Python handles."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import medkd

USED = {
    "two engines that do not end in reverse order": """
first, second = open_engine(network, threads=1), open_engine(network, threads=1)
first(np.ones((1, 1, 4), np.float32)), second(np.ones((1, 1, 4), np.float32))
del first
del second
""",
    "an engine that lives while another one is made and ends": """
first = open_engine(network, threads=1)
second = open_engine(network, threads=1)
del first
third = open_engine(network, threads=1)
del second, third
""",
}
SCRIPT = """
import gc, signal, sys
from pathlib import Path
import numpy as np
import openvino
from openvino import opset13
from medkd.runtime.engines import open_engine

network = Path(sys.argv[1])
given = opset13.parameter([-1, 1, 4], np.float32)
openvino.save_model(openvino.Model([opset13.relu(given)], [given]), str(network))
"""
AFTERWARDS = """
gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
signal.raise_signal(signal.SIGCHLD)
"""
CREATES_PLUGINS = {"compile_model", "quantize"}


@pytest.mark.parametrize("used", USED.values(), ids=USED.keys())
def test_a_signal_is_handled_after_openvino(tmp_path: Path, used: str) -> None:
    pytest.importorskip("openvino")
    words = [sys.executable, "-X", "faulthandler", "-c", SCRIPT + used + AFTERWARDS, str(tmp_path / "network.xml")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, f"{signal.Signals(-ended.returncode).name if ended.returncode < 0 else ended.stderr}"
    assert ended.stdout.splitlines()[-1] == "handled"


def test_whatever_makes_a_plugin_of_openvino_keeps_the_stack() -> None:
    found = []
    for path in sorted(Path(medkd.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        kept = [node for node in ast.walk(tree) if isinstance(node, ast.With) and "kept_signal_stack" in ast.dump(node)]
        inside = {id(call) for node in kept for call in ast.walk(node)}
        for call in ast.walk(tree):
            is_one = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
            if is_one and call.func.attr in CREATES_PLUGINS and ast.unparse(call.func.value) != "torch.quantization":
                found.append((path.name, id(call) in inside))
    assert found
    assert [name for name, is_kept in found if not is_kept] == []
