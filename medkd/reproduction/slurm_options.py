"""What Slurm is asked for of a run: by the engine that submits, and by the scripts that somebody else submits."""

from __future__ import annotations

from medkd.core.errors import RunError
from medkd.reproduction.engines import Needs

_NAMES = {"timeout_min": "time", "name": "job_name", "cpus": "cpus_per_task"}
"""Shorter names of sbatch's options, as submitit has them."""
CPUS = "cpus_per_task"


def slurm_options(needs: Needs) -> dict[str, str]:
    """sbatch's options by their names, with ``_`` for ``-``.

    Args:
        needs: of a run; its ``options`` win over the rest.

    Raises:
        RunError: ``mem_gb`` is no number above 0, or one option is given by two names.

    >>> slurm_options(Needs(cpus=2, memory_gb=1.5, options={"mem_gb": "16", "partition": "gpu"}))
    {'cpus_per_task': '2', 'mem': '16384M', 'partition': 'gpu'}
    """
    asked = {CPUS: str(needs.cpus)}
    if needs.gpus:
        asked["gpus_per_node"] = str(max(1, round(needs.gpus)))
    if needs.memory_gb is not None:
        asked["mem"] = _megabytes(needs.memory_gb)
    given: dict[str, str] = {}
    for option, value in needs.options.items():
        option = option.replace("-", "_")
        name = _NAMES.get(option, option)
        if option == "mem_gb":
            name, value = "mem", _megabytes(_gigabytes(value))
        if name in given:
            raise RunError(f"--slurm: {name} is given twice, {given[name]} and {value}; leave one out.")
        given[name] = value
    return asked | given


def cores_of(needs: Needs) -> int:
    """Cores of a run, for its threads."""
    cores = slurm_options(needs)[CPUS]
    return int(cores) if cores.isdecimal() and int(cores) else needs.cpus


def _megabytes(gigabytes: float) -> str:
    return f"{max(1, round(gigabytes * 1024))}M"


def _gigabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise RunError(f"--slurm mem_gb expects a number of GiB above 0, found '{text:.40}'.")
    return number
