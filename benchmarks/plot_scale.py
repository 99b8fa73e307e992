"""The growth of time and memory with the number of cases and of voxels, drawn from what bench_scale has measured.

    python -m benchmarks.plot_scale

Reads benchmarks/results/scale.json and writes docs/images/growth.svg.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.bench_scale import OUTPUT
from medkd.core.files import atomic_path, read_json

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "growth.svg"
_COLOURS = {"verify, plan and preprocess": "#1f77b4", "predict": "#d62728", "evaluate": "#2ca02c"}
Points = dict[str, list[tuple[float, float, float]]]


def points(results: dict[str, Any], pattern: str, per: float = 1.0) -> Points:
    """Of each stage: (size, processor seconds, peak MiB), by the number that ``pattern`` finds in the name."""
    found: Points = {}
    for name, stages in results.items():
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        for stage, cost in stages.items():
            found.setdefault(stage, []).append((int(match[1]) ** per, cost["processor"], cost["peak_mib"]))
    return {stage: sorted(rows) for stage, rows in found.items()}


def main() -> None:
    """Draw."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "medkd"
    from matplotlib import pyplot

    results = read_json(OUTPUT)
    panels = [
        ("cases of 16³ voxels", points(results, r"(\d+) cases"), 1.0),
        ("million voxels in 4 scans", points(results, r"4 scans of (\d+) \^3", 3), 4e-6),
    ]
    figure, axes = pyplot.subplots(2, 2, figsize=(8, 5.5), constrained_layout=True)
    for column, (what, stages, unit) in enumerate(panels):
        for stage, rows in stages.items():
            sizes = [size * unit for size, _, _ in rows]
            for row, index in ((0, 1), (1, 2)):
                axes[row][column].plot(sizes, [r[index] for r in rows], "o-", color=_COLOURS[stage], label=stage)
        axes[1][column].set_xlabel(what)
        axes[0][column].set_ylabel("processor seconds")
        axes[1][column].set_ylabel("peak memory (MiB)")
        for row in (0, 1):
            axes[row][column].set_xlim(left=0)
            axes[row][column].set_ylim(bottom=0)
            axes[row][column].grid(alpha=0.3)
    axes[0][0].legend()
    with atomic_path(PICTURE) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
