"""Where the time and the peak memory of preprocessing go: load, crop, normalise, resample (against scikit-image),
store.

    python benchmarks/bench_preprocessing.py                          a synthetic CT of 200 x 512 x 512 voxels, 20
    organs python benchmarks/bench_preprocessing.py --size 100 256 256
    python benchmarks/bench_preprocessing.py --data RAW_DATASET       cases of a raw data set, planned on the fly

Writes benchmarks/results/preprocessing.json. Memory is what NumPy allocates during a phase beyond what was there before
it.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy
import skimage
from skimage.transform import resize
from threadpoolctl import threadpool_limits

from medkd.core.dataset import CaseFiles, DatasetDescription, training_cases
from medkd.core.files import read_json, write_json
from medkd.core.geometry import Geometry
from medkd.core.labels import LabelSpec
from medkd.core.plan import Architecture, Configuration, IntensityStatistics, Plan
from medkd.io.volumes import read_image, read_label, write_volume
from medkd.preprocessing.cropping import bounding_box, box_slices, fill_holes, nonzero_mask
from medkd.preprocessing.fingerprint import make_fingerprint
from medkd.preprocessing.normalisation import normalise
from medkd.preprocessing.pipeline import Preprocessed
from medkd.preprocessing.planner import make_plan
from medkd.preprocessing.properties import CaseProperties
from medkd.preprocessing.resampling import axis_matrix, resample_image, resample_label, resampled_shape
from medkd.preprocessing.store import CaseStore, describe_source

RESULTS = Path(__file__).parent / "results" / "preprocessing.json"


@dataclass
class Phases:
    """Wall seconds, processor seconds (less disturbed by other programs) and peak allocation of named phases."""

    wall: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure one phase; repeated phases add up in time."""
        tracemalloc.reset_peak()
        before, wall, processor = tracemalloc.get_traced_memory()[0], time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0) + time.perf_counter() - wall
        self.processor[name] = self.processor.get(name, 0) + time.process_time() - processor
        self.peak_mib[name] = max(self.peak_mib.get(name, 0), (tracemalloc.get_traced_memory()[1] - before) / 2**20)

    def table(self) -> str:
        """One line per phase."""
        head = f"{'phase':<26}{'wall s':>9}{'processor s':>13}{'peak MiB':>10}"
        lines = [f"{n:<26}{self.wall[n]:>9.2f}{self.processor[n]:>13.2f}{self.peak_mib[n]:>10.0f}" for n in self.wall]
        return "\n".join([head, *lines])


def synthetic_case(folder: Path, size: tuple[int, ...], organs: int = 20) -> CaseFiles:
    """A body of ellipsoids in air, in HU, with voxels of 1.6 x 0.8 x 0.8 mm."""
    rng = np.random.default_rng(0)
    grid = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in size], indexing="ij", sparse=True)
    image = rng.normal(0, 20, size).astype(np.float32) - 1000
    image += 1050 * (grid[1] ** 2 / 0.5 + grid[2] ** 2 / 0.8 < 1).astype(np.float32)
    label = np.zeros(size, dtype=np.int16)
    for organ in range(1, organs + 1):
        centre, radius = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.08, 0.25, 3)
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) < 1
        label[inside] = organ
        image[inside] += 10 * organ
    geometry = Geometry.from_spacing(size, (1.6, 0.8, 0.8))
    paths = folder / "case_0000.nii.gz", folder / "case.nii.gz"
    write_volume(paths[0], image.astype(np.int16), geometry)
    write_volume(paths[1], label, geometry)
    return CaseFiles("case", (paths[0],), paths[1])


def synthetic_plan() -> Plan:
    """Resample to 1.5 mm."""
    unet = Architecture(
        patch_size=(64,) * 3,
        batch_size=2,
        features_per_stage=(32, 64),
        kernel_sizes=((3,) * 3,) * 2,
        strides=((1,) * 3, (2,) * 3),
        blocks_encoder=(2, 2),
        blocks_decoder=(2,),
    )
    configuration = Configuration(
        name="3d_fullres",
        spacing=(1.5,) * 3,
        median_shape=(64,) * 3,
        normalization=("ct",),
        use_mask_for_norm=(False,),
        batch_dice=False,
        architectures={"plain_unet": unet},
    )
    return Plan(
        dataset="Dataset999_Bench",
        transpose=(0, 1, 2),
        intensities=(
            IntensityStatistics(
                mean=60, median=60, std=80, min=-900, max=400, percentile_00_5=-150, percentile_99_5=300
            ),
        ),
        configurations={"3d_fullres": configuration},
    )


def measure(
    files: CaseFiles, plan: Plan, configuration: Configuration, store: CaseStore, phases: Phases, reference: bool
) -> None:
    """Run the steps of the pipeline one by one; ``reference`` also resamples with scikit-image."""
    if files.label is None:
        raise SystemExit(f"{files.case} has no label")
    with phases("load"):
        image, geometry = read_image(files.images, files.case)
        label = read_label(files.label).array
    image = image.transpose(0, *(axis + 1 for axis in plan.transpose))
    label = label.transpose(plan.transpose)
    spacing = tuple(geometry.spacing[axis] for axis in plan.transpose)
    with phases("crop"):
        mask = nonzero_mask(image)
        box = bounding_box(mask)
        image, label, mask = (
            image[(slice(None), *box_slices(box))],
            label[box_slices(box)],
            fill_holes(mask[box_slices(box)]),
        )
    with phases("normalise"):
        for i, channel in enumerate(image):
            inside = mask if configuration.use_mask_for_norm[i] else None
            normalise(channel, configuration.normalization[i], plan.intensities[i], inside)
    target = (*spacing[: 3 - configuration.rank], *configuration.spacing)
    shape = resampled_shape(image.shape[1:], spacing, target)
    axis_matrix.cache_clear()
    with phases("resample image"):
        small = resample_image(image, shape, spacing, target, configuration.resampling)
    with phases("resample label"):
        small_label = resample_label(label, shape, spacing, target, configuration.resampling)
    if reference and shape != image.shape[1:]:
        compare_with_skimage(image, label, small, phases)
    content = Preprocessed(small, small_label, CaseProperties(files.case, geometry, box, shape))
    labels = LabelSpec.from_names([str(i) for i in range(1, max(int(label.max()), 1) + 1)])
    with phases("hash of the sources"):
        sources = [describe_source(path) for path in (*files.images, files.label)]
    with phases("store"):
        store.write(files.case, content, labels, sources, "bench")


def compare_with_skimage(image: np.ndarray, label: np.ndarray, small: np.ndarray, phases: Phases) -> None:
    """Resample with scikit-image too, and print how far our image is from its."""
    shape = small.shape[1:]
    channels = []
    with phases("(skimage image)"):
        for channel in image:
            channels.append(resize(channel.astype(np.float64), shape, order=3, mode="edge", anti_aliasing=False))
    expected = np.stack(channels)
    difference = np.abs(small - expected).max() / np.ptp(expected)
    print(f"largest difference to scikit-image: {difference:.1e} of the range")
    with phases("(skimage label)"):
        for value in np.unique(label):
            resize((label == value).astype(np.float64), shape, order=1, mode="edge", anti_aliasing=False)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-image": skimage.__version__,
    }


def main() -> None:
    """Measure, print and write the results."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--size", type=int, nargs=3, default=[200, 512, 512], help="voxels (z, y, x) of the synthetic CT"
    )
    arguments.add_argument("--data", type=Path, help="a raw data set instead")
    arguments.add_argument("--cases", type=int, default=20, help="cases of the raw data set")
    arguments.add_argument(
        "--no-reference", action="store_true", help="leave scikit-image out (it takes most of the time)"
    )
    options = arguments.parse_args()
    phases = Phases()
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(limits=1):  # as medkd's workers run
        if options.data:
            description = DatasetDescription.load(options.data / "dataset.json")
            with phases("fingerprint (all cases)"):
                fingerprint = make_fingerprint(options.data, description)
            with phases("plan"):
                plan = make_plan(options.data.name, fingerprint, description)
            files = training_cases(options.data, description)[: options.cases]
        else:
            plan, files = synthetic_plan(), [synthetic_case(Path(folder), tuple(options.size))]
        configuration = plan.configuration("3d_fullres" if "3d_fullres" in plan.configurations else "2d")
        for case in files:
            measure(case, plan, configuration, CaseStore(Path(folder) / "store"), phases, not options.no_reference)
    print(phases.table())
    subject = {"data": options.data.name, "cases": len(files)} if options.data else {"synthetic_ct": options.size}
    known = read_json(RESULTS) if RESULTS.exists() else {}
    entry = {
        "seconds": phases.wall,
        "processor_seconds": phases.processor,
        "peak_mib": phases.peak_mib,
        "machine": machine(),
    }
    write_json(RESULTS, {**known, "real" if options.data else "synthetic": {**subject, **entry}})


if __name__ == "__main__":
    main()
