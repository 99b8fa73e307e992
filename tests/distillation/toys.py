"""Small networks with taps, batches and contexts to try methods on."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.core.features import Outputs, Progress, Tap, Target
from medkd.distillation import Context, Distiller, Method, build_method

OUTPUTS = 3


def conv(rank: int, *args: int, **settings: int) -> nn.Module:
    """A convolution of this rank."""
    return (nn.Conv3d if rank == 3 else nn.Conv2d)(*args, **settings)


class InPlaceBlock(nn.Module):
    """``x + conv(relu(conv(x)))``, adding the identity in place to the second convolution's output, as SegResNet
    does.
    """

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(rank, channels, channels, 3, padding=1)
        self.conv2 = conv(rank, channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.conv2(F.relu(self.conv1(x), inplace=True))
        y += x
        return y


class PlainBlock(nn.Module):
    """``leaky_relu(conv(x))``, without a shortcut."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(rank, channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return F.leaky_relu(self.conv1(x), 0.1)


class ToyNetwork(nn.Module):
    """An encoder-decoder with two strides and in-place activations between its blocks; it can be continued from its
    decoder.
    """

    def __init__(self, rank: int, width: int = 4, outputs: int = OUTPUTS, additive: bool = True) -> None:
        super().__init__()
        block = InPlaceBlock if additive else PlainBlock
        self.rank = rank
        self.first = conv(rank, 1, width, 3, padding=1)
        self.down = conv(rank, width, 2 * width, 2, stride=2)
        self.deep = block(rank, 2 * width)
        self.reduce = conv(rank, 2 * width, width, 1)
        self.fine = block(rank, width)
        self.out = conv(rank, width, outputs, 1)
        one, two = (1,) * rank, (2,) * rank
        self.taps = (
            Tap(name="enc0", channels=width, stride=one, module="first", stage="encoder"),
            Tap(
                name="bottleneck",
                channels=2 * width,
                stride=two,
                module="deep",
                stage="bottleneck",
                correction=additive,
            ),
            Tap(name="dec1", channels=width, stride=two, module="reduce", stage="decoder"),
            Tap(name="dec0", channels=width, stride=one, module="fine", stage="decoder", correction=additive),
        )
        self.remember = False
        self._skip: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        skip = self.first(x)
        if self.remember:
            self._skip = skip
        x = self.reduce(F.relu_(self.deep(self.down(F.relu(skip)))))
        return self._finish(x, skip)

    def forward_from(self, tap: str, feature: Tensor) -> Tensor:
        """The rest of the network from ``dec1`` or ``dec0`` on."""
        if tap == "dec0":
            return self.out(F.relu(feature))
        return self._finish(feature, self._skip)

    def _finish(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.fine(F.interpolate(x, scale_factor=2) + skip)
        return self.out(F.relu_(x))


def patch(rank: int, size: int = 12) -> tuple[int, ...]:
    """A patch with one axis shorter than the others."""
    return (size - 4, *(size,) * (rank - 1))


def context(
    student: nn.Module | None, teacher: nn.Module | None, rank: int, regions: bool = False, outputs: int = OUTPUTS
) -> Context:
    """The context of a pair of networks."""
    taps = [tuple(getattr(net, "taps", ())) for net in (student, teacher)]
    return Context(
        student_taps=taps[0],
        teacher_taps=taps[1],
        num_outputs=outputs,
        regions=regions,
        spacing=(2.0, *(1.0,) * (rank - 1)),
        patch_size=patch(rank),
    )


def plain_context(
    rank: int = 3, regions: bool = False, outputs: int = OUTPUTS, spacing: tuple[float, ...] | None = None
) -> Context:
    """A context without taps, for methods that need logits only."""
    return Context(
        student_taps=(),
        teacher_taps=(),
        num_outputs=outputs,
        regions=regions,
        spacing=spacing or (1.0,) * rank,
        patch_size=patch(rank),
    )


def smooth(batch: int, channels: int, size: tuple[int, ...]) -> Tensor:
    """Smooth random maps."""
    low = torch.randn(batch, channels, *(max(s // 4, 2) for s in size))
    return F.interpolate(low, size=size, mode="trilinear" if len(size) == 3 else "bilinear")


def batch(
    rank: int, regions: bool = False, valid: bool = False, progress: Progress | None = None
) -> tuple[Tensor, Target]:
    """An image ``(2, 1, *patch)`` of blobs and its labels; with ``valid`` a corner is not annotated."""
    size = patch(rank)
    maps = smooth(2, OUTPUTS, size)
    labels = (maps > 0.3).float() if regions else maps.argmax(1, keepdim=True)
    image = (labels * torch.arange(1, labels.shape[1] + 1).view(1, -1, *(1,) * rank)).sum(1, keepdim=True).float()
    mask = None
    if valid:
        mask = torch.ones(2, 1, *size, dtype=torch.bool)
        mask[(slice(None), slice(None), *(slice(0, 6),) * rank)] = False
    return image + 0.3 * torch.randn_like(image), Target(labels, mask, progress or Progress(50, 100))


@cache
def trained(rank: int, regions: bool, additive: bool = True) -> ToyNetwork:
    """A teacher after a few training steps; the same object each time, so do not train it further."""
    torch.manual_seed(1)
    net = ToyNetwork(rank, 6, additive=additive)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(15):
        image, target = batch(rank, regions)
        logits = net(image)
        loss = (
            F.binary_cross_entropy_with_logits(logits, target.labels)
            if regions
            else F.cross_entropy(logits, target.labels[:, 0])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.zero_grad(set_to_none=True)
    return net.eval().requires_grad_(False)


def step(
    method: Method, student: nn.Module, teacher: nn.Module | None, image: Tensor, target: Target
) -> dict[str, Tensor]:
    """One training step's terms, after the first stage where there is one."""
    distiller = Distiller(teacher, method)
    if distiller.needs_preparation:
        distiller.prepare([(image, target)] * 2)
    with distiller.student_capture(student):
        logits = student(image)
    return distiller.terms(image, logits, target)


def logits_terms(
    name: str, student: Tensor, teacher: Tensor, target: Target, *, regions: bool = False, **settings: object
) -> dict[str, Tensor]:
    """Terms of a method that needs logits only."""
    rank = student.ndim - 2
    method = build_method(
        name, plain_context(rank, regions, student.shape[1]), {f"{name}.{k}": v for k, v in settings.items()}
    )
    return method(Outputs(logits=student), Outputs(logits=teacher), target)


def pair_method(
    name: str, student: int, teacher: int, rank: int = 3, regions: bool = False, **settings: object
) -> Method:
    """A method between single decoder taps named ``s`` and ``t`` with these channels."""
    one = (1,) * rank
    about = Context(
        student_taps=(Tap(name="s", channels=student, stride=one, module="s", stage="decoder"),),
        teacher_taps=(Tap(name="t", channels=teacher, stride=one, module="t", stage="decoder"),),
        num_outputs=OUTPUTS,
        regions=regions,
        spacing=(1.0,) * rank,
        patch_size=patch(rank),
    )
    return build_method(name, about, {f"{name}.taps": "s:t", **{f"{name}.{k}": v for k, v in settings.items()}})


def features_terms(
    method: Method, student: Tensor, teacher: Tensor, target: Target | None = None, logits: Tensor | None = None
) -> dict[str, Tensor]:
    """Terms of a method made by :func:`pair_method`; the logits are alike unless given as ``(2, B, K, *spatial)``."""
    if target is None:
        target = Target(torch.zeros(len(student), 1, *student.shape[2:], dtype=torch.long))
    if logits is None:
        logits = torch.zeros(2, len(student), OUTPUTS, *target.labels.shape[2:])
    return method(
        Outputs(logits=logits[0], features={"s": student}), Outputs(logits=logits[1], features={"t": teacher}), target
    )
