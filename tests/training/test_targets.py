"""Cached targets: their bytes, and patches of them that move like the label."""

from __future__ import annotations

from math import cos, radians, sin
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import affine_transform
from torch import Tensor

from medkd.core.errors import RunError
from medkd.core.protocol import AugmentationRule
from medkd.preprocessing.store import CaseStore
from medkd.training.augmentation import Augment, Augmentation, read_size
from medkd.training.loader import PatchBatches, iterate
from medkd.training.sampling import OUTSIDE, PatchSampler
from medkd.training.simple_augmentation import SimpleAugmentation
from medkd.training.targets import Coding, SoftPatch, StoredTarget, TargetStore, source_of
from tests.training.builders import PATCH, make_dataset


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def _probabilities(logits: Tensor, regions: bool) -> Tensor:
    return logits.sigmoid() if regions else logits.softmax(0)


def _soft(logits: Tensor, regions: bool = False) -> SoftPatch:
    coding = Coding.of(logits, regions)
    target = StoredTarget(coding.encode(logits).numpy(), coding)
    return SoftPatch(target, (0,) * (logits.ndim - 1), tuple(logits.shape[1:]))


def _logits(soft: SoftPatch) -> Tensor:
    return soft.crop([0] * len(soft.size), soft.size)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spread", [0.5, 4.0, 20.0])
def test_bytes_keep_logits_and_probabilities(regions: bool, spread: float) -> None:
    logits = torch.randn(4, 6, 7, 8) * spread + 3
    coding = Coding.of(logits, regions)
    codes = coding.encode(logits)
    assert codes.dtype == torch.uint8 and len(codes) == coding.channels == 4 + (not regions)
    found = coding.decode(codes)
    assert float((_probabilities(found, regions) - _probabilities(logits, regions)).abs().max()) < 0.008
    # half a step of the squares, and half a step of the largest logit
    distance = logits.abs() if regions else logits.amax(0, keepdim=True) - logits
    root = (distance.clamp(max=16) / 16).sqrt()
    steps = 127 if regions else 255
    bound = 16 * (root + 1 / steps) / steps + (0 if regions else (coding.high - coding.low) / 510) + 1e-4
    near = distance < 16
    assert bool(((found - logits).abs() <= bound)[near].all())


def test_one_confident_voxel_and_equal_logits_survive() -> None:
    for logits in (torch.zeros(3, 2, 2, 2), torch.tensor([40.0, -40.0, 0.0]).view(3, 1, 1, 1)):
        assert torch.allclose(_logits(_soft(logits)).softmax(0), logits.softmax(0), atol=1e-3)


@pytest.mark.parametrize("regions", [False, True])
def test_outside_of_the_case_is_background(regions: bool) -> None:
    coding = Coding.of(torch.randn(3, 4, 4, 4) * 5, regions)
    outside = coding.decode(torch.from_numpy(coding.fill)).reshape(3, 1)
    expected = torch.zeros(3, 1) if regions else torch.tensor([[1.0], [0.0], [0.0]])
    assert torch.allclose(_probabilities(outside, regions), expected, atol=1e-6)
    if not regions:
        assert outside[0].item() == pytest.approx(coding.outside, abs=(coding.high - coding.low) / 255)


def _augmentations() -> list[tuple[Augment, tuple[int, ...]]]:
    rule = AugmentationRule(
        flip=0.5, rotate90=0.5, rotate=0.5, rotate_degrees=20.0, scale=0.5, scale_range=0.1, shift=0.5, shift_range=0.1
    )
    patches = [(12, 14, 12), (13, 14, 12), (4, 16, 16), (16, 17)]
    nnunet: list[tuple[Augment, tuple[int, ...]]] = [
        (Augmentation(p, tuple(range(len(p)))), read_size(p)) for p in patches
    ]
    return [*nnunet, *((SimpleAugmentation(rule, p, tuple(range(len(p)))), p) for p in [(6, 16, 16), (16, 16)])]


@pytest.mark.parametrize(("augment", "size"), _augmentations())
def test_images_and_labels_are_the_same_with_and_without_targets_and_the_target_moves_with_the_label(
    augment: Augment, size: tuple[int, ...]
) -> None:
    agreement = []
    for seed in range(16):
        _seed(seed)
        image, label = torch.randn(1, *size), torch.zeros(1, *size, dtype=torch.int16)
        label[(0, *(slice(s // 5, s // 2) for s in size))] = 1
        label[(0, *(slice(s // 2, 4 * s // 5) for s in size))] = 2
        logits = 8.0 * torch.stack([(label[0] == k).float() for k in range(3)])
        _seed(seed)
        plain = augment(image.clone(), label.clone())
        _seed(seed)
        *same, soft = augment(image.clone(), label.clone(), _soft(logits))
        assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
        assert soft.shape == (3, *plain[1].shape[1:]) and soft.dtype == torch.float32 and soft.is_contiguous()
        agreement.append(float((soft.argmax(0) == plain[1][0]).float().mean()))
    assert min(agreement) > 0.9 and np.mean(agreement) > 0.97


def test_a_mirrored_patch_is_the_mirrored_target() -> None:
    patch, size = (8, 10, 12), read_size((8, 10, 12))
    augment, logits = Augmentation(patch, (0, 1, 2)), torch.randn(3, *size) * 4
    soft, seen = _soft(logits), set()
    middle = _logits(soft)[
        (slice(None), *(slice((s - p) // 2, (s - p) // 2 + p) for s, p in zip(size, patch, strict=True)))
    ]
    for seed in range(30):
        _seed(seed)
        found = augment(torch.randn(1, *size), torch.zeros(1, *size, dtype=torch.int16), soft)[2]
        flips = [[a + 1 for a in range(3) if mask >> a & 1] for mask in range(8)]
        seen |= {mask for mask, axes in enumerate(flips) if torch.equal(found, middle.flip(axes))}
    assert len(seen) > 4


def _smooth(size: tuple[int, ...], channels: int = 3) -> Tensor:
    grids = torch.meshgrid(*(torch.linspace(-1, 1, s) for s in size), indexing="ij")
    return torch.stack(
        [3 * torch.cos(2.0 * grids[k % len(size)] + k) + grids[(k + 1) % len(size)] for k in range(channels)]
    )


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("patch", [(16, 18, 20), (20, 24)])
def test_a_rotated_patch_is_the_probability_map_rotated_by_scipy(
    patch: tuple[int, ...], regions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = read_size(patch)
    augment, logits = Augmentation(patch, ()), _smooth(size)
    spatial, drawn = augment._spatial, []
    spatial.p_rotation = 1.0
    original = spatial.get_parameters
    monkeypatch.setattr(spatial, "get_parameters", lambda **data: drawn.append(original(**data)) or drawn[-1])
    _seed(2)
    found = augment(torch.randn(1, *size), torch.zeros(1, *size, dtype=torch.int16), _soft(logits, regions))[2]
    matrix = drawn[0]["affine"]
    offset = (np.array(size) - 1) / 2 - matrix @ ((np.array(patch) - 1) / 2)
    probabilities = _probabilities(logits, regions).numpy()
    expected = np.stack([affine_transform(p, matrix, offset, output_shape=patch, order=1) for p in probabilities])
    interior = (slice(None), *(slice(2, -2),) * len(patch))
    assert abs(matrix - np.eye(len(patch))).max() > 0.05, "it was rotated"
    assert np.abs(_probabilities(found, regions).numpy() - expected)[interior].max() < 0.025
    whole = F.grid_sample((logits - _outside(logits, regions))[None], drawn[0]["grid"][None], align_corners=False)[0]
    assert torch.allclose(found, whole + _outside(logits, regions), atol=0.15)


def _outside(logits: Tensor, regions: bool) -> Tensor:
    coding = Coding.of(logits, regions)
    return coding.decode(torch.from_numpy(coding.fill)).view(-1, *(1,) * (logits.ndim - 1))


def test_simple_rotation_is_scipys_and_brings_background_from_outside() -> None:
    rule = AugmentationRule(rotate=1.0, rotate_degrees=30.0)
    logits = _smooth((3, 24, 24))
    _seed(1)
    found = SimpleAugmentation(rule, (3, 24, 24), (0, 1, 2))(
        torch.zeros(1, 3, 24, 24), torch.zeros(1, 3, 24, 24, dtype=torch.int16), _soft(logits)
    )[2]
    _seed(1)
    torch.rand(())  # the flips are drawn first, three of them, then the quarter turns, then whether to rotate
    for _ in range(4):
        torch.rand(())
    angle = radians(float(torch.empty(()).uniform_(-30.0, 30.0)))
    matrix = np.array([[1, 0, 0], [0, cos(angle), -sin(angle)], [0, sin(angle), cos(angle)]])
    centre = np.array([1, 11.5, 11.5])
    each = [affine_transform(p, matrix, centre - matrix @ centre, order=1) for p in logits.softmax(0).numpy()]
    mirrored = [affine_transform(p, matrix.T, centre - matrix.T @ centre, order=1) for p in logits.softmax(0).numpy()]
    inner = (slice(None), slice(None), slice(7, 17), slice(7, 17))
    errors = [float(np.abs(found.softmax(0).numpy() - np.stack(e))[inner].max()) for e in (each, mirrored)]
    assert min(errors) < 0.02 < max(errors)
    assert float(found.softmax(0)[0, :, 0, 0].min()) > 0.999


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Stores of volumes and slices, and targets whose logits are a background of 0 and the image itself."""
    root = tmp_path_factory.mktemp("stored")
    folder = make_dataset(root, 3)
    target = TargetStore(root / "targets")
    volumes = CaseStore(folder / "3d_fullres")
    for case in volumes.cases():
        image = torch.from_numpy(np.array(volumes.open(case).image))
        target.write(case, source_of(volumes.record(case)), torch.cat([torch.zeros_like(image), image, -image]), False)
    return volumes.folder, folder / "2d", target.folder


def _batches(store: Path, target: Path | None, patch: tuple[int, ...], augment: Augment | None) -> PatchBatches:
    sampler = PatchSampler(read_size(patch) if augment else patch, patch)
    return PatchBatches(store, CaseStore(store).cases(), sampler, 2, 4, 7, augment, targets=target)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("patch", [(16, 16, 16), (24, 20, 24)])
def test_a_patch_holds_the_target_of_its_own_voxels_and_background_outside(
    stored: tuple[Path, Path, Path], patch: tuple[int, ...], flat: bool
) -> None:
    store = stored[1] if flat else stored[0]
    patch = patch[1:] if flat else patch
    batches = _batches(store, stored[2], patch, None)
    padded = 0
    for step in range(4):
        image, label, soft = batches[step]
        relative = soft[:, 1:2] - soft[:, :1]
        inside = image != 0  # padding; no voxel of noise is exactly zero
        assert torch.allclose(relative[inside], image[inside], atol=0.13)
        padded += int((~inside).sum())
        assert bool((label[~inside] == OUTSIDE).all())
        assert bool((soft.softmax(1)[:, :1][~inside] > 0.999).all())
    assert padded or patch[-1] != 24


def test_batches_are_those_without_targets_and_independent_of_workers(stored: tuple[Path, Path, Path]) -> None:
    augment = Augmentation(PATCH, (0, 1, 2))
    plain, cached = (_batches(stored[0], target, PATCH, augment) for target in (None, stored[2]))
    for step in range(4):
        assert len(plain[step]) == 2 and len(cached[step]) == 3
        assert all(torch.equal(a, b) for a, b in zip(plain[step], cached[step], strict=False))
    for step, batch in enumerate(iterate(cached, 1, 2), start=1):
        assert all(torch.equal(a, b) for a, b in zip(batch, cached[step], strict=True))


def test_a_target_is_current_only_for_the_case_it_was_made_from(tmp_path: Path) -> None:
    target = TargetStore(tmp_path)
    logits = torch.randn(2, 3, 4, 5)
    target.write("a", "one", logits, False)
    assert target.has("a", "one") and not target.has("a", "two") and not target.has("b", "one")
    (tmp_path / "a.npy").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"delete a\.json"):
        target.open("a")


def test_a_killed_writing_leaves_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*_: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(Coding, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        TargetStore(tmp_path).write("a", "one", torch.randn(2, 3, 4, 5), False)
    assert list(tmp_path.iterdir()) == []
