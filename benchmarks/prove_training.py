"""Does a teacher replace labels, do two teachers make one student, and does it hold on a second data set?

    python -m benchmarks.prove_training ROOT --hippocampus DATA --model MODEL --acdc RAW --minutes 60 -o RESULT.json

DATA has ``imagesTr/CASE.nii.gz`` and ``labelsTr``, MODEL is an nnU-Net model of it with its ``splits_final.json``,
RAW a raw data set of ACDC with ``splits_final.json`` (``medkd_convert acdc_h5``). Every arm is a training through
:mod:`medkd.api`, several of them at a time on one GPU (:mod:`benchmarks.side_by_side`). RESULT is written after each
of them; a second call goes on where the first stopped. ``benchmarks.compare_arms`` makes intervals of it.

Hippocampus: students on 20 labelled scans of 160, with a teacher and the other 140 without labels, with no label at
all, and on all labels. Two teachers: one trained for the anterior, one for the posterior part, a student of both beside
a student of a teacher for both parts, none of them with a label. ACDC: a teacher for 2D slices, students of it, and 20
labelled volumes of 82.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.proof_arms import ARMS, DATA_SETS, Arm
from benchmarks.proof_data import preload, prepare
from benchmarks.side_by_side import Job, Queue
from medkd import api
from medkd.core.files import read_json, write_json
from medkd.core.run import FINAL, RUN_FILE
from medkd.core.run_files import LOG_FILE, read_log

_WARMUP = "machine"
_TRIAL_PATCHES = {"2d": (128, 128), "3d_fullres": (32, 32, 32)}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 1 where something failed."""
    options = _arguments(argv)
    result = _Result(options)
    queue = Queue(
        jobs=_jobs(options, result),
        slots=options.slots,
        logs=options.root / "logs",
        end=time.monotonic() + 60 * options.minutes,
        finished=result.add,
    )
    preload()
    queue.run()
    print(f"{len(queue.done)} done, failed: {sorted(queue.failed) or 'none'}", flush=True)
    return int(bool(queue.failed))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="where data sets and runs are kept")
    parser.add_argument("--hippocampus", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--acdc", type=Path)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--arms", nargs="+", help="only arms whose name contains one of these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--teacher-divisor", type=int, default=1, help="of the channels of teachers that are trained here"
    )
    parser.add_argument("--teacher-epochs", type=int, help="of teachers that are trained here (default: as students)")
    parser.add_argument("--learning-rate", type=float, help="of students (default: the plan's, as teachers have it)")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--trial", action="store_true", help="two steps on few cases and small patches, to see that all works"
    )
    parser.add_argument("-o", "--output", type=Path, help="default: ROOT/proof.json")
    options = parser.parse_args(argv)
    options.root = options.root.resolve()
    options.output = options.output or options.root / "proof.json"
    options.training, options.held_out = (4, 1) if options.trial else (None, None)
    if options.trial:
        options.epochs, options.iterations, options.teacher_divisor = 1, 2, 4
    return options


def _jobs(options: argparse.Namespace, result: _Result) -> list[Job]:
    """Data sets, then arms in the order of their worth; those whose data are not given are left out."""
    arms = _wanted(options)
    result.arms = {f"{arm.name}.seed{seed}": (arm, seed) for arm in arms for seed in _seeds(arm, options)}
    jobs = [Job(name=_WARMUP, call=partial(_describe_machine, options.root / "machine.json"))]
    for name in dict.fromkeys(_with_sources([arm.dataset for arm in arms])):
        base = DATA_SETS[name].plan_of
        jobs.append(Job(name=name, call=partial(prepare, options, name), after=(base,) if base else ()))
    for name, (arm, seed) in result.arms.items():
        teachers = tuple(f"{teacher}.seed{options.seeds[0]}" for teacher in arm.teachers if teacher != "model")
        jobs.append(Job(name=name, call=partial(train, options, arm, seed), after=(arm.dataset, *teachers)))
    return jobs


def _wanted(options: argparse.Namespace) -> list[Arm]:
    """Arms whose data are given and whose names were asked for, and the teachers of these."""
    found = []
    for arm in ARMS:
        given = getattr(options, DATA_SETS[arm.dataset].source) is not None
        named = options.arms is None or any(text in arm.name for text in options.arms)
        if given and named:
            found.append(arm)
    names = {arm.name for arm in found}.union(*(arm.teachers for arm in found))
    return [arm for arm in ARMS if arm.name in names]


def _with_sources(names: list[str]) -> list[str]:
    """Each data set behind the one whose plan it has."""
    found = []
    for name in names:
        base = DATA_SETS[name].plan_of
        found += [base, name] if base else [name]
    return found


def _seeds(arm: Arm, options: argparse.Namespace) -> list[int]:
    return options.seeds[:1] if arm.teaches else options.seeds


def _describe_machine(path: Path) -> None:
    """In a process of its own, since a process that has touched the GPU cannot be forked."""
    write_json(path, machine("monai", "dynamic-network-architectures", "batchgeneratorsv2"))


def train(options: argparse.Namespace, arm: Arm, seed: int) -> None:
    """Train one arm, as the commands do."""
    if arm.method == "score":
        folder = api.score_teacher(arm.dataset, options.model, 0, root=options.root)
    else:
        folder = _trained(options, arm, _settings(options, arm, seed))
        if not (folder / FINAL).exists():
            raise RuntimeError(f"{folder} was not finished")
    write_json(_place(options, arm, seed), {"fold": str(folder)})


def _settings(options: argparse.Namespace, arm: Arm, seed: int) -> dict[str, Any]:
    """What is set for a training."""
    data = DATA_SETS[arm.dataset]
    settings = {
        "root": options.root,
        "configuration": data.configuration,
        "epochs": options.epochs,
        "iterations_per_epoch": options.iterations,
        "batch_size": data.batch_size,
        "patch_size": data.patch_size,
        "precision": options.precision,
        "seed": seed,
        "tag": tag_of(arm, seed),
        "resume": True,
        "workers": 0,
        **arm.settings,
    }
    if arm.teaches:
        settings["width_divisor"] = options.teacher_divisor
        settings["epochs"] = options.teacher_epochs or options.epochs
    else:
        settings["learning_rate"] = options.learning_rate
    if options.trial:
        settings |= {"batch_size": 2, "patch_size": _TRIAL_PATCHES[data.configuration]}
    return settings


def _trained(options: argparse.Namespace, arm: Arm, settings: dict[str, Any]) -> Path:
    if arm.method is None:
        return api.train(arm.dataset, arm.network, 0, **settings)
    first, *others = [teacher_folder(options, name) for name in arm.teachers]
    if others:
        settings["teachers"] = tuple(map(str, others))
    return api.train_distill(arm.dataset, first, arm.network, arm.method, 0, **settings)


def tag_of(arm: Arm, seed: int) -> str:
    """Keeps the arms' runs apart."""
    return f"{arm.name}_s{seed}"


def _place(options: argparse.Namespace, arm: Arm, seed: int) -> Path:
    return Path(options.root / "arms" / f"{tag_of(arm, seed)}.json")


def teacher_folder(options: argparse.Namespace, name: str) -> Path:
    """The model's folder, or the run of the arm of this name."""
    if name == "model":
        return Path(options.model)
    arm = next(arm for arm in ARMS if arm.name == name)
    fold = Path(read_json(_place(options, arm, options.seeds[0]))["fold"])
    return fold.parent


class _Result:
    """The JSON file, written after every job.

    Attributes:
        arms: job → arm and seed.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.arms: dict[str, tuple[Arm, int]] = {}
        self._options = options
        names = (
            "epochs",
            "iterations",
            "precision",
            "slots",
            "trial",
            "teacher_divisor",
            "teacher_epochs",
            "learning_rate",
        )
        settings = {name: getattr(options, name) for name in names}
        self._content: dict[str, Any] = {"schema": 1, "settings": settings, "machine": None, "runs": {}, "failed": {}}
        if options.output.exists():
            before = read_json(options.output)
            self._content["runs"] = before["runs"]

    def add(self, name: str, succeeded: bool, seconds: float) -> None:
        """Note what became of a job."""
        print(f"{name}: {'done' if succeeded else 'FAILED'} after {seconds:.0f} s", flush=True)
        content = self._content
        if not succeeded:
            content["failed"][name] = self._last_lines(name)
            print(content["failed"][name], file=sys.stderr, flush=True)
        elif name == _WARMUP:
            content["machine"] = read_json(self._options.root / "machine.json")
        elif name in self.arms:
            arm, seed = self.arms[name]
            content["runs"][name] = {**_scores(_place(self._options, arm, seed)), "arm": arm.name, "seed": seed}
            content["runs"][name]["job_seconds"] = round(seconds, 1)
        write_json(self._options.output, content)

    def _last_lines(self, name: str) -> str:
        log = self._options.root / "logs" / f"{name}.log"
        return "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:]) if log.exists() else "its data or teacher"


def _scores(place: Path) -> dict[str, Any]:
    """Settings, scores of every case and structure, and the validation curve of a finished run."""
    fold = Path(read_json(place)["fold"])
    summary = read_json(fold / "validation" / "summary.json")
    cases: dict[str, Any] = {}
    for case in summary["metric_per_case"]:
        name = Path(case["reference_file"]).name.split(".")[0]
        structures = {key: values for key, values in case["metrics"].items() if key != "0"}
        cases[name] = {
            metric: [values.get(metric) for values in structures.values()] for metric in ("Dice", "HD95", "NSD")
        }
    log = read_log(fold / LOG_FILE)
    curve = [round(line["validation_dice"], 4) for line in log if line.get("validation_dice") is not None]
    seconds = [round(line["seconds"], 3) for line in log]
    return {
        "run": read_json(fold.parent / RUN_FILE),
        "cases": cases,
        "validation_curve": curve,
        "epoch_seconds": seconds,
    }


if __name__ == "__main__":
    raise SystemExit(main())
