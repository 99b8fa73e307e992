"""May the student replace the teacher? What the scores allow to say, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from medkd.core.agreements import agreement_text
from medkd.evaluation.report.data import Report, RunEntry
from medkd.evaluation.statistics import FEWEST, Answer, PairedDifference, count_patients
from medkd.evaluation.table import counted_cases

ANSWERS: dict[Answer, str] = {
    "yes": "Yes",
    "no": "No",
    "open": "Not shown",
    "few": "Nothing can be concluded",
    "nothing": "Nothing can be concluded",
}
QUESTION = "May the student replace the teacher?"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a student may replace its teacher in one respect.

    Attributes:
        part: structure or class; empty for all together.
        answer: ``nothing`` where the teacher, or a student that is not clearly worse, scores no better than nothing, or
            there is nothing to compare.
        difference: student − teacher in the main metric.
    """

    part: str
    answer: Answer
    difference: PairedDifference | None = None


def decide(report: Report, student: RunEntry, part: str = "") -> Decision:
    """Test a student for non-inferiority to its teacher, see :meth:`Report.conclusion`."""
    difference = report.difference(student, report.teacher(student), part=part)
    return Decision(part=part, answer=report.conclusion(student, part), difference=difference)


def decisions(report: Report, student: RunEntry) -> list[Decision]:
    """One decision for all together, and one for each structure or class."""
    return [decide(report, student, part) for part in ("", *student.scores.parts)]


def verdict(report: Report) -> list[str]:
    """The answer, and one or two sentences that say what came out, with no more certainty than the intervals allow."""
    star = report.headline
    if star is None:
        return [_unscored(report)]
    sentences = [answer(report, star)]
    if star.role == "distilled":
        sentences += [_others(report, star), _parts(report, star), _against_alone(report, star)]
    else:
        mean = star.scores.value(report.task.main.key).mean
        reached = f"{mean:.3f} {report.task.main.name}" if isfinite(mean) else "no score"
        cases = list(star.scores.cases)
        counted = counted_cases(len(cases), count_patients(cases, report.patients), f"validation {report.task.case}")
        sentences.append(f"{star.label} reaches {reached} on {counted}.")
    return [sentence for sentence in sentences if sentence]


def _others(report: Report, star: RunEntry) -> str:
    """Why the page is about this one of several students that may replace their teachers."""
    others = [entry for entry in report.able if entry is not star]
    if not others:
        return ""
    smallest = all(entry.cost.parameters != star.cost.parameters for entry in others)
    which = "is the smallest" if smallest else "has the highest score of the smallest"
    names = _listed([entry.label for entry in others], len(others))
    return f"{len(others) + 1} students may, of which this {which}; the others: {names}."


def _unscored(report: Report) -> str:
    known = [(entry.label, agreement_text(entry.path)) for entry in report.entries]
    told = [f"{label}: {text}" for label, text in known if text]
    if not told:
        return f"{QUESTION} {ANSWERS['nothing']}: no run has been scored yet."
    return f"{QUESTION} {ANSWERS['nothing']}: there are no labels to be judged by ({'; '.join(told)})."


def answer(report: Report, star: RunEntry) -> str:
    """The question and its answer for the run that the page is about."""
    teacher = report.teacher(star)
    if star.role != "distilled":
        return f"{QUESTION} {ANSWERS['nothing']}: no distilled student has been scored yet."
    if teacher is None:
        return f"{QUESTION} {ANSWERS['nothing']}: {_no_teacher(star)}."
    return _answer(report, star, teacher)


def _no_teacher(star: RunEntry) -> str:
    """Why there is no teacher to compare with."""
    if star.origin.unclear:
        return star.origin.doubt(star.name, star.run.teacher)
    if len(star.origin.models) > 1:
        return f"{star.teacher_name} taught {star.label} together, and no run has their scores together"
    return (
        f"{star.teacher_name or 'its teacher'}, the teacher of {star.label}, has no scores among these runs "
        "(medkd_score_teacher gives an imported one its scores)"
    )


def _answer(report: Report, star: RunEntry, teacher: RunEntry) -> str:
    name, margin = report.task.main.name, f"{report.margin:g}"
    decision = decide(report, star)
    difference = decision.difference
    start = f"{QUESTION} {ANSWERS[decision.answer]}:"
    if decision.answer == "nothing" and not report.has_learnt(teacher):
        mean = teacher.scores.value(report.task.main.key).mean
        reached = f"{mean:.3f} {name}" if isfinite(mean) else "no score at all"
        return f"{start} the teacher {teacher.label} has learnt nothing that could be taught ({reached})."
    if difference is None:
        return f"{start} {star.label} and {teacher.label} share no scored {report.task.case}."
    if decision.answer == "nothing":
        return f"{start} {star.label} has learnt nothing yet ({name} below {report.task.learnt:g})."
    counted = f"{difference.n} {report.unit}s"
    shown = f"{difference.mean:+.3f} {name}{_bounds(difference)}, {counted}"
    if decision.answer == "few":
        return f"{start} {counted} are too few, at least {FEWEST} are needed ({star.label} − {teacher.label}: {shown})."
    if decision.answer == "yes":
        return f"{start} {star.label} loses less than {margin} {name} against {teacher.label} ({shown})."
    if decision.answer == "no":
        return f"{start} {star.label} loses more than {margin} {name} against {teacher.label} ({shown})."
    return (
        f"{start} whether {star.label} loses less than {margin} {name} against {teacher.label} is open, the interval "
        f"holds both ({shown})."
    )


def _parts(report: Report, star: RunEntry) -> str:
    """Structure by structure, where there are several."""
    parts = [decision for decision in decisions(report, star) if decision.part]
    if len(parts) < 2 or all(decision.answer in ("nothing", "few") for decision in parts):
        return ""
    words: Sequence[tuple[Answer, str]] = (
        ("yes", "within the margin"),
        ("no", "worse"),
        ("open", "open"),
        ("few", f"too few {report.unit}s"),
        ("nothing", "not learnt"),
    )
    found = []
    for kind, word in words:
        names = [decision.part for decision in parts if decision.answer == kind]
        if names:
            found.append(f"{word}: {_listed(names, len(parts))}")
    return f"By {report.task.part}: {'; '.join(found)}."


def _listed(names: Sequence[str], total: int) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} of {total}"


def _against_alone(report: Report, star: RunEntry) -> str:
    """What distillation gained over the same student alone, in the words of the table's interval."""
    alone = report.alone(star)
    difference = report.difference(star, alone)
    if alone is None or difference is None:
        return ""
    name = report.task.main.name
    budget = "under the same budget" if alone.run.budget == star.run.budget else "under another budget"
    start = f"Compared with the same student trained alone ({budget}),"
    if not report.has_learnt(star) and not report.has_learnt(alone):
        return f"{start} nothing can be concluded: neither has learnt anything ({name} below {report.task.learnt:g})."
    if not report.has_learnt(alone):
        return (
            f"{start} nothing can be concluded of a longer training: alone it has learnt nothing yet ({name} below "
            f"{report.task.learnt:g})."
        )
    return f"{start} {reading(difference, name, report.unit)}."


def reading(difference: PairedDifference, name: str, unit: str = "case") -> str:
    """A paired difference of a metric in words that its interval and its test, over some unit, both allow."""
    shown = f"{difference.mean:+.3f} {name}{_bounds(difference)}"
    if difference.n < FEWEST or not isfinite(difference.low):
        return f"nothing can be concluded from so few {unit}s ({shown}, {difference.n} of at least {FEWEST})"
    if difference.clear:
        word = "gains" if difference.mean > 0 else "loses"
        return f"distillation {word} {abs(difference.mean):.3f} {name}{_bounds(difference)}"
    if difference.excludes_zero:
        side = "above" if difference.low > 0 else "below"
        return (
            f"the interval lies {side} zero, but the test does not confirm it (p = {difference.p:.2f}): a hint, no "
            f"more ({shown})"
        )
    return f"there is no clear difference ({shown})"


def _bounds(difference: PairedDifference) -> str:
    if not isfinite(difference.low):
        return ""
    return f", 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
