"""A server on a free port with the exported student of the fixtures, and a client of the standard library."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medkd.runtime.predictor import RuntimePredictor

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"
SCAN = OLD / "scan_0000.nii.gz"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Client:
    port: int

    def __call__(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())
        finally:
            connection.close()


def form(*parts: bytes, name: str = "scan", filename: str = "../../etc/passwd") -> tuple[bytes, dict[str, str]]:
    """A multipart form with files, whose names are a stranger's."""
    lines = []
    for part in parts:
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        lines.append(head.encode() + part + b"\r\n")
    return b"".join([*lines, b"--edge--\r\n"]), {"Content-Type": "multipart/form-data; boundary=edge"}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("fastapi")
    from medkd.exporting.export import export_model

    folder = tmp_path_factory.mktemp("served") / "student"
    export_model(STUDENT, folder, scan=[SCAN])
    return folder


@pytest.fixture(scope="session")
def predictor(exported: Path) -> RuntimePredictor:
    return RuntimePredictor.open(exported, threads=1)


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Starts servers around predictors, and stops them."""
    pytest.importorskip("fastapi")
    import uvicorn

    from medkd.serving.app import make_app
    from medkd.serving.limits import Limits
    from medkd.serving.running import listen

    running: list[tuple[Any, threading.Thread]] = []

    def start(predictor: Any, name: str = "student", **limits: Any) -> Client:
        application = make_app(predictor, name, Limits(**limits))
        listener = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(application, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return Client(listener.getsockname()[1])

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
