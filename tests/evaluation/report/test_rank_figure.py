"""The critical-difference diagram: what it joins, that its labels are whole, and where there is none."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medkd.evaluation.ranking import CriticalDifference, critical_difference
from medkd.evaluation.report.rank_figure import caption, rank_figure, rank_picture, rank_section

LONG = "acf_bckd (a tag that goes on and on, starts from its teacher) of a_teacher_with_a_long_name"


def found(count: int = 6) -> CriticalDifference:
    """Some methods on 40 cases, one with a long name."""
    random = np.random.default_rng(2)
    cases = random.uniform(0.5, 0.9, 40)
    names = [LONG, *(f"method {number}" for number in range(count - 1))]
    scores = {name: cases + 0.004 * place + random.normal(0, 0.01, 40) for place, name in enumerate(names)}
    result = critical_difference(scores)
    assert result is not None
    return result


def test_bars_join_what_cannot_be_told_apart() -> None:
    given = found()
    axes = rank_figure(given).axes[0]
    bars = [sorted(line.get_xdata()) for line in axes.lines if line.get_gid() == "group"]
    assert len(bars) == len(given.groups) > 1
    for (low, high), group in zip(bars, given.groups, strict=True):
        joined = {name for name, rank in given.ranks.items() if low <= rank <= high}
        assert joined == set(group)


@pytest.mark.parametrize("count", [3, 6, 15])
def test_every_label_is_whole_and_none_lies_on_another(count: int) -> None:
    figure = rank_figure(found(count))
    axes = figure.axes[0]
    figure.canvas.draw()
    labels = [text for text in axes.texts if text.get_gid() == "name"]
    shown = "".join(text.get_text().replace("\n", "").replace(" ", "") for text in labels)
    assert LONG.replace(" ", "") in shown and len(labels) == count
    boxes = [text.get_window_extent() for text in labels]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_the_picture_stands_on_white_with_a_free_margin() -> None:
    picture = Image.open(io.BytesIO(rank_picture(found(), "png"))).convert("RGBA")
    pixels = np.asarray(picture)
    assert (pixels[..., 3] == 255).all()
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8].swapaxes(0, 1), pixels[:, -8:].swapaxes(0, 1)):
        assert (edge == 255).all()


def test_the_same_diagram_is_the_same_file() -> None:
    for kind in ("png", "svg"):
        assert rank_picture(found(), kind) == rank_picture(found(), kind)  # type: ignore[arg-type]


def report(scores: list[Any]) -> Any:
    """As much of a report as the section reads."""
    entries = [SimpleNamespace(label=f"run {place}", scores=score) for place, score in enumerate(scores)]
    return SimpleNamespace(scored=tuple(entries), task=SimpleNamespace(case="case"))


def scores(cases: int, shift: float) -> Any:
    names = tuple(f"case {number}" for number in range(cases))
    values = np.random.default_rng(0).uniform(size=(cases, 1)) + shift
    return SimpleNamespace(cases=names, parts=("liver",), case_values=lambda: values)


def test_the_report_draws_it_or_says_why_not() -> None:
    page = rank_section(report([scores(20, shift) for shift in (0.0, 0.1, 0.2)]))
    assert "<img" in page and "Mean ranks over 20 cases" in page and "cannot tell apart" in page
    few = rank_section(report([scores(8, shift) for shift in (0.0, 0.1, 0.2)]))
    assert "<img" not in few and "needs 11 cases or more that all have a score, found 8" in few
    two = rank_section(report([scores(20, shift) for shift in (0.0, 0.1)]))
    assert "<img" not in two and "three or more, found 2" in two
    boxes = rank_section(report([SimpleNamespace(cases=("a",))] * 3))
    assert "<img" not in boxes and "a score of every single case" in boxes
    assert rank_section(report([scores(20, 0.0)])) == ""


def test_the_caption_claims_no_difference_where_there_is_none() -> None:
    given = CriticalDifference(distance=1.0, p=0.3, groups=(("a", "b", "c"),), ranks={}, cases=12)
    assert "none can be told from another" in caption(given)
