"""Starting a narrow U-Net from a wide one: against numpy's least squares, torch's own convolutions, and what it is
for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.networks import SegmentationNetwork, build_network
from medkd.networks import inheritance as inh
from medkd.networks.inheritance import inherit, layers
from medkd.networks.inheritance_twins import counterparts
from medkd.networks.ridge import RIDGE, Regression, at
from tests.networks.checks import architecture, small

# a residual block needs no second convolution behind it; two stages of one width share their channels
PLANS: dict[str, dict[str, Any]] = {
    "plain_unet": {},
    "resenc_unet_m": {"blocks_encoder": (2, 1, 3), "blocks_decoder": (1, 1)},
    "resenc_unet_l": {"blocks_encoder": (2, 1, 2), "blocks_decoder": (1, 1), "features_per_stage": (8, 16, 16)},
}


def _network(rank: int, divisor: int = 1, seed: int = 0, name: str = "plain_unet") -> SegmentationNetwork:
    torch.manual_seed(seed)
    return build_network(
        small(name, rank, architecture=replace(architecture(rank), **PLANS[name]), width_divisor=divisor)
    )


def _scene(rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """A noisy bright and a noisy dark ball, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.arange(16.0),) * rank, indexing="ij")
    labels = torch.zeros((16,) * rank, dtype=torch.long)
    for value in (1, 2):
        centre = 4 + 8 * torch.rand(rank, generator=generator)
        labels[sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < 9] = value
    image = torch.tensor([0.0, 2.0, -2.0])[labels] + 0.3 * torch.randn(labels.shape, generator=generator)
    return image[None, None], labels[None]


def _trained(rank: int, seed: int = 0, name: str = "plain_unet") -> SegmentationNetwork:
    """A teacher that can do the task."""
    net = _network(rank, seed=seed, name=name)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(40):
        image, labels = _scene(rank, 100 + step)
        optimizer.zero_grad()
        F.cross_entropy(net(image), labels, weight=torch.tensor([0.2, 1, 1])).backward()
        optimizer.step()
    return net.eval()


def _images(rank: int, count: int = 4) -> list[Tensor]:
    return [_scene(rank, seed)[0] for seed in range(count)]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("rank", [2, 3])
def test_a_student_of_the_teachers_width_becomes_the_teacher(rank: int, name: str) -> None:
    teacher, student = _trained(rank, name=name), _network(rank, seed=1, name=name)
    new = _scene(rank, 50)[0]
    before = (student(new) - teacher(new)).abs().max()
    fits = inherit(student, teacher, _images(rank))
    assert [f.layer for f in fits] == [layer.conv for layer in layers(student)]
    assert all(f.explained > 0.999 for f in fits)
    assert (student(new) - teacher(new)).abs().max() < 1e-3 < before


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet_m"])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_narrow_student_does_what_its_own_teacher_does(rank: int, name: str) -> None:
    teachers = [_trained(rank, seed, name) for seed in (0, 5)]
    kept = {name: value.clone() for name, value in teachers[0].state_dict().items()}
    new = torch.cat([_scene(rank, seed)[0] for seed in range(50, 54)])
    students = [_network(rank, 2, seed=1, name=name) for _ in range(3)]
    inherit(students[0], teachers[0], _images(rank, 8))
    inherit(students[1], teachers[1], _images(rank, 8))
    with torch.no_grad():
        answer = teachers[0](new)
        error = [float((student(new) - answer).square().mean() / answer.var()) for student in students]
    assert error[0] < 0.4 and error[0] < 0.4 * min(error[1:])  # its own teacher, another one, none
    assert all(torch.equal(value, kept[name]) for name, value in teachers[0].state_dict().items())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for net in (*students, *teachers) for module in net.modules()
    )


def test_the_images_and_the_seed_alone_decide() -> None:
    teacher = _trained(2)
    found = []
    for start in (1, 2):
        student = _network(2, 2, seed=start)  # its first weights do not matter
        inherit(student, teacher, _images(2), seed=3)
        found.append(student.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_the_problems_are_those_of_torchs_convolutions(rank: int, transposed: bool) -> None:
    torch.manual_seed(0)
    kernel = (1, 2, 2)[-rank:] if transposed else (1, 3, 3)[-rank:]
    stride = kernel if transposed else (1, 2, 2)[-rank:]
    kinds: dict[tuple[int, bool], type[nn.Module]] = {
        (2, False): nn.Conv2d, (3, False): nn.Conv3d, (2, True): nn.ConvTranspose2d, (3, True): nn.ConvTranspose3d,
    }  # fmt: skip
    more = {} if transposed else {"padding": [k // 2 for k in kernel]}
    conv = kinds[rank, transposed](3, 5, kernel, stride=stride, **more)
    given = torch.randn(3, *(6,) * rank)
    output = conv(given[None])[0].detach()
    places = torch.cartesian_prod(*(torch.arange(n) for n in output.shape[1:]))
    target = at(output, places).double()
    seen = inh._Seen(places, target, 1.0)
    weight = conv.weight.detach().double()
    weight = weight.transpose(0, 1) if transposed else weight
    pairs = inh._of_transposed if transposed else inh._of_kernel
    count = 0
    for place, x, y in pairs(conv, seen, given):
        expected = x @ weight[(..., *place)].flatten(1).T + conv.bias.detach()
        torch.testing.assert_close(expected, y, atol=1e-5, rtol=0)
        count += len(y)
    assert count == len(places)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("inputs", [4, 70])  # fewer than rows, and more
def test_the_regression_equals_numpys_on_a_stacked_system(inputs: int, intercept: bool) -> None:
    rng = np.random.default_rng(0)
    x, y, prior = rng.normal(2, 1, (60, inputs)), rng.normal(-1, 3, (60, 2)), rng.normal(size=(inputs, 2))
    problem = Regression(torch.from_numpy(prior), intercept=intercept)
    for part in (slice(0, 13), slice(13, 60)):
        problem.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    found = problem.solve()
    mean_x, mean_y = (values.mean(0) * intercept for values in (x, y))
    centred, wanted = x - mean_x, y - mean_y
    pull = np.sqrt(
        RIDGE * np.square(centred).sum() / inputs + 1e-9
    )  # the ridge as further equations pull · w = pull · prior
    system, right = np.vstack([centred, pull * np.eye(inputs)]), np.vstack([wanted, pull * prior])
    expected = np.linalg.lstsq(system, right, rcond=None)[0]
    np.testing.assert_allclose(found.weights.numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(found.bias.numpy(), mean_y - mean_x @ expected, atol=1e-10)
    np.testing.assert_allclose(found.mean.numpy(), mean_y, atol=1e-10)
    given = centred @ expected
    np.testing.assert_allclose(
        torch.stack([found.fitted, found.residual, found.variance]).numpy(),
        [np.square(part).mean(0) for part in (given, wanted - given, wanted)],
        atol=1e-10,
    )


def test_a_channel_that_others_span_is_not_kept() -> None:
    teacher, student = _trained(2), _network(2, 2)
    first = teacher.net.encoder.stages[0][0].convs[0]
    with torch.no_grad():  # of eight channels the last four repeat the first four
        first.conv.weight[4:], first.conv.bias[4:] = first.conv.weight[:4], first.conv.bias[:4]
        first.norm.weight[4:], first.norm.bias[4:] = first.norm.weight[:4], first.norm.bias[:4]
    order = layers(student)
    with torch.no_grad():
        kept = _kept(student, teacher)
    assert sorted(int(c) % 4 for c in kept[order[0].conv]) == [0, 1, 2, 3]
    assert all(kept[layer.conv].tolist() == [0, 1, 2] for layer in order if layer.is_head)


def _kept(student: Any, teacher: Any) -> dict[str, Tensor]:
    """The channels that a student keeps, by layer of the teacher."""
    every = [layer.conv for layer in layers(teacher)]
    return inh._choose(student, teacher, counterparts(student, teacher), inh._watch(teacher, every, _images(2), 0)[1])


def _repeat(path: str, net: SegmentationNetwork, half: int) -> None:
    """Let the last channels of a convolution and its norm repeat the first ones."""
    block = net.net.get_submodule(path)
    for value in (block.conv.weight, block.conv.bias, block.norm.weight, block.norm.bias):
        if value is not None:
            value[half:] = value[:half]


def test_blocks_that_are_added_up_keep_the_same_channels() -> None:
    teacher, student = _trained(2, name="resenc_unet_m"), _network(2, 2, name="resenc_unet_m")
    stage = "encoder.stages.2.blocks"
    ends = [f"{stage}.{path}" for path in ("0.skip.1", "0.conv2", "1.conv2", "2.conv2")]
    with torch.no_grad():
        for path in ends:
            _repeat(path, teacher, 12)
        kept = _kept(student, teacher)
    assert sorted(int(c) % 12 for c in kept[f"{ends[0]}.conv"]) == list(range(12))
    assert all(torch.equal(kept[f"{path}.conv"], kept[f"{ends[0]}.conv"]) for path in ends)
    first = [kept[f"{stage}.{j}.conv1.conv"].tolist() for j in range(3)]
    assert len({tuple(channels) for channels in first}) == 3


def _first_group(student: SegmentationNetwork, teacher: SegmentationNetwork, **spread: Tensor) -> list[int]:
    """The channels that the stem and the first stage keep, of eight, where their outputs spread like this."""
    paths = {
        "stem": "encoder.stem.convs.0",
        "one": "encoder.stages.0.blocks.0.conv2",
        "two": "encoder.stages.0.blocks.1.conv2",
    }
    order = layers(teacher)
    widths = {layer.conv: teacher.net.get_submodule(layer.conv).out_channels for layer in order}
    roots = {name: torch.eye(width, dtype=torch.float64) for name, width in widths.items()}
    roots.update({f"{paths[name]}.conv": values.double().diag() for name, values in spread.items()})
    with torch.no_grad():
        kept = inh._choose(student, teacher, counterparts(student, teacher), roots)
    assert len({tuple(kept[f"{path}.conv"].tolist()) for path in paths.values()}) == 1
    return kept["encoder.stem.convs.0.conv"].tolist()


def test_a_channel_that_one_block_alone_uses_is_kept() -> None:
    teacher, student = _network(2, name="resenc_unet_m"), _network(2, 2, name="resenc_unet_m")
    stem, one, two = (
        torch.tensor(values)
        for values in ([1, 0, 0, 0, 0, 2, 0, 0], [0, 0, 3, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1])
    )
    assert _first_group(student, teacher, stem=stem, one=one, two=two) == [0, 2, 5, 7]


def test_every_consumer_of_a_group_counts() -> None:
    teacher, student = _network(2, name="resenc_unet_m"), _network(2, 2, name="resenc_unet_m")
    stage, following = (stage.blocks for stage in teacher.net.encoder.stages[:2])
    consumers = [block.conv1.conv for block in (*stage, following[0])] + [
        following[0].skip[1].conv,
        teacher.net.decoder.stages[1].convs[0].conv,
    ]
    for c, conv in enumerate(consumers):  # channel 0 matters to the first consumer, 1 to the second, and so on
        with torch.no_grad():
            for other in consumers:
                begin = other.in_channels - 8  # the decoder takes the skip behind the transposed convolution's channels
                other.weight[:, begin:] = 0.001
                other.weight[:, begin + 5 :] = 0.1
            conv.weight[:, conv.in_channels - 8 + c] = 1
        assert _first_group(student, teacher) == [c, 5, 6, 7]


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet_m"])
def test_the_roots_have_numpys_scatter(name: str) -> None:
    teacher = _trained(2, name=name)
    order = layers(teacher)
    last = [layer for layer in order if layer.conv.startswith("encoder.stages.1")][-1]
    got: list[Tensor] = []
    handle = teacher.net.encoder.stages[1].register_forward_hook(lambda _, __, output: got.append(output[0].clone()))
    with torch.no_grad():
        seen, roots = inh._watch(teacher, [layer.conv for layer in order], _images(2, 3), 0)
    handle.remove()
    rows = np.concatenate([at(y, one.places).numpy() for y, one in zip(got, seen[last.conv], strict=True)]).astype(
        float
    )
    root = roots[last.conv].numpy()
    np.testing.assert_allclose(root.T @ root, np.cov(rows.T, bias=True) * len(rows), rtol=1e-6, atol=1e-6)
