"""The table of a recipe with what made it: hardware, versions, commands, times; and whether other roots give the same.

    medkd_reproduce recipes/quick_hippocampus.json --root ROOT …
    medkd_reproduce recipes/quick_hippocampus.json --root AGAIN … --only 'small-alone-*'
    python -m benchmarks.collect_reproduction recipes/quick_hippocampus.json ROOT --same AGAIN \\
        -o benchmarks/results/quick_hippocampus.json

A run of another root is the same where the weights at the end are equal bit by bit and so are all scores of all cases.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine
from medkd.core.files import read_json, write_json
from medkd.core.run import FINAL, VALIDATION_SUMMARY
from medkd.core.run_files import LOG_FILE, read_log
from medkd.reproduction.graph import Place, build_graph
from medkd.reproduction.recipe import load_recipe
from medkd.reproduction.state import Record, State

_SCORES = ("metric_per_case", "foreground_mean")


def describe_run(record: Record, root: Path) -> dict[str, Any]:
    """Command, seconds and validation curve of a run; nothing in it says where folders lie."""
    words = ["medkd"]
    for word in record.command:
        place = "ROOT" if word == str(root.resolve()) else "MODEL"
        words.append(place if Path(word).is_absolute() else word)
    found: dict[str, Any] = {
        "command": " ".join(words),
        "seconds": round(record.seconds, 1),
        "attempts": record.attempts,
    }
    log = Path(record.folder) / LOG_FILE
    if record.folder and log.exists():
        lines = read_log(log)
        found["epoch_seconds"] = [round(line["seconds"], 2) for line in lines]
        found["validation_curve"] = [round(line["validation_dice"], 4) for line in lines]
    return found


def compare_runs(first: Path, second: Path) -> dict[str, bool]:
    """Whether two fold folders hold the same weights and scores."""
    mine, theirs = (read_json(folder / VALIDATION_SUMMARY) for folder in (first, second))
    found = {"scores": all(_unplaced(mine[key]) == _unplaced(theirs[key]) for key in _SCORES)}
    if (first / FINAL).exists():
        weights = [torch.load(folder / FINAL, weights_only=True, map_location="cpu") for folder in (first, second)]
        found["weights"] = same(*(content["network"] for content in weights))
    return found


def _unplaced(value: Any) -> Any:
    """Scores without the names of files, which are those of the root."""
    if isinstance(value, list):
        return [_unplaced(entry) for entry in value]
    if not isinstance(value, dict):
        return repr(value)  # nan equals itself
    return {key: _unplaced(entry) for key, entry in value.items() if not key.endswith("_file")}


def same(first: Any, second: Any) -> bool:
    """Whether two tables of tensors are equal bit by bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def compare_roots(root: Path, other: Path, name: str) -> dict[str, dict[str, bool]]:
    """Run → what is the same, of those that are done in both."""
    mine, theirs = State(root, name).read(), State(other, name).read()
    found = {}
    for node, record in mine.items():
        again = theirs.get(node)
        if again is not None and record.folder and record.status == again.status == "done":
            found[node] = compare_runs(Path(record.folder), Path(again.folder))
    return found


def _found(path: Path, root: Path) -> tuple[dict[str, Any], dict[str, Record]]:
    """A recipe's table, and the records of its runs; a table that was made of another form of the recipe is refused."""
    recipe, state = load_recipe(path), State(root, path.stem)
    table = read_json(state.folder / "table.json")
    found = {(row["student"], row["method"]) for row in table["rows"] if row["student"] is not None}
    wanted = {(student, method) for _, student, method in recipe.combinations()}
    if found != wanted:
        others = ", ".join(sorted(f"{student}/{method}" for student, method in found ^ wanted))
        raise SystemExit(f"table.json and {path} differ in {others}; give medkd_reproduce the recipe once more.")
    place = Place(name=path.stem, root=root, models={key: Path() for key in recipe.teachers})
    known = build_graph(recipe, place)
    return table, {node: record for node, record in state.read().items() if node in known}


def main() -> int:
    """Entry point; 1 where something is not the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--same", type=Path, nargs="*", default=(), metavar="ROOT", help="to be compared with it")
    parser.add_argument("--kills", type=Path, help="a JSON list of what was killed when")
    parser.add_argument("--note", default="")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    name = options.recipe.stem
    table, records = _found(options.recipe, options.root)
    compared = {other.name: compare_roots(options.root, other, name) for other in options.same}
    content = {
        "schema": 1,
        "note": options.note,
        "recipe": read_json(options.recipe),
        "machine": machine("monai", "dynamic-network-architectures", "batchgeneratorsv2", "ray"),
        "table": table,
        "kills": read_json(options.kills) if options.kills else [],
        "same": compared,
        "runs": {node: describe_run(record, options.root) for node, record in records.items()},
    }
    write_json(options.output, content)
    different = []
    for other, runs in compared.items():
        different += [f"{other}: {node}" for node, found in runs.items() if not all(found.values())]
    print(f"{sum(map(len, compared.values()))} runs compared, not the same: {', '.join(different) or 'none'}")
    return int(bool(different))


if __name__ == "__main__":
    raise SystemExit(main())
