"""Folders of label maps and synthetic runs, for the tests of everything that reads files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from medkd.core.dataset import DatasetDescription
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.run import Budget, NetworkSpec, RunDescription
from medkd.core.serial import save
from medkd.core.timing import MeasuredExport, Timings
from medkd.evaluation.segmentation.folder import evaluate_folder
from medkd.io.volumes import write_volume

SPACING = (2.5, 1.0, 1.0)
SHAPE = (12, 48, 40)
LABELS = LabelSpec.from_names(["liver", "spleen"])


def reference(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A liver and a spleen of random size."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    wave = ndimage.gaussian_filter(rng.standard_normal(shape), 3) * 3
    liver = ((x + 0.35) / rng.uniform(0.4, 0.5)) ** 2 + (y / 0.6) ** 2 + (z / 0.8) ** 2 + wave < 1
    spleen = ((x - 0.5) / rng.uniform(0.2, 0.3)) ** 2 + ((y - 0.2) / 0.35) ** 2 + (z / 0.6) ** 2 + wave < 1
    return np.where(spleen, 2, np.where(liver, 1, 0)).astype(np.int16)


def spoiled(labels: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """Bend the borders of a label map by about ``strength`` voxels."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij")
    shift = [ndimage.gaussian_filter(rng.standard_normal(labels.shape), 4) * 25 * strength for _ in range(3)]
    return ndimage.map_coordinates(
        labels, [g + s for g, s in zip(grid, shift, strict=True)], order=0, mode="nearest"
    ).astype(np.int16)


def write_map(path: Path, labels: np.ndarray, spacing: tuple[float, ...] = SPACING) -> None:
    """Write a label map on an axis-aligned grid."""
    write_volume(path, labels, Geometry.from_spacing(labels.shape, spacing))


def make_dataset(root: Path, count: int = 6, name: str = "Dataset004_Test") -> Path:
    """A raw data set with CT-like images; returns its folder."""
    raw = root / "raw" / name
    for i in range(count):
        labels = reference(i)
        rng = np.random.default_rng(i)
        image = np.array([-90.0, 110.0, 60.0])[labels] + ndimage.gaussian_filter(rng.standard_normal(SHAPE), 0.8) * 60
        write_map(raw / "labelsTr" / f"case_{i:03d}.nii.gz", labels)
        write_map(raw / "imagesTr" / f"case_{i:03d}_0000.nii.gz", image.astype(np.float32))
    DatasetDescription(channel_names=("CT",), labels=LABELS, num_training=count).save(raw / "dataset.json")
    return raw


def make_run(
    root: Path,
    run: str,
    network: str,
    strength: float,
    folds: Mapping[int, Sequence[int]],
    *,
    method: str | None = None,
    teacher: str | None = None,
    parameters: int = 2_000_000,
    latency: float = 40.0,
    missing_spleen: Sequence[int] = (),
    name: str = "Dataset004_Test",
) -> Path:
    """A run as training leaves it, with predictions that are ``strength`` voxels off; ``folds`` maps fold → case
    numbers.
    """
    raw, folder = root / "raw" / name, root / "results" / name / run
    spec = NetworkSpec(name=network, in_channels=1, num_outputs=3, patch_size=(16, 32, 32))
    parameter = {"kd.weight": 1.0} if method not in (None, "none") else {}
    save(
        folder / "run.json",
        RunDescription(
            dataset=name,
            configuration="3d_fullres",
            network=spec,
            budget=Budget(20, 10, 2, 0.01, 0),
            mirror_axes=(0, 1, 2),
            precision="fp32",
            method=method,
            method_parameters=parameter,
            teacher=teacher,
        ),
    )
    DatasetDescription.load(raw / "dataset.json").save(folder / "dataset.json")
    for fold, numbers in folds.items():
        here = folder / f"fold_{fold}"
        cases = [f"case_{i:03d}" for i in numbers]
        for case, i in zip(cases, numbers, strict=True):
            labels = spoiled(reference(i), strength, 7 * i + len(run))
            labels[(labels == 2) & (i in missing_spleen)] = 0
            write_map(here / "validation" / f"{case}.nii.gz", labels)
        evaluate_folder(here / "validation", raw / "labelsTr", LABELS, cases=cases, workers=1).save(
            here / "validation" / "summary.json"
        )
        (here / "split.json").write_text(json.dumps({"train": [], "val": cases}))
        cost = {"parameters": parameters, "macs": parameters * 900, "latency_ms": latency}
        (here / "model.json").write_text(
            json.dumps({**cost, "patch_size": [16, 32, 32], "device": "cpu", "threads": 2})
        )
        (here / "log.jsonl").write_text("".join(json.dumps(_epoch(e, strength, method)) + "\n" for e in range(20)))
    return folder


def make_timings(
    root: Path,
    seconds: Mapping[str, tuple[float, ...]],
    name: str = "Dataset004_Test",
    exports: tuple[MeasuredExport, ...] = (),
) -> None:
    """Times of runs as ``medkd_report --measure`` leaves them."""
    Timings(
        unit="scan",
        case="case_000",
        size=SHAPE,
        device="cpu",
        threads=2,
        settings="mirrored, step 0.5",
        seconds=seconds,
        exports=exports,
    ).save(root / "results" / name)


def _epoch(epoch: int, strength: float, method: str | None) -> dict[str, object]:
    decay = float(np.exp(-epoch / 6))
    terms = {"dice_ce": decay + 0.2 * strength, **({method: 0.3 * decay} if method not in (None, "none") else {})}
    return {
        "epoch": epoch,
        "train_loss": sum(terms.values()),
        "validation_loss": decay + 0.3 * strength,
        "validation_dice": (1 - decay) * (0.95 - 0.1 * strength),
        "learning_rate": 0.01 * (1 - epoch / 20) ** 0.9,
        "seconds": 2.0,
        "terms": terms,
    }
