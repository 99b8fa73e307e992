"""Commands as Slurm job arrays (Yoo et al., JSSPP 2003, doi:10.1007/10968987_3), through submitit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from medkd.core.errors import RunError
from medkd.reproduction.engines import Needs, Order
from medkd.reproduction.ray_cluster import execute

_WAITING = 1000
_FAILED = {"FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL"}


class SlurmHandle:
    """A task of a job array.

    Args:
        job: submitit's.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        self.ticket = str(job.job_id)

    def poll(self) -> int | None:
        """Exit status; 1 for a job that Slurm ended."""
        if not self.job.done():
            return None
        if self.job.state.split()[0] in _FAILED and not self.job.paths.result_pickle.exists():
            return 1
        try:
            return int(self.job.result())
        except Exception:  # whatever the job raised, on another machine
            return 1


class SlurmEngine:
    """Submits all commands that may run at once as one array.

    Args:
        needs: cores, GPUs and memory per command, Slurm's options, a folder for its files.

    Raises:
        RunError: submitit is not installed, there is no sbatch, or an option is unknown.
    """

    def __init__(self, needs: Needs) -> None:
        try:
            import submitit
        except ImportError as error:
            raise RunError("--engine slurm needs the package submitit; run pip install 'medkd[cluster]'.") from error
        if shutil.which("sbatch") is None:
            raise RunError("--engine slurm needs sbatch, which is not on the PATH; run on a login node of the cluster.")
        self.needs = needs
        self.handles: list[SlurmHandle] = []
        self._executor = submitit.AutoExecutor(folder=str(needs.folder / "slurm"), cluster="slurm")
        options: dict[str, Any] = {"cpus_per_task": needs.cpus, "slurm_array_parallelism": needs.jobs or 256}
        if needs.gpus:
            options["gpus_per_node"] = max(1, round(needs.gpus))
        if needs.memory_gb is not None:
            options["mem_gb"] = needs.memory_gb
        for name, value in needs.options.items():
            known = name if name in ("timeout_min", "nodes", "name") else f"slurm_{name}"
            options[known] = int(value) if value.isdecimal() else value
        try:
            self._executor.update_parameters(**options)
        except (NameError, TypeError, ValueError) as error:
            raise RunError(f"--slurm: {str(error).splitlines()[0]}; leave the option out.") from error

    def free(self) -> int:
        """Room in Slurm's queue, whose own limits hold."""
        self.handles = [handle for handle in self.handles if handle.poll() is None]
        return _WAITING - len(self.handles)

    def begin(self, orders: Sequence[Order]) -> list[SlurmHandle]:
        """Submit an array of one task per command.

        Raises:
            RunError: sbatch refuses.
        """
        import submitit

        jobs = []
        try:
            with self._executor.batch():
                for order in orders:
                    variables = dict(order.environment)
                    submitted = self._executor.submit(
                        execute, list(order.command), str(order.output), str(order.log), variables
                    )
                    jobs.append(submitted)
        except (submitit.core.utils.FailedJobError, OSError) as error:
            raise RunError(f"sbatch refused the jobs: {str(error).splitlines()[-1]:.300}.") from error
        begun = [SlurmHandle(job) for job in jobs]
        self.handles += begun
        return begun

    def find(self, ticket: str) -> SlurmHandle | None:
        """The job of a ticket, be it done or not."""
        import submitit

        if not ticket:
            return None
        handle = SlurmHandle(submitit.SlurmJob(self._executor.folder, ticket))
        self.handles.append(handle)
        return handle

    def stop(self) -> None:
        """Jobs of a cluster go on without this command, which finds them done when it is run again."""
