"""Every network on a fake CUDA device, forward, backward and continued from its taps.

Of the networks that only repeat a smaller one's blocks a quarter is tried each day, all with ``MEDKD_ROWS=all``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import UnsupportedOperatorException

from medkd.networks import NETWORKS, build_network
from medkd.networks.encoder_decoder import EncoderDecoder
from medkd.networks.reference import reference_spec
from tests.networks.fake_cuda import CountSyncs, backward, fake_cuda, to_fake_cuda
from tests.shares import of_today

SIDES = {2: 128, 3: 64}
DEEPER = ("mednext_b", "mednext_m", "mednext_l", "mednext_m_paper", "mednext_l_paper")  # as mednext_s, mednext_b_paper
DEEPER += ("resenc_unet_l", "resenc_unet_xl", "pspnet_r101", "fcn_r50", "fcn_r50_d8")  # as resenc_unet_m and *_r18
DEEPER += ("unet_r50",)  # bottlenecks are unet_r50_d8's
EVERY = [(name, rank) for name in NETWORKS for rank in NETWORKS[name].ranks]
CASES = [case for case in EVERY if case[0] not in DEEPER]
CASES += of_today([case for case in EVERY if case[0] in DEEPER], 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank"), CASES)
def test_a_step_stays_on_the_device(name: str, rank: int) -> None:
    spec = reference_spec(name, rank)
    if not NETWORKS[name].planned:
        spec = replace(spec, patch_size=(SIDES[rank],) * rank)
    spec = replace(spec, deep_supervision=NETWORKS[name].deep_supervision)
    network = build_network(spec)
    with fake_cuda():
        to_fake_cuda(network).train()
        network.remember = True
        image = torch.empty(2, 1, *spec.patch_size, device="cuda")
        with CountSyncs() as syncs:
            found = network(image)
            logits = found if isinstance(found, list) else [found]
            loss = torch.stack([part.float().square().mean() for part in logits]).sum()
            backward(loss)
        assert all(part.device.type == "cuda" for part in logits)
        grads = {n: p.grad for n, p in network.named_parameters()}
        assert all(grad.device.type == "cuda" for grad in grads.values() if grad is not None)
        assert isinstance(network, EncoderDecoder) and network._features is not None
        assert all(feature.device.type == "cuda" for feature in network._features)
    assert syncs.total == 0, syncs.found


class Wrong(nn.Module):
    """A layer with a tensor that does not move with it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(1, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Waits(nn.Module):
    """A layer that asks its device for a value, and one for a number of places."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].sum() * float(x.mean())


def test_the_walk_through_the_graph_is_torchs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2))
    image = torch.rand(2, 1, 9, 9)
    out = net(image)
    loss = (out.softmax(1).log() * out).sum() + torch.cat(out.chunk(2, 1)).square().mean()
    loss.backward(retain_graph=True)
    wanted = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    backward(loss)
    for parameter, grad in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, atol=1e-4, rtol=1e-4)


def test_the_check_finds_what_it_is_for() -> None:
    wrong = Wrong()
    with fake_cuda():
        image = torch.empty(1, 2, 4, 4, device="cuda")
        with pytest.raises(Exception, match=r"[Ff]ake"):
            wrong(image)
        with pytest.raises(RuntimeError, match="device"):
            image + torch.ones(1, 2, 1, 1)
        with pytest.raises((UnsupportedOperatorException, RuntimeError)):
            Waits()(image)
    with CountSyncs() as syncs:
        Waits()(torch.rand(1, 2, 4, 4))
    assert syncs.found == {"aten::index.Tensor": 1, "aten::_local_scalar_dense": 1}
