"""``medkd_serve`` as a process without torch: it answers, refuses in one sentence, and stops in peace."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medkd.cli.serve import main
from medkd.core.files import read_json, write_json
from medkd.io.volumes import read_label
from medkd.serving import app
from tests.serving.conftest import SCAN, STUDENT, Client

WITHOUT_TORCH = """
import sys
for name in ("torch", "monai", "torchvision"):
    sys.modules[name] = None
from medkd.cli.serve import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture
def process(exported: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported), "--port", "0", "--threads", "1", "--no-tta"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield started
    started.kill()
    started.communicate()


def test_it_serves_without_torch_and_answers_before_it_stops(process: subprocess.Popen[str], tmp_path: Path) -> None:
    assert process.stdout is not None
    told = process.stdout.readline()
    match = re.search(r"student is served at http://127\.0\.0\.1:(\d+) \(stop with Ctrl-C\)$", told.strip())
    assert match, (told, process.stderr)
    call = Client(int(match.group(1)))
    assert call("/health").status == 200
    body = SCAN.read_bytes()
    with socket.create_connection(("127.0.0.1", call.port), timeout=60) as half:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        half.sendall(head.encode() + body[:100])
        threading.Timer(0.5, process.send_signal, [signal.SIGTERM]).start()
        threading.Timer(1.5, half.sendall, [body[100:]]).start()
        answer = b""
        while block := half.recv(65536):
            answer += block
    assert answer.startswith(b"HTTP/1.1 200")
    (tmp_path / "answer.nii.gz").write_bytes(answer.partition(b"\r\n\r\n")[2])
    expected = read_label(STUDENT / "expected.nii.gz").array
    assert np.mean(read_label(tmp_path / "answer.nii.gz").array != expected) < 0.05  # not mirrored here
    _, err = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM) and "Traceback" not in err, err


def test_what_cannot_be_served_is_one_sentence(
    tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def says(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        text = capsys.readouterr().err.strip()
        assert text.startswith("error: ") and "\n" not in text
        return text

    assert "is not a medkd run folder" in says(tmp_path)
    assert "--port expects a number from 0 to 65535" in says(exported, "--port", 70000)
    assert "nothing.json" in says(exported, "--postprocessing", tmp_path / "nothing.json")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --port" in says(exported, "--port", taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "medkd.serving.app", raising=False)
    monkeypatch.delattr("medkd.serving.app", raising=False)
    assert "medkd_serve needs the package fastapi: pip install 'medkd[serve]'." in says(exported)


def test_label_maps_go_through_what_was_chosen(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own, that of a file, or nothing."""
    described = read_json(exported / "preprocessing.json")
    labels = [(name, value) for name, value in described["labels"].items() if value]
    trial = {"values": [labels[-1][1]], "before": 0.5, "after": 0.6, "kept": True, "name": labels[-1][0]}
    write_json(tmp_path / "own.json", {"schema": 1, "folds": ["0"], "cases": 1, "trials": [trial]})
    served = []
    monkeypatch.setattr("medkd.serving.running.serve", lambda application, listener: listener.close())
    make = app.make_app
    monkeypatch.setattr(
        app, "make_app", lambda predictor, *more, **own: served.append(predictor) or make(predictor, *more, **own)
    )
    for words in ([], ["--no-postprocessing"], ["--postprocessing", str(tmp_path / "own.json")]):
        assert main([str(exported), "--port", "0", *words]) == 0
    kept = [[step.name for step in predictor.postprocessing] for predictor in served]
    assert kept == [[step["name"] for step in described.get("postprocessing", [])], [], [labels[-1][0]]]
