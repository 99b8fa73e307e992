"""What the code says of its methods: paper, formula, needs and parameters, for lists and for the page of methods."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from medkd.core.registry import Registry
from medkd.distillation.base import Method, parameters_of

_BLOCK = re.compile(r"::\n\n((?: {4}.*(?:\n|$))+)")
_INLINE = re.compile(r"``([^`]+)``")


@dataclass(frozen=True)
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
    """

    name: str
    title: str
    paper: str
    formula: str
    needs: str
    detection: bool
    parameters: tuple[tuple[str, str], ...]
    bound: str


def describe_methods(methods: Registry[type[Method]]) -> list[MethodCard]:
    """A card for every method of a registry, in its order."""
    return [describe_method(name, methods[name]) for name in methods]


def describe_method(name: str, method: type[Method]) -> MethodCard:
    """The card of a method, from its class attributes, its constructor and its docstring."""
    title = inspect.cleandoc(method.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    parameters = tuple((n, _default(p)) for n, p in parameters_of(method).items())
    return MethodCard(
        name, title, method.citation, formula_of(method), needs_of(method), method.detection, parameters, method.bound
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
    text = (
        inspect.cleandoc(method.__doc__ or "")
        .partition("\nCitation:")[0]
        .replace("``variant=", "\nvariant=")
        .partition("\nvariant=")[0]
    )
    block = _BLOCK.search(text)
    if block:
        return " ; ".join(re.sub(r"\s+", " ", line).strip() for line in block[1].strip().splitlines())
    found = [re.sub(r"\s+", " ", part) for part in _INLINE.findall(text)]
    whole = [part for part in found if part.startswith("L") and " = " in part]
    return " ; ".join(whole or [part for part in found if "mean" in part or "KL" in part])


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
            yield f"| [`{card.name}`](#{_anchor(heading, card)}) | {card.paper} | {card.needs} | {_yes(card)} | {time} | {memory} |"
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

This page is made from the code by `python -m benchmarks.methods_page`; change a method's docstring instead of the page.

A method is named on the command line (`medkd_train_distill 4 res_unet unet_tiny kd 0`), several are joined by `+`, a parameter is set by
`--set METHOD.PARAMETER=VALUE`. `needs` says what it takes of the networks: the teacher's logits alone, features read at taps (which
`--dry-run` shows with their shapes), or a teacher that can be continued from a tap. A default of `None` means that it follows from the
variant or the networks, as the class's documentation says; `variant=paper` gives the scale and form of the original.

Time is that of the loss alone, forward and backward, as a multiple of the supervised loss; memory is what it takes at its peak beyond
its inputs, and the bound that it announces and never exceeds. {measured}"""


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
