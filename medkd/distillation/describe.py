"""What the code says of its methods: paper, formula, needs and parameters, for lists and for the page of methods."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from medkd.core.registry import Registry
from medkd.distillation.base import Method
from medkd.distillation.build import parameters_of
from medkd.distillation.departures import Departure, Kind, departures_of

_BLOCK = re.compile(r"::\n\n((?: {4}.*(?:\n|$))+)")
_INLINE = re.compile(r"``([^`]+)``")


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """One method.

    Attributes:
        name: on the command line.
        title: first sentence of its documentation.
        paper: authors, venue, year, arXiv id or DOI.
        formula: of its loss, in one line; empty for a method without any.
        needs: what it needs of the networks.
        detection: whether it is defined for detectors.
        parameters: name → default as text; ``required`` where there is none.
        bound: what it does to keep its memory bounded.
        departures: where it differs from what its authors released, on purpose.
    """

    name: str
    title: str
    paper: str
    formula: str
    needs: str
    detection: bool
    parameters: tuple[tuple[str, str], ...]
    bound: str
    departures: tuple[Departure, ...] = ()


def describe_methods(methods: Registry[type[Method]]) -> list[MethodCard]:
    """A card for every method of a registry, in its order."""
    from medkd.distillation import METHODS

    kind: Kind = "method" if methods is METHODS else "detection"
    return [describe_method(name, methods[name], kind) for name in methods]


def describe_method(name: str, method: type[Method], kind: Kind = "method") -> MethodCard:
    """The card of a method, from its class attributes, its constructor, its docstring and the list of departures."""
    title = inspect.cleandoc(method.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    parameters = tuple((n, _default(p)) for n, p in parameters_of(method).items())
    return MethodCard(
        name=name,
        title=title,
        paper=method.citation,
        formula=formula_of(method),
        needs=needs_of(method),
        detection=method.detection,
        parameters=parameters,
        bound=method.bound,
        departures=departures_of(name, kind),
    )


def needs_of(method: type[Method]) -> str:
    """What a method needs of the networks, in words."""
    if not method.needs_teacher:
        return "nothing"
    if method.outputs_only:
        return "teacher's logits"
    if method.prepare is not Method.prepare:
        return "features, and a first stage on a teacher that can be continued from a tap"
    return "features, and a teacher that can be continued from a tap" if method.continues_teacher else "features"


def formula_of(method: type[Method]) -> str:
    """The formula in a method's docstring: its displayed block, else its inline formulas; in one line."""
    text = inspect.cleandoc(method.__doc__ or "").partition("\nCitation:")[0]
    text = text.replace("``variant=", "\nvariant=").partition("\nvariant=")[0]
    block = _BLOCK.search(text)
    if block:
        return " ; ".join(_one_line(line) for line in block[1].strip().splitlines())
    whole, terms = [], []
    for part in map(_one_line, _INLINE.findall(text)):
        if part.startswith("L") and " = " in part:
            whole.append(part)
        if "mean" in part or "KL" in part:
            terms.append(part)
    return " ; ".join(whole or terms)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def method_page(branches: dict[str, list[MethodCard]], costs: dict[str, CostRow], measured: str) -> Iterator[str]:
    """The lines of the page of all methods, in Markdown.

    Args:
        branches: heading → its methods.
        costs: name → what the loss costs, for the methods that were measured.
        measured: how and where that was measured, one sentence.
    """
    yield from _HEAD.format(measured=measured).splitlines()
    for heading, cards in branches.items():
        yield from ("", f"## {heading}", "")
        yield "| method | paper | needs | detectors too | time | memory |"
        yield "|---|---|---|---|---|---|"
        for card in cards:
            time, memory = _cost(costs.get(card.name)) if heading == SEGMENTATION else ("-", "-")
            link = f"[`{card.name}`](#{_anchor(heading, card)})"
            yield f"| {link} | {card.paper} | {card.needs} | {_yes(card)} | {time} | {memory} |"
        for card in cards:
            yield from _section(heading, card)
    yield ""


@dataclass(frozen=True)
class CostRow:
    """What the loss of a method costs beside the supervised loss, forward and backward, and the memory that it
    announces, in MiB.
    """

    times_supervised: float
    extra_mib: float
    announced_mib: float


SEGMENTATION = "Segmentation"
_HEAD = """# Distillation methods

This page is made from the code by `python -m benchmarks.methods_page`; change a method's docstring instead of the
page.

A method is named on the command line (`medkd_train_distill 4 res_unet unet_tiny kd 0`), several are joined by `+`, a
parameter is set by `--set METHOD.PARAMETER=VALUE`. `needs` says what it takes of the networks: the teacher's logits
alone, features read at taps (which `--dry-run` shows with their shapes), or a teacher that can be continued from a
tap. A default of `None` means that it follows from the variant or the networks, as the class's documentation says;
`variant=paper` gives the scale and form of the original.

Time is that of the loss alone, forward and backward, as a multiple of the supervised loss; memory is what it takes at
its peak beyond its inputs, and the bound that it announces and never exceeds. {measured}"""


def _section(heading: str, card: MethodCard) -> Iterator[str]:
    yield from (
        "",
        f"### {card.name}" if heading == SEGMENTATION else f"### {card.name} ({heading.lower()})",
        "",
        card.title,
        "",
    )
    if card.formula:
        yield from ("    " + card.formula, "")
    yield f"- paper: {card.paper}"
    yield f"- needs: {card.needs}" + (", in detectors too" if card.detection else "")
    settings = ", ".join(f"`{name}={default}`" for name, default in card.parameters)
    yield f"- parameters: {settings or 'none'}"
    yield f"- memory: {card.bound}"
    for entry in card.departures:
        variant = "" if entry.variant == "both" else ", in the paper's variant"
        yield f"- departs from the original{variant}: {entry.what} {entry.why} ({entry.size}; {entry.source})"


def _cost(row: CostRow | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    return f"{row.times_supervised:.1f} ×", f"{row.extra_mib:.0f} of {row.announced_mib:.0f} MiB"


def _anchor(heading: str, card: MethodCard) -> str:
    return card.name if heading == SEGMENTATION else f"{card.name}-{heading.lower()}"


def _yes(card: MethodCard) -> str:
    return "yes" if card.detection else "no"


def _default(parameter: inspect.Parameter) -> str:
    return "required" if parameter.default is inspect.Parameter.empty else str(parameter.default)
