"""A cluster that `ray start --head` began, by its address: with the user's token, and after the driver was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from medkd.cli.reproduce import main
from medkd.core.errors import RunError
from medkd.reproduction.engines import Needs, make_engine
from tests.processes import free_port

_PATIENCE = 90.0
_DRIVER = """
import sys, time
from pathlib import Path
from medkd.reproduction.engines import Needs, Order, make_engine
address, folder, code = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
engine = make_engine("ray", Needs(address=address))
order = Order(name="a", command=(sys.executable, "-c", code), output=folder / "out", log=folder / "log")
(handle,) = engine.begin([order])
while (code := handle.poll()) is None:
    time.sleep(0.05)
engine.stop()
sys.exit(code)
"""
_FAILING = """
import os
mode = os.environ.get("RAY_AUTH_MODE")
class AuthenticationError(Exception): ...
def init(**settings):
    try:
        raise AuthenticationError(mode)
    except AuthenticationError as error:
        raise ConnectionError("Failed to connect") from RuntimeError(f"of {error!r}")
"""


@contextmanager
def cluster(home: Path) -> Iterator[str]:
    """The address of a cluster of one core, in a folder of its own, so that no other test takes it for its own."""
    place = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's sockets have no room for long names
    ports = ("--port", "--ray-client-server-port", "--dashboard-agent-listen-port")
    address = f"127.0.0.1:{(free := [free_port() for _ in ports])[0]}"
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus", "1"]
    command += ["--object-store-memory", str(80 * 10**6), "--include-dashboard", "false", "--temp-dir", place]
    command.append("--disable-usage-stats")
    for option, port in zip(ports, free, strict=True):
        command += [option, str(port)]
    log = home / "ray_start.log"
    with log.open("w") as output:
        head = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(home))
    try:
        if not came(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None) or head.poll():
            pytest.skip(f"ray start does not work here: {log.read_text()[-300:]}")
        yield address
    finally:
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(_PATIENCE)
        head.kill()
        shutil.rmtree(place, ignore_errors=True)


def environment(home: Path) -> dict[str, str]:
    """Of a user of whom Ray knows nothing but the home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def came(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_cluster_with_a_token_takes_commands_again_after_its_driver_was_killed(tmp_path: Path) -> None:
    if find_spec("ray") is None:
        pytest.skip("the extra cluster is not installed")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)  # as ray.init leaves one behind
    with cluster(tmp_path) as address:
        driver = [sys.executable, "-c", _DRIVER, address, str(tmp_path)]
        long = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        first = subprocess.Popen([*driver, long], env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
        begun = tmp_path / "out"
        assert came(lambda: first.poll() is not None or (begun.exists() and begun.read_text().endswith("\n")))
        assert first.poll() is None, first.communicate()[1]
        command = psutil.Process(int(begun.read_text()))
        first.kill()
        first.communicate()
        assert came(lambda: not command.is_running() or command.status() == psutil.STATUS_ZOMBIE)
        subprocess.run([*driver, "print('done')"], env=environment(tmp_path), check=True, timeout=_PATIENCE)
        assert begun.read_text() == "done\n"


@pytest.mark.parametrize(
    ("variables", "kept", "found"),
    [
        ({}, False, "but found none in {home}/.ray/auth_token or RAY_AUTH_TOKEN; put"),
        ({}, True, "but found another one in {home}/.ray/auth_token; put"),
        ({"RAY_AUTH_TOKEN": "x"}, False, "but found another one in RAY_AUTH_TOKEN; put"),
        ({"RAY_AUTH_MODE": "disabled"}, True, "but RAY_AUTH_MODE is disabled; put"),
    ],
)
def test_a_cluster_that_refuses_a_token_is_one_sentence(
    variables: dict[str, str], kept: bool, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is a module that fails as Ray does where the token is missing or wrong."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_BACKEND_LOG_LEVEL"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in {**variables, "HOME": str(tmp_path), "RAY_ADDRESS": "auto"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ray").mkdir()
    if kept:
        (tmp_path / ".ray" / "auth_token").touch()
    (tmp_path / "ray.py").write_text(_FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    del sys.modules["ray"]
    with pytest.raises(RunError, match=r"^The Ray cluster at auto expects its token, but ") as caught:
        make_engine("ray", Needs())
    assert found.format(home=tmp_path) in str(caught.value) and "`ray get-auth-token` prints" in str(caught.value)
    sent = "another one" in found
    assert sys.modules["ray"].mode == ("token" if sent else variables.get("RAY_AUTH_MODE"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--address", "127.0.0.1:6379"], "--address is for --engine ray, found --engine local; change one of them."),
        (["--engine", "ray", "--slurm", "partition=x"], "--slurm is for --engine slurm, found --engine ray; change"),
    ],
)
def test_what_an_engine_has_no_use_for_is_refused(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["toy.json", *words]) == 1
    assert sentence in capsys.readouterr().err
