"""What verifying a raw data set costs, beside another checkout of medkd: ``python -m benchmarks.bench_verification
CASES REFERENCE [--rounds 5]``.

CASES holds ``imagesTr/CASE.nii.gz`` (or ``CASE_0000.nii.gz``) and ``labelsTr/CASE.nii.gz``, REFERENCE is the other
checkout. Both verify the same data set in turns, each time in a process of its own; counted are processor seconds,
which other programs disturb little, after a first verification that is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from medkd.core.files import write_json

_VERIFY = """
import json, sys, time
from pathlib import Path
from medkd.io.verify import verify_dataset
folder = Path(sys.argv[1])
verify_dataset(folder, workers=1)
begun = time.process_time()
report = verify_dataset(folder, workers=1)
print(json.dumps([time.process_time() - begun, len(report.problems)]))
"""


def main() -> None:
    """Print the processor seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, count = _raw_dataset(options.cases, Path(place))
        trees = {"this": Path.cwd(), "reference": options.reference}
        seconds: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(options.rounds):
            for name, tree in trees.items():
                seconds[name].append(_seconds(tree, folder))
    ratios = [ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)]
    for name, values in seconds.items():
        print(f"{name:10} {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f}), {count} cases")
    print(f"ratio      {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), by rounds")


def _raw_dataset(cases: Path, place: Path) -> tuple[Path, int]:
    """A raw data set of links to the cases, and how many there are."""
    folder = place / "Dataset004_Cases"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for file in sorted((cases / part).glob("*.nii.gz")):
            case = file.name.removesuffix(".nii.gz").removesuffix("_0000")
            name = f"{case}_0000.nii.gz" if part == "imagesTr" else f"{case}.nii.gz"
            (folder / part / name).symlink_to(file.resolve())
    count = len(list((folder / "labelsTr").iterdir()))
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    described = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": count, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", described)
    return folder, count


def _seconds(tree: Path, folder: Path) -> float:
    """Processor seconds of a verification by a checkout.

    Raises:
        SystemExit: it finds problems, so that it may have stopped early.
    """
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-c", _VERIFY, str(folder)], env=env, cwd=tree, check=True, capture_output=True, text=True
    )
    taken, problems = json.loads(told.stdout.splitlines()[-1])
    if problems:
        raise SystemExit(f"{tree} finds {problems} problems in {folder}")
    return float(taken)


if __name__ == "__main__":
    main()
