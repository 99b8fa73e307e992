"""Makes docs/methods.md from the code of the methods and the measured cost of their losses.

    python -m benchmarks.methods_page

A test compares the committed page with what this makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS
from medkd.core.files import read_json, write_text
from medkd.distillation import METHODS
from medkd.distillation.describe import SEGMENTATION, CostRow, MethodCard, describe_methods, method_page

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
COSTS = RESULTS / "method_cost_96.json"


def page() -> str:
    """The page as it should be."""
    measured: dict[str, Any] = read_json(COSTS) if COSTS.exists() else {"methods": {}}
    keys = ("times_supervised", "extra_mib", "announced_mib")
    costs = {name: CostRow(*(row[key] for key in keys)) for name, row in measured["methods"].items() if name != "none"}
    return "\n".join(method_page(_branches(), costs, _sentence(measured)))


def _branches() -> dict[str, list[MethodCard]]:
    from medkd.detection.methods import DETECTION_METHODS

    return {SEGMENTATION: describe_methods(METHODS), "Detection": describe_methods(DETECTION_METHODS)}


def _sentence(measured: dict[str, Any]) -> str:
    if not measured["methods"]:
        return "Not measured yet."
    s, m = measured["settings"], measured["machine"]
    patch = " × ".join(map(str, s["patch"]))
    return (
        f"Measured at a patch of {patch}, batch {s['batch']}, {s['classes']} classes, features of `{s['student']}` and "
        f"`{s['teacher']}`, "
        f"on {m['processor']}, {s['threads']} thread, torch {m['versions']['torch']} "
        f"(`benchmarks/results/{COSTS.name}`); there the "
        f"supervised loss takes {measured['supervised']['seconds']:.1f} s and "
        f"{measured['supervised']['extra_mib']:.0f} MiB."
    )


def main() -> None:
    """Write the page."""
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
