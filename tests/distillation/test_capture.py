"""Captured tensors are what the module returned, whatever happens to them later."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.core.errors import MethodError
from medkd.core.features import Tap
from medkd.distillation import Capture
from tests.distillation.toys import InPlaceBlock, ToyNetwork


class TwoBlocks(nn.Module):
    """Two additive blocks with an in-place activation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = InPlaceBlock(3, 2), InPlaceBlock(3, 2)
        self.taps = (
            Tap(name="conv", channels=2, stride=(1, 1, 1), module="one.conv2", stage="encoder"),
            Tap(name="one", channels=2, stride=(1, 1, 1), module="one", stage="encoder", correction=True),
            Tap(name="two", channels=2, stride=(1, 1, 1), module="two", stage="encoder", correction=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both blocks; the input itself is changed too."""
        x = torch.relu_(self.one(x))
        y = self.two(x)
        x.zero_()
        return torch.relu_(y)


def branch(block: InPlaceBlock, x: torch.Tensor) -> torch.Tensor:
    """The residual branch, computed without the block."""
    return block.conv2(torch.relu(block.conv1(x)))


def test_in_place_operations_do_not_change_what_was_captured() -> None:
    net, x = TwoBlocks(), torch.randn(1, 2, 5, 5, 5)
    with torch.no_grad(), Capture(net, ("conv", "one", "two"), ("one", "two"), detach=True) as capture:
        net(x)
        first = branch(net.one, x)
        middle = torch.relu(first + x)
        second = branch(net.two, middle)
    assert torch.allclose(capture.features["conv"], first, atol=1e-6)
    assert torch.allclose(capture.features["one"], first + x, atol=1e-6)
    assert torch.allclose(capture.features["two"], second + middle, atol=1e-6)
    assert torch.allclose(capture.corrections["one"], first, atol=1e-6)
    assert torch.allclose(capture.corrections["two"], second, atol=1e-6)


def test_a_block_that_works_on_its_input_in_place_has_the_correction_to_what_it_was_given() -> None:
    holder = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    holder.taps = (Tap(name="block", channels=2, stride=(1, 1), module="1", stage="decoder", correction=True),)  # type: ignore[assignment]
    x = torch.randn(1, 2, 4, 4)
    given = x.clone()
    with torch.no_grad(), Capture(holder, corrections=("block",), detach=True) as capture:
        holder(x)
    assert torch.equal(capture.corrections["block"], given.relu() - given)


def test_correction_of_monai_segresnet_block_is_its_residual_branch() -> None:
    """MONAI adds the identity in place, so that a recorded second convolution would be the block's output."""
    from monai.networks.blocks.segresnet_block import ResBlock

    block = ResBlock(3, 8, norm=("group", {"num_groups": 4}))
    holder = nn.Sequential(block, nn.ReLU(inplace=True))
    holder.taps = (Tap(name="block", channels=8, stride=(1, 1, 1), module="0", stage="decoder", correction=True),)  # type: ignore[assignment]
    x = torch.randn(2, 8, 4, 4, 4)
    with torch.no_grad(), Capture(holder, ("block",), ("block",), detach=True) as capture:
        holder(x)
        expected = block.conv2(torch.relu(block.norm2(block.conv1(torch.relu(block.norm1(x))))))
    assert torch.allclose(capture.corrections["block"], expected, atol=1e-5)
    assert torch.allclose(capture.features["block"], expected + x, atol=1e-5)


def test_gradient_flows_through_a_student_capture_and_not_through_a_detached_one() -> None:
    net = ToyNetwork(3)
    for detach in (False, True):
        with Capture(net, ("dec0",), detach=detach) as capture:
            net(torch.randn(1, 1, 4, 4, 4))
        assert capture.features["dec0"].requires_grad is not detach
    with Capture(net, ("dec0",)) as capture:
        logits = net(torch.randn(1, 1, 4, 4, 4))
    (capture.features["dec0"].square().sum() + logits.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_hooks_live_only_inside_the_block_and_nothing_is_kept_from_the_step_before() -> None:
    net = ToyNetwork(2)
    capture = Capture(net, ("enc0",), ("dec0",))
    with capture:
        net(torch.randn(1, 1, 4, 4))
    old = capture.features["enc0"]
    net(torch.randn(1, 1, 4, 4))
    assert capture.features["enc0"] is old
    with capture:
        assert capture.features == {} and capture.corrections == {}
        net(torch.randn(1, 1, 4, 4))
    assert not torch.equal(capture.features["enc0"], old)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_hooks_are_removed_after_an_error() -> None:
    net = ToyNetwork(3)
    with pytest.raises(RuntimeError), Capture(net, ("enc0",), ("dec0",)):
        net(torch.randn(1, 2, 4, 4, 4))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_unknown_tap_names_the_nearest() -> None:
    with pytest.raises(MethodError, match=r"no tap 'botleneck'.*Did you mean 'bottleneck'"):
        Capture(ToyNetwork(3), ("botleneck",))


def test_tap_without_correction_is_refused() -> None:
    with pytest.raises(MethodError, match=r"'enc0'.*no block correction.*bottleneck, dec0"):
        Capture(ToyNetwork(3), corrections=("enc0",))


def test_wrong_promises_of_a_network_are_named() -> None:
    net = ToyNetwork(3)
    net.taps = (
        Tap(name="a", channels=1, stride=(1, 1, 1), module="nowhere", stage="encoder"),
        Tap(name="b", channels=8, stride=(2, 2, 2), module="down", stage="encoder", correction=True),
    )
    with pytest.raises(MethodError, match="points at 'nowhere'"):
        Capture(net, ("a",))
    with pytest.raises(MethodError, match="so it has no correction"), Capture(net, corrections=("b",)):
        net(torch.randn(1, 1, 4, 4, 4))
