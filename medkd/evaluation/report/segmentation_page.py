"""The parts of a report's page as HTML; every text from a file is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from math import isfinite

from medkd.evaluation.report.figures import colours, human
from medkd.evaluation.report.segmentation_data import RunEntry, baseline_of, compare, gap_closed, teacher_of
from medkd.evaluation.report.segmentation_pictures import CONTOURS, Picture
from medkd.evaluation.report.style import STYLE
from medkd.evaluation.segmentation.results import Metric, definitions
from medkd.evaluation.segmentation.results import decimals as digits
from medkd.evaluation.statistics import Interval, PairedDifference

ROLE_NAMES = {"teacher": "teacher", "alone": "student alone", "distilled": "distilled student"}


def image(png: bytes | None, alt: str, caption: str = "", kind: str = "") -> str:
    """A figure that carries its picture; nothing where there is none."""
    if png is None:
        return ""
    note = f"<figcaption>{caption}</figcaption>" if caption else ""
    data = base64.b64encode(png).decode()
    return f'<figure class="{kind}"><img alt="{escape(alt)}" src="data:image/png;base64,{data}">{note}</figure>'


def section(title: str, lead: str, *parts: str) -> str:
    """A white box; nothing where it would hold nothing."""
    content = "".join(parts)
    return f'<section><h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{content}</section>' if content else ""


def document(title: str, lead: str, *parts: str) -> str:
    """A whole page that needs nothing else: heading, lead and parts."""
    header = f"<header><div><small>medkd report</small><h1>{escape(title)}</h1><p>{escape(lead)}</p></div></header>"
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>{meta}<title>{escape(title)} · medkd report</title><style>{STYLE}</style></head>"
    footer = "<footer>Made by medkd for research; not a medical device.</footer>"
    return f'<!doctype html><html lang="en">{head}<body>{header}<main>{"".join(parts)}{footer}</main></body></html>\n'


def headline(entries: Sequence[RunEntry]) -> RunEntry | None:
    """The run that the page is about: the distilled student with the highest Dice, else the first scored run."""
    scored = [e for e in entries if e.summary is not None]
    return next((e for e in scored if e.role == "distilled"), scored[0] if scored else None)


def verdict(entries: Sequence[RunEntry]) -> str:
    """One or two sentences that say what came out, with no more certainty than the intervals allow."""
    star = headline(entries)
    if star is None or star.summary is None:
        return "No run has been scored yet."
    text = f"{star.label} reaches a mean foreground Dice of {star.summary.mean_dice:.3f} on {len(star.summary.cases)} validation cases"
    teacher, baseline = teacher_of(star, entries), baseline_of(star, entries)
    if teacher is not None and teacher.summary is not None:
        text += f"; its teacher {teacher.label} reaches {teacher.summary.mean_dice:.3f}"
    difference = compare(star, baseline) if baseline is not None and star.role == "distilled" else None
    if difference is None or not isfinite(difference.low):
        return text + "."
    same = baseline is not None and baseline.run.budget == star.run.budget
    against = "Compared with the same student trained alone " + (
        "under the same budget" if same else "(under another budget)"
    )
    if not difference.clear:
        return f"{text}. {against}, these cases show no clear difference."
    word = "gains" if difference.mean > 0 else "loses"
    return f"{text}. {against}, distillation {word} {abs(difference.mean):.3f} Dice."


def cards(entries: Sequence[RunEntry]) -> str:
    """The few numbers that matter, of the headline run."""
    star = headline(entries)
    if star is None or star.summary is None:
        return ""
    teacher, baseline = teacher_of(star, entries), baseline_of(star, entries)
    value = star.summary.interval("Dice")
    found = [card("Dice", f"{value.mean:.3f}", f"{bounds(value, 3)} · {escape(star.label)}")]
    difference = compare(star, baseline) if baseline is not None and star.role == "distilled" else None
    if difference is not None:
        found.append(card("against alone", f"{difference.mean:+.3f}", f"{bounds(difference, 3)} Dice, paired"))
    closed = gap_closed(star, entries)
    if closed is not None:
        found.append(card("gap closed", f"{100 * closed:.0f} %", "of the way from student alone to teacher"))
    if teacher is not None:
        if star.cost.parameters and teacher.cost.parameters:
            ratio, sizes = (
                teacher.cost.parameters / star.cost.parameters,
                (star.cost.parameters, teacher.cost.parameters),
            )
            found.append(
                card("smaller", f"{ratio:.1f} ×", f"{human(sizes[0])} instead of {human(sizes[1])} parameters")
            )
        if star.cost.latency_ms and teacher.cost.latency_ms:
            ratio, times = (
                teacher.cost.latency_ms / star.cost.latency_ms,
                (star.cost.latency_ms, teacher.cost.latency_ms),
            )
            found.append(card("faster", f"{ratio:.1f} ×", f"{times[0]:.3g} ms instead of {times[1]:.3g} ms per patch"))
    return f'<div class="cards">{"".join(found)}</div>'


def overview(entries: Sequence[RunEntry]) -> str:
    """One row per run: scores, comparison with the student alone, size and speed, failures."""
    head = (
        "",
        "Dice",
        "HD95 mm",
        "NSD",
        "Dice against alone",
        "gap closed",
        "parameters",
        "multiply-adds",
        "time of a patch",
        "failures",
    )
    rows = "".join(_overview_row(entry, entries) for entry in entries)
    return f'<div class="scroll"><table>{table_head(head)}<tbody>{rows}</tbody></table></div>'


def legend(entries: Sequence[RunEntry]) -> str:
    """The colours of the scored runs."""
    shades = colours(entries)
    runs = "".join(f"<span>{dot(shades[e.name])}{escape(e.label)}</span>" for e in entries if e.scored)
    return f'<div class="legend runs">{runs}</div>'


def structure_table(entries: Sequence[RunEntry], metric: Metric) -> str:
    """One row per structure, one column per run, with the paired difference to the student alone under distilled
    ones.
    """
    scored = [e for e in entries if e.summary is not None]
    if not scored or scored[0].summary is None:
        return ""
    shades = colours(entries)
    head = "".join(f"<th>{dot(shades[e.name])}{escape(e.label)}</th>" for e in scored)
    rows = ""
    for i, (name, _) in enumerate(scored[0].summary.structures):
        cells = ""
        for entry in scored:
            baseline = baseline_of(entry, entries) if entry.role == "distilled" else None
            difference = compare(entry, baseline, metric, i) if baseline is not None else None
            value = entry.summary.interval(metric, i) if entry.summary else None
            cells += f"<td>{_value(value, metric)}{_difference(difference, metric)}</td>"
        rows += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return (
        f'<div class="scroll"><table><thead><tr><th>{metric}</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def failures(entries: Sequence[RunEntry]) -> str:
    """Structures missed and invented, per run."""
    scored = [e for e in entries if e.summary is not None]
    if not scored or scored[0].summary is None:
        return ""
    shades = colours(entries)
    names = [name for name, _ in scored[0].summary.structures]
    rows = ""
    for entry in scored:
        counts = [entry.summary.counts(i) for i in range(len(names))] if entry.summary else []
        cells = "".join(
            f"<td>{_failed(c['missed'], c['invented'])}<small>{c['scored']} found</small></td>" for c in counts
        )
        rows += f"<tr><td>{dot(shades[entry.name])}{escape(entry.label)}</td>{cells}</tr>"
    return f'<div class="scroll"><table>{table_head(("missed / invented", *names))}<tbody>{rows}</tbody></table></div>'


def gallery(pictures: Sequence[Picture], structures: Sequence[str]) -> str:
    """The case pictures with a legend of the contours."""
    if not pictures:
        return ""
    swatches = '<span><i class="ref"></i>reference</span>'
    for i, name in enumerate(structures):
        swatches += f'<span><i style="border-color:{CONTOURS[i % len(CONTOURS)]}"></i>{escape(name)}, predicted</span>'
    shown = ""
    for picture in pictures:
        scores = " · ".join(f"{escape(label)} {_plain(dice)}" for label, dice in picture.dice.items())
        caption = f"<strong>{picture.rank.capitalize()} case</strong> · {escape(picture.case)} · Dice: {scores}"
        shown += image(picture.png, f"{picture.rank} case {picture.case}", caption, "picture")
    return f'<div class="legend">{swatches}</div>{shown}'


def settings(entries: Sequence[RunEntry]) -> str:
    """How each run was trained."""
    head = (
        "run",
        "configuration",
        "patch",
        "epochs × steps",
        "batch",
        "learning rate",
        "precision",
        "seed",
        "folds",
        "method settings",
    )
    rows = ""
    for entry in entries:
        run, budget = entry.run, entry.run.budget
        method = ", ".join(f"{k} = {v}" for k, v in run.method_parameters.items()) or "–"
        cells = (
            run.configuration,
            " × ".join(map(str, run.network.patch_size)),
            f"{budget.epochs} × {budget.iterations_per_epoch}",
            str(budget.batch_size),
            f"{budget.learning_rate:g}",
            run.precision,
            str(budget.seed),
            ", ".join(entry.folds) or "–",
            method,
        )
        rows += f"<tr><td>{escape(entry.name)}</td>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>"
    return f'<div class="scroll"><table>{table_head(head)}<tbody>{rows}</tbody></table></div>'


def how_measured(entries: Sequence[RunEntry]) -> str:
    """The definitions behind the numbers."""
    summary = next((e.summary for e in entries if e.summary is not None), None)
    texts = summary.definitions() if summary is not None else definitions(None, "max")
    texts |= {
        "against alone": "mean of the paired differences over the shared cases, bootstrap interval; p from Wilcoxon's signed-rank test; "
        "coloured where the interval leaves 0 out and p < 0.05",
        "gap closed": "(Dice − Dice alone) / (teacher's Dice − Dice alone); left out where the gap itself is not clear",
    }
    if sum(e.role == "distilled" for e in entries) > 1:
        texts["on top of the page"] = (
            "the distilled student with the highest Dice; chosen on these cases, so a little flattered"
        )
    cost = next((e.cost for e in entries if e.cost.latency_ms), None)
    if cost is not None:
        patch = " × ".join(map(str, cost.patch_size))
        texts["time of a patch"] = f"forward pass of one {patch} patch on {cost.device}, {cost.threads} CPU threads"
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in texts.items())}</dl>"


def _overview_row(entry: RunEntry, entries: Sequence[RunEntry]) -> str:
    teacher = teacher_of(entry, entries) if entry.role == "distilled" else None
    baseline = baseline_of(entry, entries) if entry.role == "distilled" else None
    role = ROLE_NAMES[entry.role] + (
        f" of {entry.run.teacher}" if entry.role == "distilled" and entry.run.teacher else ""
    )
    label = f'<span class="name">{dot(colours(entries)[entry.name])}<b>{escape(entry.label)}</b></span>'
    name = f'{label}<span class="role">{escape(role)}</span>'
    scores = [_value(entry.summary.interval(m) if entry.summary else None, m) for m in ("Dice", "HD95", "NSD")]  # type: ignore[arg-type]
    closed = gap_closed(entry, entries)
    counts = entry.summary.counts() if entry.summary else None
    cells = [
        *scores,
        _difference(compare(entry, baseline) if baseline is not None else None, "Dice", full=True) or "–",
        "–" if closed is None else f"{100 * closed:.0f} %",
        human(entry.cost.parameters)
        + ratio(entry.cost.parameters, teacher.cost.parameters if teacher else None, "smaller"),
        human(entry.cost.macs) + ratio(entry.cost.macs, teacher.cost.macs if teacher else None, "fewer"),
        ("–" if entry.cost.latency_ms is None else f"{entry.cost.latency_ms:.3g} ms")
        + ratio(entry.cost.latency_ms, teacher.cost.latency_ms if teacher else None, "faster"),
        "–" if counts is None else _failed(counts["missed"], counts["invented"]),
    ]
    return f"<tr><td>{name}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"


def card(title: str, number: str, note: str) -> str:
    """One of the big numbers on top."""
    return f'<div class="card"><em>{title}</em><b>{number}</b><span>{note}</span></div>'


def table_head(names: Sequence[str]) -> str:
    """The first row of a table."""
    return f"<thead><tr>{''.join(f'<th>{escape(n)}</th>' for n in names)}</tr></thead>"


def dot(colour: str) -> str:
    """A run's colour."""
    return f'<span class="dot" style="background:{colour}"></span>'


def _plain(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else "–"


def bounds(value: Interval, decimals: int, sign: str = "") -> str:
    """``0.812 to 0.874``; the number of cases where there are no bounds."""
    return (
        f"{value.low:{sign}.{decimals}f} to {value.high:{sign}.{decimals}f}"
        if isfinite(value.low)
        else f"{value.n} case"
    )


def _value(value: Interval | None, metric: Metric) -> str:
    if value is None or not isfinite(value.mean):
        return "–"
    return f"<b>{value.mean:.{digits(metric)}f}</b><small>{bounds(value, digits(metric))}</small>"


def _difference(value: PairedDifference | None, metric: Metric, *, full: bool = False) -> str:
    """The paired difference, green or red where it is clear."""
    if value is None or not isfinite(value.mean):
        return ""
    better = -value.mean if metric == "HD95" else value.mean
    kind = ("good" if better > 0 else "bad") if value.clear else "muted"
    number = f"{value.mean:+.{digits(metric)}f}"
    if not full:
        return f'<small class="{kind}">{number} vs alone</small>'
    p = f"<br>p {'&lt; 0.001' if value.p < 0.001 else f'= {value.p:.3f}'}" if isfinite(value.p) else ""
    return f'<b class="{kind}">{number}</b><small>{bounds(value, digits(metric), "+")}{p}</small>'


def ratio(own: float | None, teachers: float | None, word: str) -> str:
    """``9.5 × smaller``; nothing where a number is missing."""
    return f"<small>{teachers / own:.1f} × {word}</small>" if own and teachers else ""


def _failed(missed: int, invented: int) -> str:
    return f'<span class="{"bad" if missed or invented else "good"}">{missed} / {invented}</span>'
