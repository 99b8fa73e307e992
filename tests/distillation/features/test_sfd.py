"""SFD: the low-rank teacher against NumPy's decomposition, the low-pass against NumPy's transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.distillation.features.sfd import SFD, Decoupling, leading_directions
from medkd.distillation.features.standardize import standardize
from tests.distillation.toys import features_terms, pair_method


def part(student: int, teacher: int, rank: int = 3, **settings: object) -> tuple[SFD, Decoupling]:
    """A method and its only level."""
    method = pair_method("sfd", student, teacher, rank, **settings)
    assert isinstance(method, SFD) and isinstance(method.parts[0], Decoupling)
    return method, method.parts[0]


def low_rank(t: Tensor, part: Decoupling) -> Tensor:
    """Sample by sample with a singular value decomposition."""
    found = []
    for sample in t.double().numpy():
        u, s, v = np.linalg.svd(sample.reshape(len(sample), -1), full_matrices=False)
        k = min(part.k, len(s))
        relative = np.zeros(part.k)
        relative[:k] = s[:k] / s[0]
        share = part.lowest + (1 - part.lowest) * torch.sigmoid(part.attention(torch.from_numpy(relative).float()))
        found.append((u[:, :k] * (s[:k] * share.detach().numpy()[:k])) @ v[:k])
    return torch.from_numpy(np.stack(found)).float().view(t.shape)


@pytest.mark.parametrize(("channels", "size", "k"), [(6, (4, 4), 3), (6, (4, 4), 6), (12, (2, 4), 5), (12, (2, 4), 12)])
def test_low_rank_teacher_equals_numpys_decomposition(channels: int, size: tuple[int, ...], k: int) -> None:
    """Also where there are fewer voxels than channels, and where fewer singular values exist than are asked for."""
    _, level = part(4, channels, 2, k=k)
    torch.nn.init.normal_(level.attention[0].weight)  # type: ignore[arg-type]
    t = torch.randn(2, channels, *size)
    assert torch.allclose(level.low_rank(t), low_rank(t, level), atol=1e-4)


def test_full_rank_without_attention_is_the_teacher_itself() -> None:
    _, level = part(4, 6, 2, k=6)
    torch.nn.init.constant_(level.attention[2].bias, 100.0)  # type: ignore[arg-type]
    t = torch.randn(2, 6, 5, 5)
    assert torch.allclose(level.low_rank(t), t, atol=1e-4)


def test_leading_singular_values_are_numpys_on_either_side() -> None:
    for shape in ((2, 5, 9), (2, 9, 5)):
        x = torch.randn(shape)
        _, values = leading_directions(x, 3)
        assert np.allclose(values.numpy(), np.linalg.svd(x.numpy(), compute_uv=False)[:, :3], rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 6), (6, 7, 8), (5, 5)])
def test_low_pass_equals_numpys_transform(size: tuple[int, ...]) -> None:
    _, level = part(4, 4, len(size))
    x = torch.randn(2, 4, *size)
    spectrum = np.fft.fftn(x.double().numpy(), axes=tuple(range(2, 2 + len(size))))
    for axis, n in enumerate(size):
        keep = np.abs(np.fft.fftfreq(n)) <= 0.25
        spectrum = spectrum * keep.reshape([-1 if a == axis + 2 else 1 for a in range(len(size) + 2)])
    expected = np.fft.ifftn(spectrum, axes=tuple(range(2, 2 + len(size))))
    assert np.abs(expected.imag).max() < 1e-9
    assert np.allclose(level.low_pass(x, 0.25).detach().numpy(), expected.real, atol=1e-4)


def test_a_constant_map_passes_and_a_chessboard_does_not() -> None:
    _, level = part(4, 4, 2)
    constant = torch.ones(1, 4, 8, 8)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert torch.allclose(level.low_pass(constant, 0.25), constant, atol=1e-5)
    assert torch.allclose(level.low_pass(board.expand(1, 4, 8, 8), 0.25), torch.zeros(1, 4, 8, 8), atol=1e-5)


def test_terms_are_mean_squares_of_standardised_maps_and_in_the_paper_of_the_maps() -> None:
    s, t = torch.randn(2, 4, 6, 6), torch.randn(2, 6, 6, 6)
    for variant in ("default", "paper"):
        method, level = part(4, 6, 2, variant=variant, share=0.3, weight=2.0)
        norm = standardize if variant == "default" else (lambda x: x)
        low = level.low_pass(level.smooth(s), 0.25)
        expected = {
            "sfd_whole": 2 * 0.3 * (norm(level.whole(s)) - norm(t)).square().mean(),
            "sfd_smooth": 2 * 0.7 * (norm(low) - norm(low_rank(t, level))).square().mean(),
        }
        found = features_terms(method, s, t)
        assert all(float(found[name]) == pytest.approx(float(expected[name]), rel=1e-3) for name in expected)
        assert level.k == (3 if variant == "default" else 6)


def test_everything_trainable_is_registered_once_and_learns() -> None:
    method, _ = part(4, 6, 2)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    s, t = torch.randn(2, 4, 6, 6), torch.randn(2, 6, 6, 6)
    losses = []
    for _ in range(20):
        loss = torch.stack(list(features_terms(method, s, t).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] and any(not torch.equal(before[n], p) for n, p in method.named_parameters())
    assert {n.split(".")[2] for n in before} == {"whole", "smooth", "gain", "attention"}


def test_maps_of_changing_size_do_not_change_the_rank() -> None:
    method, level = part(4, 6, 2, k=5)
    for size in ((1, 2), (8, 8)):
        features_terms(method, torch.randn(1, 4, *size), torch.randn(1, 6, *size))
    assert level.k == 5
