"""How long what is left of a recipe will take, by what is done."""

from __future__ import annotations

from pathlib import Path

from medkd.reproduction.costs import _time_here
from medkd.reproduction.graph import Place, build_graph
from medkd.reproduction.recipe import load_recipe
from medkd.reproduction.state import Record

PHANTOM = Path(__file__).parents[2] / "recipes" / "quick_phantom.json"


def test_trainings_that_are_left_take_as_long_as_those_alike_or_else_as_all_that_are_done() -> None:
    nodes = build_graph(load_recipe(PHANTOM), Place(name="quick_phantom", root=Path("root"), models={}))
    trained = [node for node in nodes.values() if node.words[0] in ("train", "train_distill")]
    teachers = [node for node in trained if node.kind == "teacher" and node.teacher == "large"]
    assert len(teachers) == 2
    records = {
        teachers[0].name: Record(command=(), status="done", seconds=7200.0),
        trained[-1].name: Record(command=(), status="done", seconds=1800.0),
        trained[-2].name: Record(command=(), status="failed", seconds=9e9),
    }
    (line,) = _time_here([teachers[0], teachers[1], trained[-1]], records, stated=True)
    assert line == "time: about 2.0 h for the 1 training that is left, one after another, by the 2 that are done"
    other = next(node for node in trained if node.kind == "teacher" and node.teacher != "large")
    (line,) = _time_here([*teachers, other, trained[-1]], records, stated=True)
    assert line.startswith("time: about 3.2 h for the 2 trainings that are left")  # 2 h, and the mean of 2 and 0.5
    assert _time_here(trained, {}, stated=True) == []
    assert _time_here(trained, {}, stated=False)[0].startswith("time: unknown")
    assert _time_here([teachers[0]], records, stated=False) == []
