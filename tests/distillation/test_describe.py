"""What the code says of its methods, the page made from it, and the memory that every method announces."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.methods_page import PAGE, page
from medkd.core.features import Outputs, Progress, Target
from medkd.core.live_memory import LivePeak
from medkd.core.run import NetworkSpec
from medkd.distillation import METHODS, Context, Distiller, build_method
from medkd.distillation.base import Method
from medkd.distillation.capture import Capture
from medkd.distillation.describe import describe_method, describe_methods, formula_of
from medkd.distillation.prompts.first_stage import PromptMethod
from medkd.networks import SegmentationNetwork, build_network


def test_the_committed_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks.methods_page"


def test_every_method_has_a_card() -> None:
    cards = {card.name: card for card in describe_methods(METHODS)}
    assert list(cards) == list(METHODS)
    assert all(card.paper and card.title and card.bound and "``" not in card.formula for card in cards.values())
    assert [name for name, card in cards.items() if not card.formula] == ["none"]
    assert ("temperature", "1.0") in cards["kd"].parameters
    needs = {name: cards[name].needs for name in ("none", "kd", "mimic", "crosskd", "maskd")}
    assert needs["none"] == "nothing" and needs["kd"] == "teacher's logits" and needs["mimic"] == "features"
    assert "continued" in needs["crosskd"] and "first stage" in needs["maskd"]


def test_formulas_are_read_from_blocks_and_from_the_text() -> None:
    class Block(Method):
        """A title.

        Words::

            L = a +
                b

        More. Citation: none.
        """

    class Text(Method):
        """A title with ``τ``.

        Then ``L = w · mean x``, and ``variant="paper"`` with ``L = 7``.
        """

    class Terms(Method):
        """Two terms: ``mean x`` and ``mean y``, at ``τ``."""

    assert [formula_of(kind) for kind in (Block, Text, Terms)] == ["L = a + ; b", "L = w · mean x", "mean x ; mean y"]
    assert describe_method("text", Text).title == "A title with ``τ``."


def test_cards_of_both_branches_need_no_detection_libraries() -> None:
    code = (
        "import sys; from medkd.cli.list_entries import method_rows; method_rows();"
        "assert not {'torchvision', 'ultralytics', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _step(method: Method, student: SegmentationNetwork, teacher: SegmentationNetwork, regions: bool) -> tuple[int, int]:
    """Measured and announced bytes of the method alone, at the networks' own features."""
    size, rank = student.spec.patch_size, student.rank
    image = torch.randn(2, 1, *size)
    labels = torch.rand(2, 3, *size).round() if regions else torch.randint(0, 3, (2, 1, *size))
    needs = method.needs()
    with torch.no_grad(), Capture(student, needs.student) as own:
        logits = student(image)
    teacher.remember = method.continues_teacher
    with torch.no_grad(), Capture(teacher, needs.teacher, needs.teacher_corrections) as taught:
        expected = teacher(image)
    features = {name: f.requires_grad_() for name, f in own.features.items()}
    target = Target(labels, torch.rand(2, 1, *size) > 0.1, Progress(50, 100))
    seen = Outputs(
        logits=expected,
        features=taught.features,
        corrections=taught.corrections,
        auxiliary=(),
        average=teacher.forward_from if method.continues_teacher else None,
    )
    with LivePeak() as live:
        terms = method(Outputs(logits=logits.requires_grad_(), features=features), seen, target)
        torch.stack(list(terms.values())).sum().backward()
    compared = sum(f.nbytes for f in (*features.values(), *taught.features.values()))
    assert len(size) == rank
    return live.highest, method.announced(logits.nbytes, compared, 2)


@pytest.fixture(scope="module")
def networks() -> dict[tuple[str, int], SegmentationNetwork]:
    """Student and teacher in 2D and 3D; untrained, since no value matters here."""
    torch.manual_seed(0)
    sizes = {2: (128, 128), 3: (32, 32, 32)}
    return {
        (n, r): build_network(NetworkSpec(name=n, in_channels=1, num_outputs=3, patch_size=sizes[r]))
        .eval()
        .requires_grad_(False)
        for n in ("unet_tiny", "res_unet")
        for r in (2, 3)
    }


@pytest.mark.parametrize(("rank", "regions"), [(2, False), (2, True), (3, False), (3, True)])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("none", "crosskd")])
def test_no_method_takes_more_memory_than_it_announces(
    name: str, rank: int, regions: bool, networks: dict[tuple[str, int], SegmentationNetwork]
) -> None:
    if regions and name in ("nkd", "dkd"):
        pytest.skip("not defined for regions")
    student, teacher = networks["unet_tiny", rank], networks["res_unet", rank]
    method = build_method(
        name,
        Context(
            student_taps=student.taps,
            teacher_taps=teacher.taps,
            num_outputs=3,
            regions=regions,
            spacing=(1.0,) * rank,
            patch_size=student.spec.patch_size,
        ),
    )
    if isinstance(method, PromptMethod):
        method.prepared.fill_(True)
    Distiller(teacher, method)
    measured, announced = _step(method, student, teacher, regions)
    assert measured <= announced
    assert announced < 60 * measured, "a bound far above what is needed says nothing"


@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [("rkd", "max_nodes", (8, 96)), ("skd", "max_nodes", (8, 600)), ("cirkd", "max_nodes", (16, 700))],
)
def test_the_bound_follows_the_number_of_nodes(
    name: str, setting: str, values: tuple[int, int], networks: dict[tuple[str, int], SegmentationNetwork]
) -> None:
    student, teacher = networks["unet_tiny", 3], networks["res_unet", 3]
    context = Context(
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        num_outputs=3,
        regions=False,
        spacing=(1.0,) * 3,
        patch_size=student.spec.patch_size,
    )
    for value in values:
        measured, announced = _step(build_method(name, context, {f"{name}.{setting}": value}), student, teacher, False)
        assert measured <= announced, value
