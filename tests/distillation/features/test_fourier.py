"""FourierKD against the formula with NumPy's transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.core.features import Progress, Target
from medkd.distillation.features.fourier import FourierKD
from tests.distillation.toys import features_terms, pair_method


def spectrum(x: Tensor) -> np.ndarray:
    """Orthonormal transform of every channel with NumPy, all of it."""
    return np.stack([[np.fft.fftn(c, norm="ortho") for c in n] for n in x.detach().double().numpy()])


def mirrored(half: np.ndarray, length: int) -> np.ndarray:
    """What is given for the half of the last axis, for all of it: opposite frequencies have the same."""
    columns = [half[..., k] for k in range(half.shape[-1])]
    axes = tuple(range(2, half.ndim - 1))
    for k in range(half.shape[-1], length):
        flipped = np.flip(half[..., length - k], axes)  # −f of 0, 1, 2, … is 0, −1, −2, …
        columns.append(np.roll(flipped, 1, axes))
    return np.stack(columns, -1)


def standard(x: np.ndarray) -> np.ndarray:
    """Per channel over batch and frequencies."""
    axes = (0, *range(2, x.ndim))
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def slow(method: FourierKD, s: Tensor, t: Tensor, noise: np.ndarray) -> float:
    """The loss without its weight, from amplitudes and phases."""
    fusion = method.fusions[0]
    adapted = fusion.adapt(s)  # type: ignore[operator]
    compared = s if method.paper and s.shape[1] == t.shape[1] else adapted
    f_s, f_t = spectrum(adapted), spectrum(t)
    mixed = []
    for layer, waves in ((fusion.of_student, f_s), (fusion.of_teacher, f_t)):
        mixed.append(layer(torch.from_numpy(np.abs(waves)).float()).detach().numpy())  # type: ignore[operator]
    share = 1 / (1 + np.exp(-fusion.sigma.detach().numpy()))  # type: ignore[operator]
    amplitude = (share * mixed[0] + (1 - share) * mixed[1]) * noise
    student = amplitude * np.exp(1j * np.angle(f_s))
    total = 0.0
    for n in range(len(s)):
        for c in range(t.shape[1]):
            a, b = compared[n, c].detach().flatten(), t[n, c].flatten()
            weight = 1 - float(a @ b / (a.norm() * b.norm()))
            for coordinate in range(3):
                pair = []
                for z in (student, f_t):
                    square = np.abs(z) ** 2
                    maps = (2 * z.real / (square + 1), 2 * z.imag / (square + 1), (square - 1) / (square + 1))
                    pair.append(standard(maps[coordinate])[n, c])
                total += weight * ((pair[0] - pair[1]) ** 2).mean() / 2
    return total / (len(s) * t.shape[1])


@pytest.mark.parametrize("size", [(6, 5), (4, 5, 6)])
@pytest.mark.parametrize(("variant", "weight"), [("default", 0.2), ("paper", 41.0)])
@pytest.mark.parametrize("channels", [3, 4])
def test_equals_the_formula_written_out(size: tuple[int, ...], variant: str, weight: float, channels: int) -> None:
    """The paper weighs channels by the student's own map, which only an equal number of them allows."""
    s, t = torch.randn(2, channels, *size), torch.randn(2, 4, *size)
    method = pair_method("fourier", channels, 4, len(size), variant=variant)
    assert isinstance(method, FourierKD)
    torch.nn.init.normal_(method.fusions[0].sigma)  # type: ignore[arg-type]
    target = Target(torch.zeros(2, 1, *size, dtype=torch.long), None, Progress(step=5))
    noise = torch.rand(2, 4, *size[:-1], size[-1] // 2 + 1, generator=torch.Generator().manual_seed(5000)).numpy()
    assert float(features_terms(method, s, t, target)["fourier"]) == pytest.approx(
        weight * slow(method, s, t, mirrored(noise, size[-1])), rel=1e-3
    )


def test_noise_follows_the_step_and_nothing_else() -> None:
    s, t = torch.randn(1, 3, 6, 6), torch.randn(1, 4, 6, 6)
    method = pair_method("fourier", 3, 4, 2)

    def at(step: int) -> float:
        return float(
            features_terms(method, s, t, Target(torch.zeros(1, 1, 6, 6, dtype=torch.long), None, Progress(step=step)))[
                "fourier"
            ]
        )

    first = at(3)
    torch.manual_seed(99)
    assert at(3) == first and at(4) != first


def test_channel_attention_has_gradient_in_the_paper_only() -> None:
    """Seen in a map without phase or amplitude to move: the gradient differs between the variants."""
    s, t = torch.randn(1, 3, 6, 6), torch.randn(1, 3, 6, 6)
    grads = []
    for variant in ("default", "paper"):
        torch.manual_seed(0)
        method = pair_method("fourier", 3, 3, 2, variant=variant, weight=1.0)
        x = s.clone().requires_grad_()
        features_terms(method, x, t)["fourier"].backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert not torch.allclose(grads[0], grads[1], rtol=1e-2)


def test_maps_without_amplitude_give_finite_gradient() -> None:
    s = torch.zeros(1, 3, 6, 6, requires_grad=True)
    features_terms(pair_method("fourier", 3, 4, 2), s, torch.randn(1, 4, 6, 6))["fourier"].backward()
    assert s.grad is not None and torch.isfinite(s.grad).all()
