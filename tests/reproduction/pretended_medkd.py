"""Stands in for the Python of a recipe's commands: data and trainings are only pretended, a search is real but for what
its trials train. Everything else goes to the Python that runs this.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any


def _after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def _trained(words: list[str]) -> None:
    """Leave a fold folder that names what the command was told."""
    folder = Path(_after(words, "--root")) / "results" / words[1] / f"run__{_after(words, '--tag')}" / "fold_0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "told").write_text("\n".join(words))
    print(folder)


def _search(words: list[str]) -> int:
    from medkd.cli.tune import main
    from medkd.reproduction import search

    def trial(self: Any, number: int, parameters: Any) -> search.Trial:
        time.sleep(2.0 * number)  # time to be killed in the second one
        return search.Trial(parameters=parameters, scores=(0.5,), score=0.5 - number / 10)

    search._Trainer.trial = trial  # type: ignore[method-assign]
    return main(words[1:])


def run(words: list[str]) -> int:
    """What ``python -m medkd WORDS`` would do."""
    if words[0] == "tune":
        return _search(words)
    if words[0] != "plan_and_preprocess":
        _trained(words)
    return 0


if __name__ == "__main__":
    real, given = sys.argv[1], sys.argv[2:]
    if given[:2] != ["-m", "medkd"]:
        import os

        os.execv(real, [real, *given])
    sys.exit(run(given[2:]))
