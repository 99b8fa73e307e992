"""The parts of a detection report's page as HTML; every text from a file is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite

from medkd.evaluation.detection.drawing import colour_of
from medkd.evaluation.detection.metrics import RATES, rate_key
from medkd.evaluation.detection.results import Rules, definitions
from medkd.evaluation.report.detection_data import Comparison, DetectionEntry, scored_entries
from medkd.evaluation.report.detection_pictures import RadiographPicture
from medkd.evaluation.report.figures import colours, human
from medkd.evaluation.report.segmentation_data import RunEntry, baseline_of, teacher_of
from medkd.evaluation.report.segmentation_page import ROLE_NAMES, bounds, card, dot, image, ratio, table_head
from medkd.evaluation.statistics import Interval, PairedDifference

Compared = Mapping[str, Comparison]


def headline(entries: Sequence[RunEntry]) -> DetectionEntry | None:
    """The run that the page is about: the distilled student with the highest average precision, else the first scored
    run.
    """
    scored = scored_entries(entries)
    return next((e for e in scored if e.role == "distilled"), scored[0] if scored else None)


def verdict(entries: Sequence[RunEntry], compared: Compared) -> str:
    """One or two sentences that say what came out, with no more certainty than the intervals allow."""
    star = headline(entries)
    if star is None:
        return "No run has been scored yet."
    scores = star.scores
    found = scores.value("S@1").mean
    text = f"{star.label} reaches an average precision of {_number(scores.value('AP'))} (AP50 {_number(scores.value('AP50'))})"
    text += f" on {len(scores.truths)} validation images"
    text += f" and finds {100 * found:.0f} % of the boxes at one false positive per image" if isfinite(found) else ""
    teacher, alone = teacher_of(star, entries), baseline_of(star, entries)
    if isinstance(teacher, DetectionEntry):
        text += f"; its teacher {teacher.label} reaches {_number(teacher.scores.value('AP'))}"
    difference = compared[star.name].of("AP") if star.name in compared else None
    if difference is None or not isfinite(difference.low):
        return text + "."
    same = alone is not None and alone.run.budget == star.run.budget
    against = "Compared with the same student trained alone " + (
        "under the same budget" if same else "(under another budget)"
    )
    if not difference.clear:
        return f"{text}. {against}, these images show no clear difference in average precision."
    word = "gains" if difference.mean > 0 else "loses"
    return f"{text}. {against}, distillation {word} {abs(difference.mean):.3f} average precision."


def cards(entries: Sequence[RunEntry], compared: Compared) -> str:
    """The few numbers that matter, of the headline run."""
    star = headline(entries)
    if star is None:
        return ""
    ap, rate = star.scores.value("AP"), star.scores.value("S@1")
    found = [card("average precision", _number(ap), f"{bounds(ap, 3)} · {escape(star.label)}")]
    if isfinite(rate.mean):
        found.append(
            card("sensitivity", f"{100 * rate.mean:.0f} %", f"{bounds(rate, 2)} at 1 false positive per image")
        )
    comparison = compared.get(star.name)
    difference = comparison.of("AP") if comparison is not None else None
    if difference is not None:
        found.append(card("against alone", f"{difference.mean:+.3f}", f"{bounds(difference, 3, '+')} AP, paired"))
    if comparison is not None and comparison.closed is not None:
        found.append(card("gap closed", f"{100 * comparison.closed:.0f} %", "of the way from student alone to teacher"))
    teacher = teacher_of(star, entries)
    if teacher is not None and star.cost.parameters and teacher.cost.parameters:
        sizes = star.cost.parameters, teacher.cost.parameters
        found.append(
            card(
                "smaller", f"{sizes[1] / sizes[0]:.1f} ×", f"{human(sizes[0])} instead of {human(sizes[1])} parameters"
            )
        )
    if teacher is not None and star.cost.latency_ms and teacher.cost.latency_ms:
        times = star.cost.latency_ms, teacher.cost.latency_ms
        found.append(
            card("faster", f"{times[1] / times[0]:.1f} ×", f"{times[0]:.3g} ms instead of {times[1]:.3g} ms per image")
        )
    return f'<div class="cards">{"".join(found)}</div>'


def overview(entries: Sequence[RunEntry], compared: Compared) -> str:
    """One row per run: scores, comparison with the student alone, size and speed."""
    head = (
        *("", "AP", "AP50", "sensitivity at 1 FP / image", "AUC of images", "AP against alone", "AP50 against alone"),
        *("sensitivity against alone", "gap closed", "parameters", "multiply-adds", "time of an image"),
    )
    rows = "".join(_overview_row(entry, entries, compared.get(entry.name)) for entry in entries)
    return f'<div class="scroll"><table>{table_head(head)}<tbody>{rows}</tbody></table></div>'


def froc_table(entries: Sequence[RunEntry]) -> str:
    """Sensitivity at every rate of false positives, one row per run."""
    scored, shades = scored_entries(entries), colours(entries)
    head = ("false positives per image", *(f"{rate:g}" for rate in RATES))
    rows = ""
    for entry in scored:
        cells = "".join(f"<td>{_value(entry.scores.value(rate_key(rate)))}</td>" for rate in RATES)
        rows += f"<tr><td>{dot(shades[entry.name])}{escape(entry.label)}</td>{cells}</tr>"
    return f'<div class="scroll"><table>{table_head(head)}<tbody>{rows}</tbody></table></div>' if rows else ""


def class_table(entries: Sequence[RunEntry], metric: str, compared: Compared) -> str:
    """A metric of every class that has boxes, one column per run, and the difference to the student alone."""
    scored, shades = scored_entries(entries), colours(entries)
    if not scored:
        return ""
    head = "".join(f"<th>{dot(shades[e.name])}{escape(e.label)}</th>" for e in scored)
    rows = ""
    for name in (n for n in scored[0].scores.categories if n not in scored[0].scores.skipped):
        cells = ""
        for entry in scored:
            difference = compared[entry.name].of(metric, name) if entry.name in compared else None
            cells += f"<td>{_value(entry.scores.value(metric, name))}{_difference(difference)}</td>"
        rows += f"<tr><td>{escape(name)}<small>{scored[0].scores.boxes(name)} boxes</small></td>{cells}</tr>"
    return (
        f'<div class="scroll"><table><thead><tr><th>{metric}</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def coco_table(entries: Sequence[RunEntry]) -> str:
    """The rest of COCO's numbers, one row per run."""
    scored, shades = scored_entries(entries), colours(entries)
    if not scored:
        return ""
    metrics = [m for m in scored[0].scores.metrics() if m.startswith(("AP75", "AP ", "AR"))]
    rows = ""
    for entry in scored:
        cells = "".join(f"<td>{_number(entry.scores.value(m))}</td>" for m in metrics)
        rows += f"<tr><td>{dot(shades[entry.name])}{escape(entry.label)}</td>{cells}</tr>"
    return f'<div class="scroll"><table>{table_head(("", *metrics))}<tbody>{rows}</tbody></table></div>'


def gallery(pictures: Sequence[RadiographPicture], categories: Sequence[str]) -> str:
    """The pictures with a legend of the boxes."""
    if not pictures:
        return ""
    swatches = '<span><i class="ref"></i>drawn by people</span>'
    for i, name in enumerate(categories):
        swatches += f'<span><i style="border-color:{colour_of(i)}"></i>{escape(name)}, found</span>'
    shown = ""
    for picture in pictures:
        counts = " · ".join(
            f"{escape(label)}: {t} found, {m} missed, {f} false" for label, (t, m, f) in picture.counts.items()
        )
        caption = f"<strong>{picture.rank.capitalize()}</strong> · {escape(picture.case)} · {counts}"
        shown += image(picture.png, f"{picture.rank}: {picture.case}", caption, "picture")
    return f'<div class="legend">{swatches}</div>{shown}'


def how_measured(entries: Sequence[RunEntry]) -> str:
    """The definitions behind the numbers."""
    scored = scored_entries(entries)
    texts = definitions(scored[0].scores.rules if scored else Rules(()))
    texts |= {
        "against alone": "paired difference on the same images, counted on the same bootstrap samples; coloured where the interval leaves "
        "0 out and p < 0.05 (twice the smaller share of samples on either side of zero)",
        "gap closed": "(AP − AP alone) / (teacher's AP − AP alone); left out where the gap itself is not clear",
        "final weights": "the last epoch's weights are judged, since the best ones were chosen on these very images",
    }
    if scored and scored[0].scores.skipped:
        texts["classes without boxes"] = ", ".join(scored[0].scores.skipped)
    if sum(e.role == "distilled" for e in entries) > 1:
        texts["on top of the page"] = (
            "the distilled student with the highest AP; chosen on these images, so a little flattered"
        )
    cost = next((e.cost for e in entries if e.cost.latency_ms), None)
    if cost is not None:
        side = " × ".join(map(str, cost.patch_size))
        texts["time of an image"] = f"detection in one {side} image on {cost.device}, {cost.threads} CPU threads"
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in texts.items())}</dl>"


def _overview_row(entry: RunEntry, entries: Sequence[RunEntry], comparison: Comparison | None) -> str:
    teacher = teacher_of(entry, entries) if entry.role == "distilled" else None
    role = ROLE_NAMES[entry.role] + (
        f" of {entry.run.teacher}" if entry.role == "distilled" and entry.run.teacher else ""
    )
    label = f'<span class="name">{dot(colours(entries)[entry.name])}<b>{escape(entry.label)}</b></span>'
    scores = [
        _value(entry.scores.value(m)) if isinstance(entry, DetectionEntry) else "–"
        for m in ("AP", "AP50", "S@1", "AUC")
    ]
    against = [
        _difference(comparison.of(m), full=True) or "–" if comparison is not None else "–"
        for m in ("AP", "AP50", "S@1")
    ]
    closed = comparison.closed if comparison is not None else None
    cells = [
        *scores,
        *against,
        "–" if closed is None else f"{100 * closed:.0f} %",
        human(entry.cost.parameters)
        + ratio(entry.cost.parameters, teacher.cost.parameters if teacher else None, "smaller"),
        human(entry.cost.macs) + ratio(entry.cost.macs, teacher.cost.macs if teacher else None, "fewer"),
        ("–" if entry.cost.latency_ms is None else f"{entry.cost.latency_ms:.3g} ms")
        + ratio(entry.cost.latency_ms, teacher.cost.latency_ms if teacher else None, "faster"),
    ]
    return f'<tr><td>{label}<span class="role">{escape(role)}</span></td>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'


def _number(value: Interval) -> str:
    return f"{value.mean:.3f}" if isfinite(value.mean) else "–"


def _value(value: Interval) -> str:
    return f"<b>{value.mean:.3f}</b><small>{bounds(value, 3)}</small>" if isfinite(value.mean) else "–"


def _difference(value: PairedDifference | None, *, full: bool = False) -> str:
    """The paired difference, green or red where it is clear."""
    if value is None:
        return ""
    kind = ("good" if value.mean > 0 else "bad") if value.clear else "muted"
    if not full:
        return f'<small class="{kind}">{value.mean:+.3f} vs alone</small>'
    p = f"<br>p {'&lt; 0.01' if value.p < 0.01 else f'= {value.p:.2f}'}" if isfinite(value.p) else ""
    return f'<b class="{kind}">{value.mean:+.3f}</b><small>{bounds(value, 3, "+")}{p}</small>'
