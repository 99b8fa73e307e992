"""ReCo-KD against its formula written voxel by voxel; the authors' own numbers are among the golden ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.core.errors import MethodError
from medkd.core.features import Outputs, Tap, Target
from medkd.distillation import Context, Method, build_method
from medkd.distillation.features.recokd import stage_shares
from tests.distillation.toys import features_terms, pair_method


def softmax(values: list[float], temperature: float) -> list[float]:
    """Softmax of numbers, one by one."""
    shifted = [exp((value - max(values)) / temperature) for value in values]
    return [value / sum(shifted) for value in shifted]


def active(sample: np.ndarray, temperature: float) -> tuple[list[float], list[float]]:
    """Where a map of one sample ``(C, V)`` is active, and in which channels; each with mean 1."""
    channels, places = sample.shape
    of_places = softmax([float(np.mean(np.abs(sample[:, v]))) for v in range(places)], temperature)
    of_channels = softmax([float(np.mean(np.abs(sample[c]))) for c in range(channels)], temperature)
    return [places * p for p in of_places], [channels * p for p in of_channels]


def region_error(s: np.ndarray, t: np.ndarray, members: list[list[set[int]]], temperature: float, paper: bool) -> float:
    """The error over regions: per sample the sets of voxels that count as one structure each; a voxel of several
    counts for the smallest. The paper's is no mean of what it weights by the teacher's activity.
    """
    total = weight = 0.0
    for sample, groups in enumerate(members):
        of_places, of_channels = active(t[sample], temperature)
        for v in range(s.shape[2]):
            own = max((1 / len(group) for group in groups if v in group), default=0.0)
            squares = [of_channels[c] * (s[sample, c, v] - t[sample, c, v]) ** 2 for c in range(s.shape[1])]
            total += own * of_places[v] * sum(squares) / s.shape[1]
            weight += own if paper else own * of_places[v]
    return total / weight if weight else 0.0


def slowly(
    s: np.ndarray, t: np.ndarray, inside: list[list[set[int]]], outside: list[set[int]], paper: bool
) -> tuple[float, float, float]:
    """Regions, attention and (with context blocks that say nothing) context of maps ``(B, C, V)``."""
    temperature = 0.5
    regions = region_error(s, t, inside, temperature, paper)
    regions += region_error(s, t, [[group] for group in outside], temperature, paper)
    of_places, of_channels = [], []
    for sample in range(len(s)):
        own, theirs = active(s[sample], temperature), active(t[sample], temperature)
        of_places += [abs(a - b) for a, b in zip(own[0], theirs[0], strict=True)]
        of_channels += [abs(a - b) for a, b in zip(own[1], theirs[1], strict=True)]
    return regions, float(np.mean(of_places) + np.mean(of_channels)), float(np.mean((s - t) ** 2))


def groups_of(labels: Tensor, valid: Tensor, regions: bool) -> tuple[list[list[set[int]]], list[set[int]]]:
    """Per sample the voxels of every structure, and those of the background."""
    inside, outside = [], []
    for sample, known in zip(labels.flatten(2).tolist(), valid.flatten(1).tolist(), strict=True):
        places = [v for v, yes in enumerate(known) if yes]
        rows = sample if regions else [[int(value == k) for value in sample[0]] for k in (1, 2)]
        own = [{v for v in places if row[v]} for row in rows]
        inside.append(own)
        outside.append(set(places).difference(*own))
    return inside, outside


def drawn(rank: int, regions: bool) -> tuple[Tensor, Tensor, Target, Tensor]:
    """Maps of 4 channels, labels, the same as a target of twice the size per axis, and which voxels are annotated."""
    torch.manual_seed(rank)
    size = (3, 4, 2)[:rank]
    s, t = torch.randn(3, 4, *size), 3 * torch.randn(3, 4, *size) + 1
    labels = (torch.rand(3, 3, *size) > 0.6).float() if regions else torch.randint(0, 3, (3, 1, *size))
    labels[0] = 0  # a sample without any structure
    valid = torch.rand(3, 1, *size) > 0.2
    fine = [labels.double(), valid.double()]
    for axis in range(2, rank + 2):
        fine = [value.repeat_interleave(2, axis) for value in fine]
    return s, t, Target(fine[0].to(labels.dtype), fine[1] > 0), torch.cat([labels.double(), valid.double()], 1)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("variant", ["default", "paper"])
def test_every_term_is_its_formula_voxel_by_voxel(variant: str, rank: int, regions: bool) -> None:
    s, t, target, known = drawn(rank, regions)
    method = pair_method("recokd", 4, 4, rank, regions, variant=variant, weight=2.0, attention_weight=3.0)
    found = [float(value.detach()) for value in features_terms(method, s, t, target).values()]
    scale = float(t.std(unbiased=False)) if variant == "default" else 1.0
    inside, outside = groups_of(known[:, :-1], known[:, -1], regions)
    own, theirs = (value.double().flatten(2).numpy() / scale for value in (s, t))
    expected = slowly(own, theirs, inside, outside, variant == "paper")
    assert found == pytest.approx([2 * expected[0], 6 * expected[1], 2 * expected[2]], rel=1e-4)


def test_context_is_the_map_and_what_the_block_makes_of_its_weighted_mean() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 4, 2, 3), torch.randn(2, 4, 2, 3)
    method = pair_method("recokd", 4, 4, 2, variant="paper", weight=1.0)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    weights = {name: value.detach().double().numpy() for name, value in method.named_parameters()}
    sides = []
    for network, maps in (("of_student", s), ("of_teacher", t)):
        own = {
            name.removeprefix(f"{network}.0."): value.squeeze() for name, value in weights.items() if network in name
        }
        for sample in maps.double().flatten(2).numpy():
            shares = softmax([float(own["look.weight"] @ sample[:, v]) for v in range(6)], 1.0)
            mean = sum(share * sample[:, v] for v, share in enumerate(shares))
            hidden = own["add.0.weight"] @ mean + own["add.0.bias"]
            hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5) * own["add.1.weight"] + own["add.1.bias"]
            said = own["add.3.weight"] @ np.maximum(hidden, 0) + own["add.3.bias"]
            sides.append(sample + said[:, None])
    expected = float(np.mean((np.stack(sides[:2]) - np.stack(sides[2:])) ** 2))
    assert float(features_terms(method, s, t)["recokd_context"].detach()) == pytest.approx(expected, rel=1e-4)


def test_an_error_on_a_small_structure_costs_as_much_as_on_a_large_one() -> None:
    labels = torch.zeros(1, 1, 6, 8, dtype=torch.long)
    labels[..., :5, :] = 1
    labels[..., 0, :4] = 2
    t = 3.0 * (-1) ** torch.arange(8).expand(1, 4, 6, 8)  # equally active everywhere
    for variant in ("default", "paper"):
        costs = []
        for structure in (1, 2):
            s = t + (labels == structure)
            method = pair_method("recokd", 4, 4, 2, variant=variant, weight=1.0)
            costs.append(float(features_terms(method, s, t, Target(labels))["recokd_regions"].detach()))
        assert costs == pytest.approx([0.5 / 9 if variant == "default" else 0.5] * 2, rel=1e-4)


def test_an_active_place_does_not_blow_up_the_default() -> None:
    t = torch.randn(1, 4, 16, 16)
    t[..., 0, 0] = 30.0
    labels = torch.zeros(1, 1, 16, 16, dtype=torch.long)
    labels[..., 0, 0] = 1
    found = []
    for variant in ("default", "paper"):
        method = pair_method("recokd", 4, 4, 2, variant=variant, weight=1.0)
        terms = features_terms(method, 0.9 * t, t, Target(labels))
        found.append(float(terms["recokd_regions"].detach()))
    largest = float((0.1 * t).square().max() / t.var(unbiased=False))
    assert found[0] < 2 * largest
    assert found[1] > 100 * float((0.1 * t).square().max())


def test_places_without_annotation_belong_to_no_region() -> None:
    s, t = torch.randn(2, 4, 4, 6), torch.randn(2, 4, 4, 6)
    labels, valid = torch.randint(0, 3, (2, 1, 4, 6)), torch.rand(2, 1, 4, 6) > 0.3
    method = pair_method("recokd", 4, 4, 2)
    one = features_terms(method, s, t, Target(labels, valid))
    other = features_terms(method, s, t, Target(torch.where(valid, labels, (labels + 1) % 3), valid))
    assert one == other
    assert (
        float(features_terms(method, s, t, Target(labels, torch.zeros_like(valid)))["recokd_regions"].detach()) == 0.0
    )


def staged(strides: Sequence[tuple[int, ...]], **settings: object) -> Method:
    """The method between encoders with stages of these strides, and a bottleneck."""
    taps = [
        Tap(name=f"enc{i}", channels=4, stride=stride, module="", stage="encoder") for i, stride in enumerate(strides)
    ]
    taps.append(
        Tap(name="bottleneck", channels=4, stride=tuple(2 * n for n in strides[-1]), module="", stage="bottleneck")
    )
    about = Context(
        student_taps=tuple(taps),
        teacher_taps=tuple(taps),
        num_outputs=3,
        regions=False,
        spacing=(1.0,) * 3,
        patch_size=(8, 8, 8),
    )
    return build_method("recokd", about, {f"recokd.{name}": value for name, value in settings.items()})


def test_stages_count_by_their_voxels_and_the_bottleneck_does_not() -> None:
    halved = [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    ratio = 2 ** (-3 * 0.4)
    expected = [ratio**k / (1 + ratio + ratio**2) for k in range(3)]
    for variant in ("default", "paper"):
        method = staged(halved, variant=variant)
        assert method.needs().student == ("enc0", "enc1", "enc2")
        assert stage_shares(method.pairs, 0.4, variant == "paper") == pytest.approx(expected)  # type: ignore[arg-type]
    flat = stage_shares(staged([(1, 1, 1), (1, 2, 2)]).pairs, 0.4, False)  # type: ignore[arg-type]
    assert flat[1] / flat[0] == pytest.approx(2 ** (-2 * 0.4))


def test_the_loss_is_the_weighted_sum_of_its_stages() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 1, 8, 8, 8))
    ours, theirs = ({f"enc{i}": torch.randn(2, 4, *(8 >> i,) * 3) for i in range(2)} for _ in range(2))
    logits = torch.zeros(2, 3, 8, 8, 8)
    method = staged([(1, 1, 1), (2, 2, 2)], weight=1.0)
    together = method(Outputs(logits=logits, features=ours), Outputs(logits=logits, features=theirs), Target(labels))
    shares = stage_shares(method.pairs, 0.4, False)  # type: ignore[arg-type]
    alone = []
    for i, share in enumerate(shares):
        one = pair_method("recokd", 4, 4, weight=1.0)
        terms = features_terms(one, ours[f"enc{i}"], theirs[f"enc{i}"], Target(labels))
        alone.append({name: share * float(value.detach()) for name, value in terms.items()})
    for name, value in together.items():
        assert float(value.detach()) == pytest.approx(alone[0][name] + alone[1][name], rel=1e-5)


@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_maps_of_one_voxel_and_of_few_channels_teach_too(channels: int, variant: str) -> None:
    s = torch.randn(1, 3, 1, 1, 1, requires_grad=True)
    t = torch.randn(1, channels, 1, 1, 1)
    method = pair_method("recokd", 3, channels, variant=variant)
    terms = features_terms(method, s, t, Target(torch.ones(1, 1, 1, 1, 1, dtype=torch.long)))
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert s.grad is not None and bool(torch.isfinite(s.grad).all()) and float(s.grad.abs().max()) > 0
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in method.parameters())


def test_the_scale_of_the_teacher_does_not_matter_by_default() -> None:
    s, t = torch.randn(2, 4, 4, 6), torch.randn(2, 4, 4, 6)
    target = Target(torch.randint(0, 3, (2, 1, 4, 6)))
    method = pair_method("recokd", 4, 4, 2)
    one, other = (
        [float(v.detach()) for v in features_terms(method, f * s, f * t, target).values()] for f in (1.0, 50.0)
    )
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [("temperature", 0.0, "above 0"), ("alpha", -0.1, "at least 0"), ("context_weight", -1.0, "at least 0")],
)
def test_parameters_out_of_range_are_refused(setting: str, value: float, sentence: str) -> None:
    with pytest.raises(MethodError, match=rf"recokd\.{setting} .*{sentence}"):
        pair_method("recokd", 3, 3, **{setting: value})  # type: ignore[arg-type]
