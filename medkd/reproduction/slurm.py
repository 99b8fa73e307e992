"""Commands as Slurm job arrays (Yoo et al., JSSPP 2003, doi:10.1007/10968987_3), through submitit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import Any

from medkd.core.errors import RunError
from medkd.reproduction.engines import AGAIN, Needs, Order
from medkd.reproduction.ray_cluster import execute
from medkd.reproduction.slurm_options import cores_of, slurm_options

_WAITING = 1000
_TICKET = re.compile(r"\d+(_\d+)?")  # of a job, or of a task of an array
_LOST = {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}  # through no fault of the command, which goes on from what it kept
_FAILED = {"FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", *_LOST}


class SlurmHandle:
    """A task of a job array.

    Args:
        job: submitit's.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        self.ticket = str(job.job_id)

    def poll(self) -> int | None:
        """Exit status; 1 for a job that Slurm ended, and
        :data:`~medkd.reproduction.engines.AGAIN` for one that its machine, or a more important one, ended.
        """
        if not self.job.done():
            return None
        state = self.job.state.split()[0]
        if state in _FAILED and not self.job.paths.result_pickle.exists():
            return AGAIN if state in _LOST else 1
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
        for program in ("sbatch", "srun"):
            if shutil.which(program) is None:
                raise RunError(
                    f"--engine slurm needs {program}, which is not on the PATH; run on a login node of the cluster."
                )
        self.needs = needs
        self.handles: list[SlurmHandle] = []
        self._executor = submitit.SlurmExecutor(folder=str(needs.folder / "slurm"))
        try:
            self._executor.update_parameters(**_options(needs))
        except (NameError, TypeError, ValueError) as error:
            raise RunError(f"--slurm: {str(error).splitlines()[0]}; leave the option out.") from error

    def free(self) -> int:
        """Room in Slurm's queue, or up to the jobs that were asked for: an array knows of no other."""
        self.handles = [handle for handle in self.handles if handle.poll() is None]
        return (self.needs.jobs or _WAITING) - len(self.handles)

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
                    variables = {**order.environment, "OMP_NUM_THREADS": str(cores_of(self.needs))}
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
        """The job of a ticket, be it done or not; Slurm would be asked for ever for one that it never had."""
        import submitit

        if _TICKET.fullmatch(ticket) is None:
            return None
        handle = SlurmHandle(submitit.SlurmJob(self._executor.folder, ticket))
        self.handles.append(handle)
        return handle

    def stop(self) -> None:
        """Jobs of a cluster go on without this command, which finds them done when it is run again."""


def _options(needs: Needs) -> dict[str, Any]:
    """What sbatch is asked for; without a limit of time, which is Slurm's to set (submitit's own is five minutes)."""
    options: dict[str, Any] = {
        "array_parallelism": needs.jobs or 256,
        "nodes": 1,
        "time": None,
    }
    for name, value in slurm_options(needs).items():
        options[name] = int(value) if value.isdecimal() else value
    return options
