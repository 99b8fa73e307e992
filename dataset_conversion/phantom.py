"""A CT-like phantom data set: an abdomen in miniature, made from formulas, for the demo, tests and benchmarks.

Organs are smoothly deformed ellipsoids and tubes, painted on a grid three times finer than the scan's in-plane grid and
averaged, so that boundaries have true partial volume. Liver and spleen have overlapping intensities, the vena cava
resembles the aorta, and bowel loops of every intensity are left unlabelled: intensity alone does not solve it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.io.volumes import write_volume

LABELS = LabelSpec.from_names(["liver", "spleen", "kidneys", "aorta", "spine"])
LIVER, SPLEEN, KIDNEYS, AORTA, SPINE = range(1, 6)

_SHAPE = (24, 56, 72)
_SPACING = (3.0, 1.5, 1.5)
_FINE = (2, 3, 3)  # sub-samples per voxel along (z, y, x)
_AIR, _FAT, _MUSCLE = -1000.0, -100.0, 45.0  # HU
_FAR = np.full(3, np.inf, np.float32)
_EVERYWHERE = (-_FAR, _FAR)
_CT_RANGE = (-1024, 3071)  # what a 12-bit scanner stores


_Random = np.random.Generator
_Numbers = tuple[float, ...]
_Size = tuple[int, int, int]
_Box = tuple[np.ndarray, np.ndarray]
_Inside = Callable[[np.ndarray], np.ndarray]


class PhantomCase(NamedTuple):
    """One phantom scan: ``image`` ``(z, y, x)`` float32 in HU, ``label`` ``(z, y, x)`` uint8, and the grid they lie
    on.
    """

    image: np.ndarray
    label: np.ndarray
    geometry: Geometry


@dataclass(frozen=True)
class _Shape:
    """A painted structure: ``inside`` maps points ``(3, n)`` (x, y, z in mm) to bool, ``value`` gives the HU there.

    ``near`` is a box (lower and upper corner) outside of which no point is inside, so that only its points are looked
    at.
    """

    near: _Box
    inside: _Inside
    value: Callable[[np.ndarray], np.ndarray | float]
    label: int = 0


def make_phantom(
    folder: Path, cases: int = 20, *, test_cases: int = 4, seed: int = 0, shape: _Size = _SHAPE
) -> DatasetDescription:
    """Write a phantom as a raw data set (nnU-Net v2's layout, int16 NIfTI).

    The test cases go to ``imagesTs``, their label maps to ``labelsTs``. A data set that is already there is left as it
    is.

    Args:
        folder: ``<root>/raw/DatasetNNN_Name``.
        cases: training cases.
        test_cases: further cases that no training sees.
        seed: everything follows from it; case ``i`` does not depend on how many others there are.
        shape: nominal voxels along ``(z, y, x)``; the grid of each case varies around it.

    Raises:
        DataError: fewer than one training case, a negative number of test cases, or the folder cannot be written to.
    """
    if cases < 1 or test_cases < 0:
        raise DataError(f"A phantom needs at least 1 training and 0 test cases, found {cases} and {test_cases}.")
    folder = Path(folder)
    description = DatasetDescription(
        channel_names=("CT",),
        labels=LABELS,
        num_training=cases,
        file_ending=".nii.gz",
        extra={"name": "phantom", "seed": seed},
    )
    if (folder / "dataset.json").exists():  # written last, so the cases are complete
        return DatasetDescription.load(folder / "dataset.json")
    for part, name, count, first in (("Tr", "phantom", cases, 0), ("Ts", "phantom_test", test_cases, 500)):
        for number in range(count):
            case = f"{name}_{number:03d}"
            image, label, geometry = phantom_case(1000 * seed + first + number, shape)
            whole = np.round(image).astype(np.int16)
            write_volume(folder / f"images{part}" / f"{case}_0000.nii.gz", whole, geometry)
            write_volume(folder / f"labels{part}" / f"{case}.nii.gz", label, geometry)
    description.save(folder / "dataset.json")
    return description


def phantom_case(seed: int, shape: _Size = _SHAPE) -> PhantomCase:
    """Make one scan; the same seed gives the same scan.

    Spacing varies between cases (2.4-3.6 mm through plane, 1.35-1.65 mm in plane), every third seed has flipped axes,
    every fourth is oblique by up to 10 degrees.
    """
    rng = np.random.default_rng(seed)
    geometry = _grid(rng, seed, shape)
    image, label = _paint(geometry, _anatomy(rng), rng)
    return PhantomCase(_scanner(image, geometry, rng), label, geometry)


def _grid(rng: _Random, seed: int, shape: _Size) -> Geometry:
    through_plane, in_plane = rng.uniform([0.8, 0.9], [1.2, 1.1])
    spacing = np.array(_SPACING) * [through_plane, in_plane, in_plane]
    # the field of view stays that of the nominal grid, so the number of voxels varies
    extent = np.array(shape) * np.array(_SPACING)
    voxels = np.maximum(np.round(extent / spacing), 8).astype(int)
    axes = np.diag(spacing[::-1])
    if seed % 3 == 1:
        axes = axes @ np.diag([-1.0, -1.0, 1.0])  # LPS, as scanners write
    if seed % 4 == 2:
        angles = np.deg2rad(rng.uniform(-10, 10, 3))
        axes = _rotation(angles) @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes
    middle = (voxels[::-1] - 1) / 2
    affine[:3, 3] = -axes @ middle  # the anatomy lies around the origin
    return Geometry.from_affine(tuple(map(int, voxels)), affine)


def _rotation(angles: np.ndarray) -> np.ndarray:
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i = (axis + 1) % 3
        j = (axis + 2) % 3
        turn[i, i] = np.cos(angle)
        turn[j, j] = np.cos(angle)
        turn[i, j] = -np.sin(angle)
        turn[j, i] = np.sin(angle)
        result = turn @ result
    return result


def _anatomy(rng: _Random) -> list[_Shape]:
    """The structures in painting order, later ones over earlier ones; positions in mm, +x right, +y anterior, +z
    superior.
    """

    def organ(centre: _Numbers, radii: _Numbers, mean: float, spread: float, label: int) -> _Shape:
        hu = rng.normal(mean, spread)
        return _Shape(*_ellipsoid(rng, centre, radii), lambda p: hu, label)

    body = rng.uniform(0.95, 1.05, 2) * (46.0, 34.0)
    shapes = [
        _Shape(_EVERYWHERE, _cylinder(body), lambda p: _FAT),
        _Shape(_EVERYWHERE, _cylinder(body - 5), lambda p: _MUSCLE),
    ]
    contents = [(20, 10), (120, 30), (-700, 100)]  # soft tissue, contrast agent, gas: mean and spread
    for _ in range(rng.integers(6, 10)):  # bowel
        centre = rng.uniform([-30, -2, -36], [25, 24, 20])
        radii = rng.uniform(3, 8, 3)
        mean, spread = rng.choice(contents, p=[0.4, 0.4, 0.2])
        shapes.append(organ(tuple(centre), tuple(radii), mean, spread, 0))
    vena_cava, aorta = (6, -9), (-4, -8)
    shapes += [
        organ((21, 5, 13), (21, 22, 24), 105, 12, LIVER),
        organ((-29, -8, 15), (9, 14, 17), 118, 12, SPLEEN),
        *_kidneys(rng),
        _tube(rng, vena_cava, 4.5, rng.normal(130, 25), 0),  # not labelled
        _tube(rng, aorta, 4.0, rng.normal(185, 30), AORTA),
        _spine(rng),
    ]
    return shapes


def _cylinder(radii: np.ndarray) -> _Inside:
    """Along z through the origin."""

    def inside(points: np.ndarray) -> np.ndarray:
        x, y = points[0] / radii[0], points[1] / radii[1]
        return x**2 + y**2 < 1

    return inside


def _ellipsoid(rng: _Random, centre: _Numbers, radii: _Numbers) -> tuple[_Box, _Inside]:
    moved = np.array(centre) + rng.normal(0, 2.0, 3)
    scaled = np.array(radii) * rng.uniform(0.85, 1.12, 3)
    middle, size = moved.astype(np.float32), scaled.astype(np.float32)
    amplitude = float(size.min()) / 4
    bend = _deformation(rng, amplitude)

    def inside(points: np.ndarray) -> np.ndarray:
        away = points + bend(points) - middle[:, None]
        return ((away / size[:, None]) ** 2).sum(0) < 1

    return (middle - size - amplitude, middle + size + amplitude), inside


def _deformation(rng: _Random, amplitude: float, modes: int = 3) -> _Inside:
    """A smooth displacement in mm: per axis the mean of ``modes`` plane waves of 25 to 70 mm length and this
    amplitude.
    """
    waves = rng.normal(size=(3, modes, 3))
    lengths = rng.uniform(25, 70, (3, modes, 1))
    waves *= (2 * np.pi / lengths) / np.linalg.norm(waves, axis=2, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, (3, modes, 1)).astype(np.float32)
    waves = waves.astype(np.float32)
    height = np.float32(amplitude / modes)

    def displace(points: np.ndarray) -> np.ndarray:
        moves = []
        for wave, phase in zip(waves, phases, strict=True):
            moves.append(np.sin(wave @ points + phase).sum(0))
        return np.stack(moves) * height

    return displace


def _kidneys(rng: _Random) -> list[_Shape]:
    cortex = rng.normal(165, 20)
    result = []
    for side in (-1, 1):
        centre = np.array([side * 24.0, -15.0, -15.0]) + rng.normal(0, 1.5, 3)
        radii = rng.uniform(0.9, 1.1) * np.array([8.5, 9.0, 15.0])
        whole = _ellipsoid(rng, tuple(centre), tuple(radii))
        result.append(_Shape(*whole, lambda p: cortex, KIDNEYS))
        # the medulla is darker than the cortex but belongs to the kidney
        medulla = _ellipsoid(rng, tuple(centre), tuple(radii * 0.5))
        result.append(_Shape(*medulla, lambda p: cortex - 60, KIDNEYS))
    return result


def _tube(rng: _Random, centre: _Numbers, radius: float, hu: float, label: int) -> _Shape:
    moved = np.array(centre) + rng.normal(0, 1.0, 2)
    middle = moved.astype(np.float32)
    size = np.float32(radius * rng.uniform(0.85, 1.15))
    bend = _deformation(rng, 3.0)

    def inside(points: np.ndarray) -> np.ndarray:
        away = points[:2] + bend(points)[:2] - middle[:, None]
        return (away**2).sum(0) < size**2

    low = np.append(middle - size - 3, -np.inf)
    high = np.append(middle + size + 3, np.inf)
    return _Shape((low, high), inside, lambda p: hu, label)


def _spine(rng: _Random) -> _Shape:
    bone = rng.normal(320, 40)
    disc = rng.normal(90, 10)
    height = rng.uniform(17, 22)
    phase = rng.uniform(0, 20)

    def value(points: np.ndarray) -> np.ndarray:
        """A fifth of every vertebra's height is disc, which is as bright as an organ."""
        above = (points[2] + phase) % height
        return np.where(above < height / 5, disc, bone)

    column = _tube(rng, (0, -20), 7.5, bone, SPINE)
    return replace(column, value=value)


def _paint(geometry: Geometry, shapes: list[_Shape], rng: _Random) -> tuple[np.ndarray, np.ndarray]:
    """Paint on the fine grid, then average HU and take each voxel's most frequent label."""
    fine = tuple(np.multiply(geometry.shape, _FINE))
    points = _fine_points(geometry)
    points += _deformation(rng, 3.0)(points)
    count = points.shape[1]
    image = np.full(count, _AIR, dtype=np.float32)
    label = np.zeros(count, dtype=np.uint8)
    for shape in shapes:
        near = _points_near(points, shape.near)
        where = near[shape.inside(points[:, near])]
        image[where] = shape.value(points[:, where])
        label[where] = shape.label
    votes = []
    for value in range(len(LABELS.entries)):
        votes.append(_pool((label == value).reshape(fine)))
    winners = np.stack(votes).argmax(0)
    return _pool(image.reshape(fine)), winners.astype(np.uint8)


def _points_near(points: np.ndarray, box: _Box) -> np.ndarray:
    """The numbers of the points inside of a box."""
    inside = np.ones(points.shape[1], dtype=bool)
    for position, low, high in zip(points, *box, strict=True):
        inside &= (position > low) & (position < high)
    return np.flatnonzero(inside)


def _fine_points(geometry: Geometry) -> np.ndarray:
    """World positions ``(3, n)`` (x, y, z in mm) of the sub-samples in array order, float32."""
    indices = []
    for length, fine in zip(geometry.shape, _FINE, strict=True):
        index = (np.arange(length * fine) + 0.5) / fine - 0.5
        indices.append(index.astype(np.float32))
    z, y, x = indices[0][:, None, None], indices[1][:, None], indices[2]
    matrix = geometry.matrix.astype(np.float32)
    points = [row[0] * x + row[1] * y + row[2] * z + row[3] for row in matrix[:3]]
    return np.stack(points).reshape(3, -1)


def _pool(fine: np.ndarray) -> np.ndarray:
    blocks: list[int] = []
    for length, factor in zip(fine.shape, _FINE, strict=True):
        blocks += (length // factor, factor)
    return fine.reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32)


def _scanner(image: np.ndarray, geometry: Geometry, rng: _Random) -> np.ndarray:
    """Blur by the scanner's point spread, cupping of up to 12 HU, and noise that is correlated within a slice."""
    blurred = gaussian_filter(image, (0.0, 0.5, 0.5))
    axes = [np.linspace(-1, 1, length, dtype=np.float32) for length in geometry.shape]
    _, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    cupping = rng.uniform(-12, 12) * (1 - y**2) * (1 - x**2)
    white = rng.standard_normal(image.shape, dtype=np.float32)
    noise = gaussian_filter(white, (0.0, 0.6, 0.6))
    strength = rng.uniform(15, 25) / noise.std()
    noisy = blurred + cupping + noise * strength
    return np.clip(noisy, *_CT_RANGE).astype(np.float32)
