"""Engines run real commands: on this machine, on a Ray cluster of its own, and under an sbatch that only pretends."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medkd.core.errors import RunError
from medkd.reproduction import local
from medkd.reproduction.engines import AGAIN, Engine, Handle, Needs, Order, make_engine
from medkd.reproduction.ray_cluster import RayEngine, RayHandle
from medkd.reproduction.reproduce import ReproduceOptions
from medkd.reproduction.slurm_options import cores_of, slurm_options

_PATIENCE = 120.0


def order(folder: Path, name: str, code: str) -> Order:
    command = (sys.executable, "-c", code)
    return Order(name=name, command=command, output=folder / f"{name}.out", log=folder / f"{name}.log")


def ended(handle: Handle) -> int:
    deadline = time.monotonic() + _PATIENCE
    while (code := handle.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return code


def check_two_commands(engine: Engine, folder: Path) -> None:
    """One that ends well and one that does not, with what they say."""
    good = order(folder, "good", "print('here'); import sys; print('there', file=sys.stderr)")
    bad = order(folder, "bad", "import sys; sys.exit(3)")
    codes = [ended(handle) for handle in engine.begin([good, bad])]
    assert codes == [0, 3]
    assert good.output.read_text() == "here\n"
    assert "there\n" in good.log.read_text()


def test_local_commands_end_with_their_own_status(tmp_path: Path) -> None:
    engine = make_engine("local", Needs(jobs=2))
    assert engine.free() == 2
    check_two_commands(engine, tmp_path)
    assert engine.free() == 2


def test_commands_for_the_processor_get_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs are no reason to begin eight trainings on the cores of one machine."""
    monkeypatch.setattr(local, "visible_devices", lambda: [str(number) for number in range(8)])
    assert make_engine("local", Needs()).free() == 8
    engine = make_engine("local", Needs(device="cpu"))
    assert engine.free() == 1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = order(tmp_path, "told", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    assert ended(engine.begin([told])[0]) == 0 and told.output.read_text() == "None\n"


def test_a_numbered_gpu_is_not_for_several_runs() -> None:
    """Each run sees a GPU of its own, whose number is 0."""
    with pytest.raises(RunError, match=r"^Expected cuda as the device, .* found cuda:1; .*CUDA_VISIBLE_DEVICES=1"):
        ReproduceOptions(device="cuda:1")
    assert ReproduceOptions(device="cuda").device == "cuda"


def test_local_places_are_held_while_a_command_runs(tmp_path: Path) -> None:
    engine = make_engine("local", Needs(jobs=1))
    engine.begin([order(tmp_path, "long", "import time; time.sleep(60)")])
    assert engine.free() == 0
    engine.stop()
    assert engine.free() == 1


def test_a_stopped_command_is_interrupted_and_may_tidy_up(tmp_path: Path) -> None:
    code = "import pathlib, time\ntry:\n    print('up', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n"
    code += f"    pathlib.Path({str(tmp_path / 'tidied')!r}).touch()"
    engine = make_engine("local", Needs(jobs=1))
    long = order(tmp_path, "long", code)
    engine.begin([long])
    deadline = time.monotonic() + _PATIENCE
    while "up" not in long.output.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    engine.stop()
    assert (tmp_path / "tidied").exists()


def test_a_command_of_a_killed_runner_is_found_and_asked_again(tmp_path: Path) -> None:
    first = make_engine("local", Needs(jobs=1))
    child = first.begin([order(tmp_path, "long", "import time; time.sleep(60)")])[0]
    second = make_engine("local", Needs(jobs=1))
    found = second.find(child.ticket)
    assert found is not None
    assert found.poll() is None
    assert second.free() == 0
    second.stop()
    child.poll()
    assert found.poll() == AGAIN
    assert second.find(child.ticket) is None
    assert second.find("nonsense") is None


def test_a_found_command_holds_the_place_that_it_had(tmp_path: Path) -> None:
    first = make_engine("local", Needs(jobs=2))
    long = "import time; time.sleep(60)"
    here, there = first.begin([order(tmp_path, "a", long), order(tmp_path, "b", long)])
    second = make_engine("local", Needs(jobs=2))
    found = second.find(there.ticket)
    new = second.begin([order(tmp_path, "c", long)])[0]
    assert found is not None
    assert (found.place, new.place) == (there.place, here.place)  # type: ignore[attr-defined]
    second.stop()
    first.stop()


def test_unknown_engines_and_missing_programs_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"must be one of local, ray, slurm, found 'dask'"):
        make_engine("dask", Needs())
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match="needs sbatch, which is not on the PATH"):
        make_engine("slurm", Needs())


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_one_sentence(engine: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RunError, match=rf"needs the package {package}; run pip install 'medkd\[cluster\]'"):
        make_engine(engine, Needs())


@pytest.mark.slow
def test_ray_runs_the_same_commands(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    engine = make_engine("ray", Needs(cpus=1, folder=tmp_path))
    try:
        check_two_commands(engine, tmp_path)
    finally:
        engine.stop()


def test_a_ray_cluster_that_is_not_there_is_one_sentence() -> None:
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    with pytest.raises(RunError, match=r"^There is no Ray cluster at 127\.0\.0\.1:1 \(.*refused.*\); start it"):
        make_engine("ray", Needs(address="127.0.0.1:1"))


_SBATCH = """#!/bin/bash
# runs every task of the array that the batch file asks for, at once
file="${@: -1}"
tasks=$(grep -oP -- '--array=0-\\K[0-9]+' "$file" || true)
echo "$@" >> "$PRETENDED/calls"
job=$((76 + $(wc -l < "$PRETENDED/calls")))
export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
for task in $(seq 0 "${tasks:-0}"); do
  array="SLURM_ARRAY_JOB_ID=$job SLURM_ARRAY_TASK_ID=$task"
  (env SLURM_JOB_ID=$((job + task)) ${tasks:+$array} bash "$file" >"$PRETENDED/$job.$task" 2>&1 &)
done
echo "Submitted batch job $job"
"""
_SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do
  if [[ "$1" == --output || "$1" == --error ]]; then shift; fi
  shift
done
exec "$@"
"""
_SACCT = "#!/bin/bash\necho 'JobID|State'\n"


def pretend_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = folder / "bin"
    programs.mkdir()
    for name, text in {"sbatch": _SBATCH, "srun": _SRUN, "sacct": _SACCT, "scancel": "#!/bin/bash\n"}.items():
        program = programs / name
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PRETENDED", str(folder))


@pytest.mark.slow
def test_slurm_gets_one_array_with_what_a_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="the extra cluster is not installed")
    pretend_slurm(tmp_path, monkeypatch)
    needs = Needs(
        cpus=3, gpus=1, memory_gb=7, jobs=2, options={"partition": "gpu", "timeout_min": "90"}, folder=tmp_path
    )
    engine = make_engine("slurm", needs)
    check_two_commands(engine, tmp_path)
    assert (tmp_path / "calls").read_text().count("\n") == 1
    asked = next((tmp_path / "slurm").glob("*.sh")).read_text()
    for line in ("array=0-1%2", "cpus-per-task=3", "gpus-per-node=1", "mem=7168M", "partition=gpu", "time=90"):
        assert f"#SBATCH --{line}" in asked


def test_slurm_is_asked_by_its_own_names_and_units() -> None:
    told = Needs(cpus=2, memory_gb=7, options={"cpus": "4", "mem_gb": "1.5", "timeout-min": "90", "gres": "gpu:1"})
    assert slurm_options(told) == {"cpus_per_task": "4", "mem": "1536M", "time": "90", "gres": "gpu:1"}
    assert (cores_of(told), cores_of(replace(told, options={}))) == (4, 2)
    for wrong in ("lots", "0", "nan", "inf", "-1"):
        with pytest.raises(RunError, match=f"^--slurm mem_gb expects a number of GiB above 0, found '{wrong}'"):
            slurm_options(Needs(options={"mem_gb": wrong}))
    with pytest.raises(RunError, match=r"^--slurm: time is given twice, 90 and 60; leave one out"):
        slurm_options(Needs(options={"timeout_min": "90", "time": "60"}))


@pytest.mark.slow
def test_an_option_that_slurm_does_not_have_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="the extra cluster is not installed")
    pretend_slurm(tmp_path, monkeypatch)
    with pytest.raises(RunError, match=r"--slurm: .*prtition"):
        make_engine("slurm", Needs(options={"prtition": "gpu"}, folder=tmp_path))


def test_tickets_of_other_engines_and_lost_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm would be asked for ever for a job that it never had."""
    pytest.importorskip("submitit", reason="the extra cluster is not installed")
    pretend_slurm(tmp_path, monkeypatch)
    engine = make_engine("slurm", Needs(jobs=2, folder=tmp_path))
    for ticket in ("", "4711 1795742011.9 0", "nonsense"):
        assert engine.find(ticket) is None
    assert engine.free() == 2
    found = engine.find("77_3")
    assert found is not None and engine.free() == 1  # an array's own limit knows of no other array
    job: Any = found.job  # type: ignore[attr-defined]
    monkeypatch.setattr(type(job), "done", lambda self: True)
    for state, code in {"NODE_FAIL": AGAIN, "PREEMPTED": AGAIN, "TIMEOUT": 1, "CANCELLED by 1000": 1}.items():
        monkeypatch.setattr(type(job), "state", state)
        assert found.poll() == code


def test_runs_on_a_lost_machine_of_ray_go_on_and_those_that_went_down_have_failed() -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="the extra cluster is not installed")
    raised = [
        (exceptions.NodeDiedError("its machine is gone"), AGAIN),
        (exceptions.LocalRayletDiedError(), AGAIN),
        (exceptions.WorkerCrashedError(), 1),
        (exceptions.OutOfMemoryError("memory ran out"), 1),
        (exceptions.TaskCancelledError(), 1),
    ]
    for error, code in raised:

        def lost(result: object, error: Exception = error) -> object:
            raise error

        ray: Any = SimpleNamespace(exceptions=exceptions, wait=lambda refs, timeout: (refs, []), get=lost)
        assert RayHandle(ray, "task").poll() == code
    assert AGAIN < -signal.NSIG  # which Popen gives for no signal


@pytest.mark.parametrize(
    ("there", "needs", "gpus"),
    [(2, Needs(), 1), (0, Needs(), 0), (2, Needs(device="cpu"), 0), (2, Needs(gpus=0.5), 0.5), (2, Needs(gpus=0), 0)],
)
def test_a_run_on_ray_has_a_gpu_to_itself_where_there_are_any(there: int, needs: Needs, gpus: float) -> None:
    """Ray shows a task that asks for none all of its machine's GPUs, and all trainings would take the first."""
    engine = RayEngine.__new__(RayEngine)
    engine.needs, engine._ray = needs, SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0, "GPU": float(there)})
    assert engine._gpus_of_a_run() == gpus


@pytest.mark.slow
def test_what_no_machine_of_its_own_cluster_has_is_one_sentence() -> None:
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    with pytest.raises(
        RunError, match=r"^--gpus asks for 64 GPUs per run, but Ray has [0-9]+ on this machine; ask for"
    ):
        make_engine("ray", Needs(gpus=64))
    with pytest.raises(RunError, match=r"^--memory asks for 1e\+06 GiB per run, but Ray has"):
        make_engine("ray", Needs(memory_gb=1e6))
