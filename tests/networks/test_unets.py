"""res_unet and unet_tiny: MONAI's U-Net in the two sizes of the ACF-BCKD paper."""

from __future__ import annotations

import pytest
import torch

from medkd.core.errors import RunError
from medkd.core.features import pair_by_stride
from medkd.networks import build_network
from tests.networks.checks import check_network, image, parameters_in_millions, small

NAMES = ("res_unet", "unet_tiny")


@pytest.mark.parametrize(
    ("name", "channels", "outputs", "expected"),
    [
        ("res_unet", 1, 14, 18.992),
        ("res_unet", 1, 17, 19.005),
        ("res_unet", 4, 3, 18.959),
        ("unet_tiny", 1, 14, 1.961),
        ("unet_tiny", 1, 17, 1.966),
        ("unet_tiny", 4, 3, 1.945),
    ],
)
def test_parameter_counts_are_the_cards(name: str, channels: int, outputs: int, expected: float) -> None:
    assert parameters_in_millions(name, channels, outputs) == expected


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_taps_gradients_and_continuation(name: str, rank: int) -> None:
    check_network(build_network(small(name, rank, channels=2)))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_unrolled_stages_equal_monais_recursion(name: str, rank: int) -> None:
    net = build_network(small(name, rank))
    x = image(net)
    assert torch.equal(net(x), net.net(x))


def test_student_and_teacher_meet_at_the_same_strides() -> None:
    student, teacher = (build_network(small(n, 3)).taps for n in ("unet_tiny", "res_unet"))
    pairs = [(s.name, t.name) for s, t in pair_by_stride(student, teacher, ("decoder",))]
    assert pairs == [("dec1", "dec1"), ("dec2", "dec2")]
    raw = next(t for t in student if t.name == "dec1.conv")
    assert raw.raw and raw.channels == 32 and raw.stride == (2, 2, 2)
    corrected = next(t for t in teacher if t.name == "dec1")
    assert corrected.correction and corrected.channels == 64 and corrected.stride == (2, 2, 2)


def test_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RunError, match="multiples of 8"):
        build_network(small("res_unet", 3, patch=20))


def test_continuing_without_a_remembered_pass_or_from_the_encoder_is_refused() -> None:
    net = build_network(small("unet_tiny", 2))
    net(image(net))
    with pytest.raises(RunError, match="remember"):
        net.forward_from("dec1", torch.zeros(2, 32, 8, 8))
    with pytest.raises(RunError, match="enc0"):
        net.forward_from("enc0", torch.zeros(2, 32, 8, 8))
