"""FreeKD's second stage against the formula written out; what its masks do to a map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkd.core.features import Outputs, Target
from medkd.distillation.prompts.freekd import FreeKD, FrequencyPrompts
from medkd.distillation.prompts.haar import haar
from tests.distillation.toys import OUTPUTS, pair_method


def ready(student: int, teacher: int, rank: int, **settings: object) -> FreeKD:
    """A method whose prompts are as if learnt: far from their start."""
    method = pair_method("freekd", student, teacher, rank, **settings)
    assert isinstance(method, FreeKD)
    for buffer in method.prompts.buffers():
        buffer.normal_()
    method.prepared.fill_(True)
    return method


def slow(banks: Tensor, s: Tensor, t: Tensor, scales: int) -> list[float]:
    """Per scale the mean of ``| m (H(S) − H(T)) |``, by loops over tokens, channels and orientations."""
    found = []
    (_, of_s), (_, of_t) = haar(s, scales), haar(t, scales)
    for scale, (a, b) in enumerate(zip(of_s, of_t, strict=True)):
        mask = torch.zeros_like(b[:, 0, 0])
        for token in banks[scale + 1]:
            score = torch.zeros_like(mask)
            for channel in range(b.shape[1]):
                for orientation in range(b.shape[2]):
                    score += token[channel] * b[:, channel, orientation]
            mask += torch.sigmoid(score) / len(banks[scale + 1])
        total = sum(float((mask * (a - b)[:, c, o]).abs().sum()) for c in range(b.shape[1]) for o in range(b.shape[2]))
        found.append(total / b.numel())
    return found


@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize(("size", "scales"), [((9, 12), 3), ((5, 6), 2), ((4, 6, 8), 2), ((1, 3, 3), 1)])
@torch.no_grad()
def test_equals_the_formula_written_out(size: tuple[int, ...], scales: int, variant: str) -> None:
    """The paper's variant has three scales for small maps too."""
    scales = 3 if variant == "paper" else scales
    method = ready(4, 4, len(size), variant=variant, weight=2.0, tokens=2)
    s, t, logits = torch.randn(2, 4, *size), 3 * torch.randn(2, 4, *size), torch.zeros(2, OUTPUTS, *size)
    found = method(
        Outputs(logits=logits, features={"s": s}), Outputs(logits=logits, features={"t": t}), Target(logits)
    )["freekd"]
    assert isinstance(method.prompts[0], FrequencyPrompts)
    each = slow(method.prompts[0].banks, method.adapters[0](s), t, scales)
    wanted = sum(each) if variant == "paper" else sum(each) / len(each) / float(t.std(unbiased=False))
    assert float(found) == pytest.approx(2 * wanted, rel=1e-3)


def test_a_constant_difference_teaches_nothing_except_at_the_border_of_odd_maps() -> None:
    method = ready(4, 4, 2)
    t, logits = torch.randn(2, 4, 8, 8), torch.zeros(2, OUTPUTS, 8, 8)
    assert (
        float(
            method(
                Outputs(logits=logits, features={"s": t + 5}), Outputs(logits=logits, features={"t": t}), Target(logits)
            )["freekd"]
        )
        < 1e-5
    )


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (4, 5, 6)])
def test_open_masks_give_the_map_back_and_shut_ones_nothing(size: tuple[int, ...]) -> None:
    prompts, x = FrequencyPrompts(1, 2, 3), torch.rand(1, 1, *size) + 0.1
    prompts.banks.zero_()
    half, overlap = prompts(x)
    assert torch.allclose(half, x / 2, atol=1e-5) and float(overlap) == pytest.approx(1.0)
    prompts.banks[0] = -1e4  # the low band of a positive map
    assert not torch.allclose(prompts(x)[0], half, atol=1e-2)
