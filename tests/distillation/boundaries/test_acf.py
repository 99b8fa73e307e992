"""ACF against the formula written out with full-size tensors, and the card's numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Target
from medkd.core.run import NetworkSpec
from medkd.distillation import Context, build_method
from medkd.distillation.boundaries.acf import ACF, AttentionConnector
from medkd.distillation.features.attention_map import attention_distance
from medkd.networks import SegmentationNetwork
from medkd.networks.reference import build_weightless
from tests.distillation.toys import ToyNetwork, batch, context, step, trained


def network(name: str, rank: int = 3) -> SegmentationNetwork:
    """A network without memory."""
    return build_weightless(NetworkSpec(name=name, in_channels=1, num_outputs=14, patch_size=(32,) * rank))


def between(student: str, teacher: str, rank: int = 3) -> Context:
    """The context of two real networks."""
    return Context(
        student_taps=network(student, rank).taps,
        teacher_taps=network(teacher, rank).taps,
        num_outputs=14,
        regions=False,
        spacing=(1.0,) * rank,
        patch_size=(32,) * rank,
    )


def unit_map(feature: Tensor) -> Tensor:
    """``q`` of the card, sample by sample."""
    maps = [f.pow(2).mean(0).flatten() for f in feature]
    return torch.stack([m / max(float(m.norm()), 1e-12) for m in maps])


@torch.no_grad()
def slow(method: ACF, x: Tensor, feature: Tensor, correction: Tensor) -> tuple[float, float]:
    """Both of the paper's terms, every tensor formed as the card writes it."""
    c = method.connector
    outer = []
    for sample in x:
        pooled = sample.flatten(1).mean(1)
        m_c = ((c.excite(F.relu(c.squeeze(pooled))) + 3) / 6).clamp(0, 1)
        m_s = ((c.spatial(sample.mean(0)[None, None]) + 3) / 6).clamp(0, 1)[0, 0]
        outer.append(torch.stack([gate * m_s for gate in m_c]))
    attention = torch.stack(outer)
    corrected = F.interpolate(x * attention, size=feature.shape[2:], mode="nearest")
    mixed = torch.einsum("oc,nc...->no...", c.mix.weight, attention) + c.mix.bias.view(1, -1, *(1,) * (x.ndim - 2))
    corrections = F.interpolate(mixed, size=feature.shape[2:], mode="nearest")
    pairs = ((corrected, feature), (corrections, correction))
    found = [25000 * (unit_map(s) - unit_map(t)).pow(2).mean() for s, t in pairs]
    return float(found[0]), float(found[1])


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("size", [8, 4, 12])
def test_equals_the_formula_written_out(rank: int, size: int) -> None:
    student, teacher = ToyNetwork(rank), ToyNetwork(rank, 6)
    method = build_method("acf", context(student, teacher, rank), {"acf.variant": "paper"})
    assert isinstance(method, ACF)
    for p in method.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, feature, correction = (torch.randn(2, c, *(n,) * rank) for c, n in ((4, size), (6, 8), (6, 8)))
    names = method.student_tap.name, method.teacher_tap.name
    outputs = (
        Outputs(logits=x, features={names[0]: x}),
        Outputs(logits=x, features={names[1]: feature}, corrections={names[1]: correction}),
    )
    terms = method(*outputs, Target(torch.zeros(1)))
    expected = slow(method, x, feature, correction)
    assert (float(terms["acf_feature"]), float(terms["acf_correction"])) == pytest.approx(expected, rel=1e-4)


def test_default_is_the_paper_at_its_feature_size() -> None:
    """``25000 · mean`` over 48³ voxels is ``0.226 · sum``."""
    default, paper = (
        build_method("acf", between("unet_tiny", "res_unet"), {"acf.variant": v}) for v in ("default", "paper")
    )
    assert default.weight == pytest.approx(paper.weight / 48**3) == pytest.approx(0.226, abs=1e-3)  # type: ignore[operator]


@pytest.mark.parametrize(("channels", "expected"), [(32, 1952), (16, 896)])
def test_connector_has_the_papers_parameters(channels: int, expected: int) -> None:
    assert sum(p.numel() for p in AttentionConnector(channels, 3).parameters()) == expected


def test_connector_of_the_papers_pair_has_1952_parameters() -> None:
    assert sum(p.numel() for p in build_method("acf", between("unet_tiny", "res_unet")).parameters()) == 1952


def test_distance_lies_between_zero_and_two_for_any_size() -> None:
    for size in (2, 8, 16):
        far = torch.zeros(2, size, size), torch.zeros(2, size, size)
        far[0][:, 0, 0] = far[1][:, -1, -1] = 3.0
        assert float(attention_distance(*far)) == pytest.approx(2.0)
        noise = torch.rand(2, size, size), torch.rand(2, size, size)
        assert 0 < float(attention_distance(*noise)) < 2
        assert float(attention_distance(noise[0], 7 * noise[0])) < 1e-10


def test_without_biases_the_correction_shows_the_spatial_gate_only() -> None:
    connector = AttentionConnector(8, 3)
    torch.nn.init.zeros_(connector.mix.bias)
    x = torch.randn(2, 8, 6, 6, 6)
    _, spatial = connector.gates(x)
    _, correction = connector(x)
    assert float(attention_distance(correction, spatial.square())) < 1e-10


def test_maps_without_energy_give_finite_gradient() -> None:
    x = torch.zeros(1, 4, 4, 4, requires_grad=True)
    attention_distance(x.square().mean(1), torch.rand(1, 4, 4)).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_taps_are_paired_by_stride_and_in_the_paper_the_finest_are_taken() -> None:
    def chosen(student: str, teacher: str, **settings: object) -> tuple[str, str]:
        method = build_method("acf", between(student, teacher), {f"acf.{k}": v for k, v in settings.items()})
        assert isinstance(method, ACF)
        return method.student_tap.name, method.teacher_tap.name

    assert chosen("unet_tiny", "res_unet") == ("dec1", "dec1")
    assert chosen("unet_tiny", "segresnet") == ("dec1", "dec1")
    assert chosen("unet_tiny", "res_unet", variant="paper") == ("dec1.conv", "dec1")
    assert chosen("unet_tiny", "segresnet", variant="paper") == ("dec1.conv", "dec0")
    assert chosen("unet_tiny", "res_unet", student_tap="dec2") == ("dec2", "dec2")
    assert chosen("unet_tiny", "res_unet", student_tap="enc0", teacher_tap="dec1") == ("enc0", "dec1")


def test_a_teacher_without_block_corrections_is_refused() -> None:
    with pytest.raises(MethodError, match="no tap of this teacher"):
        build_method("acf", between("unet_tiny", "unet_tiny"))
    with pytest.raises(MethodError, match=r"enc0 has none; taps that have one: dec"):
        build_method("acf", between("unet_tiny", "res_unet"), {"acf.teacher_tap": "enc0"})
    with pytest.raises(MethodError, match=r"there is no tap 'dec9'.*Did you mean"):
        build_method("acf", between("unet_tiny", "res_unet"), {"acf.student_tap": "dec9"})


def test_the_teachers_correction_is_its_residual_branch_and_the_legacy_switch_takes_the_output() -> None:
    student, teacher = ToyNetwork(3), trained(3, False)
    image, target = batch(3)
    about = context(student, teacher, 3)
    found = {}
    for alias in (False, True):
        torch.manual_seed(4)
        found[alias] = step(build_method("acf", about, {"acf.legacy_alias": alias}), student, teacher, image, target)
    assert torch.equal(found[False]["acf_feature"], found[True]["acf_feature"])
    assert not torch.isclose(found[False]["acf_correction"], found[True]["acf_correction"], rtol=1e-3)
