"""Commands on a Ray cluster (Moritz et al., OSDI 2018, arXiv:1712.05889), each with its share of cores and GPUs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.reproduction.engines import AGAIN, Needs, Order

_log = logging.getLogger(__name__)
_WAITING = 1000  # orders that may wait in Ray's own queue
_OPTIONS = {"CPU": ("--cpus", "cores", 1), "GPU": ("--gpus", "GPUs", 1), "memory": ("--memory", "GiB", 2**30)}
_MODE, _TOKEN, _TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_REFUSED = ("AuthenticationError", "InvalidAuthToken")  # in what Ray raises, or in what that came from


class RayHandle:
    """A task on the cluster.

    Args:
        ray: the package.
        result: what the task will give.
    """

    ticket = ""

    def __init__(self, ray: Any, result: Any) -> None:
        self._ray, self.result = ray, result

    def poll(self) -> int | None:
        """Exit status; 1 for a task that was cancelled or went down, :data:`~medkd.reproduction.engines.AGAIN` for one
        whose machine was lost.
        """
        ready, _ = self._ray.wait([self.result], timeout=0)
        if not ready:
            return None
        try:
            return int(self._ray.get(self.result))
        except (self._ray.exceptions.NodeDiedError, self._ray.exceptions.LocalRayletDiedError):
            return AGAIN
        except self._ray.exceptions.RayError:
            return 1


class RayEngine:
    """Hands all commands that may run to Ray, whose scheduler places them.

    All machines of the cluster must see medkd's folder under the same path and have medkd installed.

    Args:
        needs: cores, GPUs and memory per command, address of the cluster.

    Raises:
        RunError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, needs: Needs) -> None:
        self._token = _send_token()
        self._address = needs.address or os.environ.get("RAY_ADDRESS") or None
        if self._address is not None:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else a line per try to connect
        try:
            import ray
        except ImportError as error:
            raise RunError("--engine ray needs the package ray; run pip install 'medkd[cluster]'.") from error
        self._ray, self.needs = ray, needs
        self.handles: list[RayHandle] = []
        self._connect()
        self.needs = needs = replace(needs, gpus=self._gpus_of_a_run())
        lacking = self._lacking()
        if lacking and self._address is None:
            ray.shutdown()
            raise RunError(f"{lacking} on this machine; ask for less, or give the --address of a larger cluster.")
        if lacking:  # a cluster of somebody else's may grow
            _log.warning("%s on its largest machine; nothing begins until one joins that has as much", lacking)
        resources: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0}
        if needs.memory_gb is not None:
            resources["memory"] = int(needs.memory_gb * 2**30)
        self._execute = ray.remote(**resources)(execute)

    def free(self) -> int:
        """Room in the queue, or up to the jobs that were asked for."""
        self.handles = [handle for handle in self.handles if handle.poll() is None]
        return (self.needs.jobs or _WAITING) - len(self.handles)

    def begin(self, orders: Sequence[Order]) -> list[RayHandle]:
        """A task per command."""
        begun = []
        for order in orders:
            variables = {**order.environment, "OMP_NUM_THREADS": str(self.needs.cpus)}
            result = self._execute.remote(list(order.command), str(order.output), str(order.log), variables)
            begun.append(RayHandle(self._ray, result))
        self.handles += begun
        return begun

    def find(self, ticket: str) -> None:
        """Tasks end with the runner that began them."""

    def stop(self) -> None:
        """Cancel the tasks, which interrupt their commands, and leave the cluster."""
        for handle in self.handles:
            self._ray.cancel(handle.result, force=False)
        deadline = time.monotonic() + 30
        while any(handle.poll() is None for handle in self.handles) and time.monotonic() < deadline:
            time.sleep(0.2)
        self._ray.shutdown()

    def _gpus_of_a_run(self) -> float:
        """As asked for; else one where the cluster has any and the commands may use it, since Ray shows a task that
        asks for none all those of its machine.
        """
        if self.needs.gpus is not None:
            return self.needs.gpus
        return float(self.needs.device != "cpu" and self._ray.cluster_resources().get("GPU", 0.0) >= 1)

    def _lacking(self) -> str:
        """What a run needs and no machine of the cluster has; Ray waits for one for ever."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        asked = {"CPU": self.needs.cpus, "GPU": self.needs.gpus or 0.0, "memory": (self.needs.memory_gb or 0.0) * 2**30}
        for name, amount in asked.items():
            option, unit, size = _OPTIONS[name]
            most = max((machine.get(name, 0.0) for machine in machines), default=0.0)
            if amount > most:
                return f"{option} asks for {amount / size:g} {unit} per run, but Ray has {most / size:.3g}"
        return ""

    def _connect(self) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if self._address is None:
                settings["include_dashboard"] = False
            else:
                settings["address"] = self._address
                _knock(self._address)
            self._ray.init(ignore_reinit_error=True, **settings)
        except Exception as error:  # what Ray raises here has no common class
            raise RunError(self._why_not(error)) from error

    def _why_not(self, error: Exception) -> str:
        """Why there is no connection, and what to do."""
        reason, where = " ".join(str(error).split()), self._address or "this machine"
        if any(word in told for told in _origins(error) for word in _REFUSED):
            return (
                f"The Ray cluster at {where} expects its token, but {self._token}; put what `ray get-auth-token` "
                f"prints on its head into ~/.ray/auth_token of every machine, and leave {_MODE} out."
            )
        if "Version mismatch" in reason:
            return f"The Ray cluster at {where} is of other versions ({reason:.400}); install the same ones everywhere."
        otherwise = "clear what is left of it (ray stop)"
        if self._address is not None:
            given = "--address" if self.needs.address else "RAY_ADDRESS"
            otherwise = f"leave out {given} for one on this machine"
        return f"There is no Ray cluster at {where} ({reason:.200}); start it (ray start --head), or {otherwise}."


def _send_token() -> str:
    """Let Ray send the user's token. A cluster asks for it that ``ray start`` began where there was one (``ray.init``
    leaves one behind), but Ray sends it to no address unless it is told to.

    Returns:
        Why a cluster that asks for one may have got none, or a wrong one.
    """
    kept = Path.home() / ".ray" / "auth_token"
    if os.environ.get(_MODE, "token") != "token":
        return f"{_MODE} is {os.environ[_MODE]}"
    place = _TOKEN if os.environ.get(_TOKEN) else os.environ.get(_TOKEN_FILE)
    if place is None and not kept.exists():
        return f"found none in {kept} or {_TOKEN}"
    if _MODE not in os.environ and "ray" in sys.modules:
        return f"ray was imported before {_MODE}=token was set"
    os.environ[_MODE] = "token"  # is looked at when ray is imported
    return f"found another one in {place or kept}"


def _origins(error: BaseException | None) -> Iterator[str]:
    """What an error says, and those that it came from."""
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__


def _knock(address: str) -> None:
    """See that something listens at ``HOST:PORT``, since Ray itself waits for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host, int(port)), timeout=10):
            pass


def execute(command: list[str], output: str, log: str, variables: dict[str, str]) -> int:
    """Run a command on the machine that Ray chose; an interrupt of the task is passed on.

    Args:
        command: words, the program first.
        output: file for standard output.
        log: file for standard error.
        variables: of the environment, beside the machine's own.

    Returns:
        The exit status.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(output, "wb") as out, open(log, "ab") as err:
        environment = {**os.environ, **variables}
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        try:
            return child.wait()
        except BaseException:  # Ray raises KeyboardInterrupt in a task that is cancelled
            child.send_signal(signal.SIGINT)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
