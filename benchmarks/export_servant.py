"""A process with one model that predicts folders of scans when it is told to, for :mod:`benchmarks.bench_export`.

Run by the interpreter whose environment has the model's library: medkd's own, or that of nnU-Net.

    python export_servant.py medkd|nnunet MODEL THREADS MIRROR
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable

Predict = Callable[[str, str], None]


def of_medkd(model: str, threads: int, mirror: bool) -> tuple[str, Predict]:
    """What ``medkd_predict`` does after it has loaded a model; the name of the engine comes first."""
    from pathlib import Path

    from medkd.core.allocator import reuse_freed_memory
    from medkd.inference.folder import predict_cases
    from medkd.inference.inputs import find_cases
    from medkd.inference.opening import open_predictor
    from medkd.inference.outputs import Outputs
    from medkd.models.base import open_model

    reuse_freed_memory()
    opened = open_model(model, "segmentation")
    if opened.kind == "exported":
        predictor = open_predictor(opened, mirror=mirror, threads=threads)
    else:
        import torch

        torch.set_num_threads(threads)
        predictor = open_predictor(opened, mirror=mirror, device="cpu")

    def predict(inputs: str, outputs: str) -> None:
        report = predict_cases(predictor, find_cases(inputs, 1), Outputs(folder=Path(outputs)))
        if report.failed:
            raise SystemExit(str(report.failed))

    return predictor.engine_name, predict


def of_nnunet(model: str, threads: int, mirror: bool) -> tuple[str, Predict]:
    """What ``nnUNetv2_predict_from_modelfolder`` does after it has loaded a model."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(threads)
    predictor = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, use_folds=None, checkpoint_name="checkpoint_final.pth")

    def predict(inputs: str, outputs: str) -> None:
        predictor.predict_from_files(
            inputs, outputs, num_processes_preprocessing=1, num_processes_segmentation_export=1
        )

    return "nnunetv2", predict


def main() -> None:
    """Load, then answer one line per order."""
    kind, model, threads, mirror = sys.argv[1:5]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    engine, predict = {"medkd": of_medkd, "nnunet": of_nnunet}[kind](model, int(threads), mirror == "1")
    answers.write(json.dumps({"engine": engine}) + "\n")
    answers.flush()
    for line in sys.stdin:
        order = json.loads(line)
        start, before = time.perf_counter(), processor_seconds()
        predict(order["inputs"], order["outputs"])
        taken, processor = time.perf_counter() - start, processor_seconds() - before
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + children)
        answers.write(json.dumps({"seconds": taken, "processor": processor, "peak": peak}) + "\n")
        answers.flush()


def processor_seconds() -> float:
    """Of this process and of the children that have ended, which other programs on the machine disturb less."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
