"""The parts that the pages of all tasks have in common."""

from __future__ import annotations

from html import escape

from medkd.core.agreements import agreement_text
from medkd.core.timing import MeasuredExport, Spread, readable_seconds
from medkd.evaluation.report.data import Metric, Report, RunEntry
from medkd.evaluation.report.decision import ANSWERS, Decision, decide, decisions, verdict
from medkd.evaluation.report.figures import colours, human
from medkd.evaluation.report.html import (
    against,
    badge,
    bounds,
    card,
    definitions,
    difference,
    dot,
    folded,
    interval,
    number,
    section,
    table,
)
from medkd.evaluation.statistics import count_patients
from medkd.evaluation.table import counted_cases

_NOTHING_ALONE = '<small class="muted">alone it has learnt nothing</small>'
ROLE_NAMES = {"teacher": "teacher", "alone": "student alone", "distilled": "distilled student"}


def lead(report: Report) -> str:
    """The answer, large, and what else came out."""
    first, *others = verdict(report)
    question, _, rest = first.partition("? ")
    star = report.headline
    kind = decide(report, star).answer if star is not None and star.role == "distilled" else "nothing"
    answer, colon, why = rest.partition(":")
    text = f"<small>{escape(question)}?</small> <strong>{escape(answer)}{colon}</strong>{escape(why)}"
    return f'<p class="answer {kind}">{text}</p>' + "".join(f"<p>{escape(text)}</p>" for text in others)


def over(report: Report) -> str:
    """What intervals are over where patients are known: `` over 12 patients (24 cases)``."""
    if report.headline is None or not report.patients:
        return ""
    cases = list(dict.fromkeys(case for entry in report.scored for case in entry.scores.cases))
    return f" over {counted_cases(len(cases), count_patients(cases, report.patients), report.task.case)}"


def cards(report: Report) -> str:
    """The few numbers that matter, of the headline run."""
    star, main = report.headline, report.task.main
    if star is None:
        return ""
    value = star.scores.value(main.key)
    found = [card(main.name, number(value.mean), f"{bounds(value, main.decimals)} · {escape(star.label)}")]
    alone = report.alone(star)
    gain = report.difference(star, alone)
    if gain is not None and alone is not None and report.has_learnt(alone):
        found.append(card("against alone", f"{gain.mean:+.3f}", f"{bounds(gain, 3, '+')} {main.name}, paired"))
    closed = report.gap_closed(star)
    if closed is not None:
        found.append(card("gap closed", f"{100 * closed:.0f} %", "of the way from student alone to teacher"))
    teacher = report.teacher(star)
    if teacher is not None:
        found += _cost_cards(report, star, teacher)
    return f'<div class="cards">{"".join(found)}</div>'


def _cost_cards(report: Report, star: RunEntry, teacher: RunEntry) -> list[str]:
    found = []
    own, theirs = star.cost.parameters, teacher.cost.parameters
    if own and theirs:
        found.append(card("smaller", f"{theirs / own:.1f} ×", f"{human(own)} instead of {human(theirs)} parameters"))
    if report.timings is not None and star.time is not None and teacher.time is not None:
        own_time, teachers = readable_seconds(star.time.median), readable_seconds(teacher.time.median)
        word, ratio = _faster(star.time, teacher.time)
        found.append(card(word, ratio, f"{own_time} instead of {teachers} per {report.timings.unit}"))
    return found


def decision_table(report: Report) -> str:
    """The answer structure by structure, for the headline student."""
    star = report.headline
    teacher = report.teacher(star) if star is not None else None
    if star is None or teacher is None:
        return ""
    main = report.task.main
    everything = "mean over all " + ("classes" if report.task.part == "class" else "structures")
    rows = []
    for decision in decisions(report, star):
        part = decision.part
        rows.append(
            [
                f"<b>{escape(part or everything)}</b>",
                interval(teacher.scores.value(main.key, part), main.decimals),
                interval(star.scores.value(main.key, part), main.decimals),
                difference(decision.difference, main.decimals),
                _badge(report, decision),
            ]
        )
    shades = colours(report.entries)
    head = [
        report.task.part,
        f"{dot(shades[teacher.name])}{escape(teacher.label)}",
        f"{dot(shades[star.name])}{escape(star.label)}",
        f"student − teacher ({main.name})",
        f"loses less than {report.margin:g}?",
    ]
    return section(
        "May the student replace the teacher?",
        f"Yes where the whole 95 % interval of the paired difference lies above −{report.margin:g}, no where it lies "
        f"below; nothing is said where it holds it, where there are too few {report.unit}s, or where one of both has "
        "not learnt.",
        table(head, rows),
    )


def overview(report: Report) -> str:
    """One row per scored run: scores, comparison with teacher and student alone, size, time; the others folded away."""
    main = report.task.main
    head = ["run", *(escape(metric.name) for metric in report.task.metrics)]
    head += [f"{main.name} against teacher", f"{main.name} against alone", "gap closed", "parameters"]
    head.append(f"time per {report.timings.unit}" if report.timings is not None else "time")
    failures = any(hasattr(entry.scores, "failures") for entry in report.scored)
    if failures:
        head.append("failures")
    rows = [_overview_row(report, entry, failures) for entry in report.scored]
    return table(head, rows, "runs") + _without_scores(report)


def exports(report: Report) -> str:
    """Exported models that were timed with the runs: engine, size, time, and how that compares with the run itself."""
    timings = report.timings
    if timings is None:
        return ""
    head = ["model", "made from", "engine", "network", f"time per {timings.unit}", "against the run in torch"]
    entries = {entry.name: entry for entry in report.entries}
    rows = []
    for name in dict.fromkeys(export.made_from for export in timings.exports):
        own = timings.of(name)
        if own is not None and name in entries:
            rows.append(_torch_row(entries[name], own))
        for export in timings.exports:
            if export.made_from == name:
                rows.append(_export_row(export, own))
    lead = "What runs without torch, on the CPU of this machine, below the run that it was made from; timed in turns."
    return section("Exported", lead, table(head, rows))


def _torch_row(entry: RunEntry, own: Spread) -> list[str]:
    """The run itself, whose weights are floats of four bytes."""
    size = f"{4e-6 * entry.cost.parameters:.2f} MB" if entry.cost.parameters else "–"
    return [f"<b>{_breakable(entry.name)}</b>", "–", "torch", size, _median(own), "–"]


def _breakable(name: str) -> str:
    """A long name that may break between its parts."""
    return escape(name).replace("_", "_<wbr>")


def _export_row(export: MeasuredExport, own: Spread | None) -> list[str]:
    spread = Spread.of(export.seconds)
    word, ratio = ("", "–") if own is None else _faster(spread, own)
    return [
        _breakable(export.name),
        _breakable(export.made_from or "–"),
        escape(export.engine) + (", INT8" if export.int8 else ""),
        f"{export.size / 1e6:.2f} MB",
        _median(spread),
        f"{ratio} {word}".strip(),
    ]


def _without_scores(report: Report) -> str:
    waiting = [entry for entry in report.entries if entry.scores is None]
    if not waiting:
        return ""
    told = (": ".join(filter(None, (entry.name, agreement_text(entry.path)))) for entry in waiting)
    names = "".join(f"<li>{escape(line)}</li>" for line in told)
    return folded(f"{len(waiting)} {'runs' if len(waiting) > 1 else 'run'} without scores", f"<ul>{names}</ul>")


def _overview_row(report: Report, entry: RunEntry, failures: bool) -> list[str]:
    main, teacher, alone = report.task.main, report.teacher(entry), report.alone(entry)
    cells = [run_name(report, entry)]
    for metric in report.task.metrics:
        cells.append(interval(entry.scores.value(metric.key), metric.decimals))
    if teacher is None:
        cells.append("–")
    else:
        decision = decide(report, entry)
        cells.append(difference(decision.difference, main.decimals) + _badge(report, decision))
    closed = report.gap_closed(entry)
    gained = difference(report.difference(entry, alone), main.decimals)
    cells.append(gained if alone is None or report.has_learnt(alone) else _NOTHING_ALONE)
    cells.append("–" if closed is None else f"{100 * closed:.0f} %")
    cells.append(_size(entry, teacher))
    cells.append(_time(entry.time, teacher.time if teacher is not None else None))
    if failures:
        counts = entry.scores.summary.counts()
        cells.append(failed(counts["missed"], counts["invented"]))
    return cells


def run_name(report: Report, entry: RunEntry) -> str:
    """A run's colour, label and role."""
    role = ROLE_NAMES[entry.role]
    if entry.role == "distilled" and entry.teacher_name:
        role += f" of {entry.teacher_name}"
    shade = colours(report.entries)[entry.name]
    return f'<span class="name">{dot(shade)}<b>{escape(entry.label)}</b></span><span class="role">{escape(role)}</span>'


def _size(entry: RunEntry, teacher: RunEntry | None) -> str:
    theirs = teacher.cost if teacher is not None else None
    text = human(entry.cost.parameters)
    text += _ratio(entry.cost.parameters, theirs.parameters if theirs else None, "smaller")
    if entry.cost.macs:
        text += f"<small>{human(entry.cost.macs)} multiply-adds</small>"
    return text


def _time(own: Spread | None, teachers: Spread | None) -> str:
    if own is None:
        return "<small>not measured</small>"
    compared = ""
    if teachers is not None:
        word, ratio = _faster(own, teachers)
        compared = f"<small>{ratio} {word}</small>"
    return f"{_median(own)}{compared}"


def _median(spread: Spread) -> str:
    """A time with its quartiles below."""
    quartiles = f"{readable_seconds(spread.low)} to {readable_seconds(spread.high)}"
    return f"<b>{readable_seconds(spread.median)}</b><small>{quartiles}</small>"


def _faster(own: Spread, teachers: Spread) -> tuple[str, str]:
    """``faster`` or ``slower`` and how many times; the same speed where the quartiles overlap: noise is no gain."""
    if own.high >= teachers.low and teachers.high >= own.low:
        return "speed", "the same"
    if own.median < teachers.median:
        return "faster", f"{teachers.median / own.median:.1f} ×"
    return "slower", f"{own.median / teachers.median:.1f} ×"


def _ratio(own: float | None, teachers: float | None, word: str) -> str:
    return f"<small>{teachers / own:.1f} × {word}</small>" if own and teachers else ""


def failed(missed: int, invented: int) -> str:
    """``1 / 0``, red where something failed."""
    return f'<span class="{"bad" if missed or invented else "good"}">{missed} / {invented}</span>'


def legend(report: Report) -> str:
    """The colours of the scored runs."""
    shades = colours(report.entries)
    runs = "".join(f"<span>{dot(shades[entry.name])}{escape(entry.label)}</span>" for entry in report.scored)
    return f'<div class="legend runs">{runs}</div>' if runs else ""


def part_table(report: Report, metric: Metric) -> str:
    """One row per structure or class, one column per run, with the paired difference to the student alone."""
    if not report.scored:
        return ""
    shades = colours(report.entries)
    head = [metric.name, *(f"{dot(shades[entry.name])}{escape(entry.label)}" for entry in report.scored)]
    rows = []
    for part in report.scored[0].scores.parts:
        row = [escape(part)]
        for entry in report.scored:
            alone = report.alone(entry)
            found = report.difference(entry, alone, metric.key, part)
            small = against(found, metric.decimals, "alone", more_is_better=metric.more_is_better)
            if alone is not None and not report.has_learnt(alone, part):
                small = _NOTHING_ALONE
            row.append(interval(entry.scores.value(metric.key, part), metric.decimals) + small)
        rows.append(row)
    return table(head, rows)


def how_measured(report: Report) -> str:
    """The definitions behind the numbers."""
    scores = report.scored[0].scores if report.scored else None
    main = report.task.main.name
    texts = dict(report.task.definitions(scores))
    texts["may replace"] = (
        f"non-inferiority with a margin of {report.margin:g} {main}: the lower bound of the 95 % interval of the "
        f"paired difference student − teacher lies above −{report.margin:g} (one-sided test at 2.5 %)"
    )
    texts["learnt nothing"] = f"a mean {main} below {report.task.learnt:g}"
    texts["gap closed"] = (
        f"({main} − {main} alone) / (teacher's {main} − {main} alone); left out where gap or gain are not clear, or "
        "where one of the three has learnt nothing"
    )
    if sum(entry.role == "distilled" for entry in report.scored) > 1:
        texts["on top of the page"] = (
            f"the distilled student with the highest {main}; chosen on these {report.task.case}s, so a little flattered"
        )
    timings = report.timings
    if timings is not None:
        size = " × ".join(map(str, timings.size))
        repetitions = max((len(taken) for taken in timings.seconds.values()), default=0)
        texts["time"] = (
            f"of one {timings.unit} ({size}) through the whole predictor, all runs in turns, {repetitions} times each: "
            f"median, and below it the quartiles; on {timings.device}, {timings.threads} CPU threads, "
            f"{timings.settings}"
        )
    else:
        texts["time"] = "not measured; medkd_report --measure times all runs together, through the predictor"
    return definitions(texts)


def _badge(report: Report, decision: Decision) -> str:
    few = f"Too few {report.unit}s"
    return badge(few if decision.answer == "few" else ANSWERS[decision.answer], decision.answer)
