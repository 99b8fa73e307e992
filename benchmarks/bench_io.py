"""Where the time of reading and writing goes, beside nibabel and SimpleITK: ``python benchmarks/bench_io.py [--size
300]``.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from medkd.core.geometry import Geometry
from medkd.io.volumes import read_geometry, read_label, read_volume, write_volume


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Shortest of several runs, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    """Print a table for a noisy CT-like volume and a label map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="voxels along x and y; half of it along z")
    size = parser.parse_args().size
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(size // 2, size, size)).astype(np.float32), 6)
    scan = (1000 * smooth / smooth.std() + rng.normal(0, 12, smooth.shape)).astype(np.int16)
    label = (smooth > smooth.std()).astype(np.uint8)
    geometry = Geometry.from_spacing(scan.shape, (2.0, 0.8, 0.8))
    with tempfile.TemporaryDirectory() as folder:
        image, mask, out = Path(folder) / "image.nii.gz", Path(folder) / "label.nii.gz", Path(folder) / "out.nii.gz"
        write_volume(image, scan, geometry)
        write_volume(mask, label, geometry)
        itk = sitk.GetImageFromArray(scan)
        nifti = nib.Nifti1Image(scan.T, geometry.matrix)
        rows = {
            "read scan as float32   medkd": lambda: read_volume(image),
            "                       nibabel, float32": lambda: np.asanyarray(nib.load(image).dataobj).astype(
                np.float32
            ),
            "                       nibabel, get_fdata": lambda: nib.load(image).get_fdata(),
            "                       SimpleITK, float32": lambda: sitk.GetArrayFromImage(
                sitk.ReadImage(str(image))
            ).astype(np.float32),
            "read label             medkd": lambda: read_label(mask),
            "read geometry          medkd": lambda: read_geometry(image),
            "write scan             medkd": lambda: write_volume(out, scan, geometry),
            "                       nibabel, write": lambda: nib.save(nifti, out),
            "                       SimpleITK, write": lambda: sitk.WriteImage(itk, str(out), True),
            "write label            medkd": lambda: write_volume(out, label, geometry),
        }
        print(f"{scan.shape} int16, {image.stat().st_size / 1e6:.1f} MB compressed; best of 5")
        for name, function in rows.items():
            print(f"{name:<45}{best(function):9.1f} ms")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
