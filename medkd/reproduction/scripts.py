"""Job scripts for Slurm that somebody else submits: one array per step of the graph, each after the one before."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from medkd.core.files import write_text
from medkd.reproduction.engines import Needs
from medkd.reproduction.graph import Node
from medkd.reproduction.slurm_options import cores_of, slurm_options

MOST_TASKS = 1000
"""Of an array; Slurm's own limit is 1001 unless a cluster says otherwise."""


def write_scripts(folder: Path, nodes: Mapping[str, Node], words: Sequence[str], needs: Needs) -> list[Path]:
    """Write a script per array, and ``submit.sh``, which submits them; older ones go.

    Each task is ``medkd_reproduce`` for one run, which finds what it needs done by the arrays before.

    Args:
        folder: for the scripts, on a file system that all machines share.
        nodes: what is left to do, in an order in which it may be done.
        words: of ``medkd_reproduce``: recipe and options, without ``--only``.
        needs: cores, GPUs and memory of a run, Slurm's options, and most runs at a time.

    Returns:
        The scripts, ``submit.sh`` last; nothing where nothing is left to do.

    Raises:
        RunError: an option of Slurm's means nothing.
    """
    slurm_options(needs)  # may be refused, before older scripts go
    shutil.rmtree(folder, ignore_errors=True)
    if not nodes:
        return []
    written, submits = [], []
    before: list[str] = []
    for number, level in enumerate(levels(nodes), start=1):
        jobs = []
        for part, start in enumerate(range(0, len(level), MOST_TASKS)):
            name = f"{number:02d}_{_kinds(nodes, level)}" + (f"_{part + 1}" if len(level) > MOST_TASKS else "")
            path = folder / f"{name}.sh"
            write_text(path, _script(name, level[start : start + MOST_TASKS], words, needs, folder))
            written.append(path)
            job = f"job_{number}_{part + 1}"
            after = f"--kill-on-invalid-dep=yes --dependency=afterok:{':'.join(before)} " if before else ""
            submits.append(f"{job}=$(sbatch --parsable {after}{path.name})")
            submits.append(f"{job}=${{{job}%%;*}}  # without the name of the cluster")
            jobs.append(f"${job}")
        before = jobs
    path = folder / "submit.sh"
    lines = ["#!/bin/bash", "set -euo pipefail", 'cd "$(dirname "$0")"', *submits, 'echo "submitted"']
    write_text(path, "\n".join(lines) + "\n")
    return [*written, path]


def levels(nodes: Mapping[str, Node]) -> list[list[str]]:
    """Names of the nodes that may be done at the same time, those first that need none of the others."""
    depth: dict[str, int] = {}
    for name, node in nodes.items():
        depth[name] = 1 + max((depth[need] for need in node.needs if need in nodes), default=-1)
    found: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, place in depth.items():
        found[place].append(name)
    return found


def _kinds(nodes: Mapping[str, Node], level: Sequence[str]) -> str:
    return "_".join(sorted({nodes[name].kind for name in level}))


def _script(name: str, level: Sequence[str], words: Sequence[str], needs: Needs, folder: Path) -> str:
    asked = {
        "job-name": f"medkd_{name}",
        "array": f"0-{len(level) - 1}%{needs.jobs or 256}",
        "output": str(folder / f"{name}_%a.log"),
    }
    for option, value in slurm_options(needs).items():
        asked[option.replace("_", "-")] = value
    command = shlex.join([sys.executable, "-m", "medkd", "reproduce", *words])
    lines = ["#!/bin/bash", *(f"#SBATCH --{option}={shlex.quote(value)}" for option, value in asked.items())]
    lines += ["set -euo pipefail", f"export OMP_NUM_THREADS={cores_of(needs)}", "runs=(", *level, ")"]
    lines.append(f'exec {command} --only "${{runs[$SLURM_ARRAY_TASK_ID]}}" --jobs 1')
    return "\n".join(lines) + "\n"
