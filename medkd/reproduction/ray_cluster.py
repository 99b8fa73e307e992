"""Commands on a Ray cluster (Moritz et al., OSDI 2018, arXiv:1712.05889), each with its share of cores and GPUs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.reproduction.engines import Needs, Order

_WAITING = 1000  # orders that may wait in Ray's own queue
_OPTIONS = {"CPU": ("--cpus", "cores", 1), "GPU": ("--gpus", "GPUs", 1), "memory": ("--memory", "GiB", 2**30)}


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
        """Exit status; 1 for a task that the cluster lost."""
        ready, _ = self._ray.wait([self.result], timeout=0)
        if not ready:
            return None
        try:
            return int(self._ray.get(self.result))
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
        try:
            import ray
        except ImportError as error:
            raise RunError("--engine ray needs the package ray; run pip install 'medkd[cluster]'.") from error
        self._ray, self.needs = ray, needs
        self.handles: list[RayHandle] = []
        self._connect()
        if needs.address is None and not os.environ.get("RAY_ADDRESS"):
            self._refuse_impossible()  # a cluster of somebody else's may grow
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

    def _refuse_impossible(self) -> None:
        """Refuse what a run needs and this machine does not have; Ray would wait for another machine for ever."""
        there = self._ray.cluster_resources()
        asked = {"CPU": self.needs.cpus, "GPU": self.needs.gpus, "memory": (self.needs.memory_gb or 0.0) * 2**30}
        lacking = [name for name, amount in asked.items() if amount > there.get(name, 0.0)]
        if not lacking:
            return
        self._ray.shutdown()
        option, unit, size = _OPTIONS[lacking[0]]
        raise RunError(
            f"{option} asks for {asked[lacking[0]] / size:g} {unit} per run, but Ray has "
            f"{there.get(lacking[0], 0.0) / size:.3g} on this machine; ask for less, or give the --address of a larger "
            "cluster."
        )

    def _connect(self) -> None:
        address = self.needs.address
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address is None:
                settings["include_dashboard"] = False
            else:
                settings["address"] = address
                _knock(address)
            self._ray.init(ignore_reinit_error=True, **settings)
        except Exception as error:  # what Ray raises here has no common class
            reason = str(error).splitlines()[0]
            raise RunError(
                f"There is no Ray cluster at {address or 'this machine'} ({reason:.200}); start it (ray start --head), "
                "or leave out --address for one on this machine."
            ) from error


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
