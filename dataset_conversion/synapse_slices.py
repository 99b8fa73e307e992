"""Synapse multi-organ CT as slices: BTCV's scans reduced to 8 organs, windowed and cut, as TransUNet distributes them.

Chen et al., TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation, arXiv:2102.04306.
"""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.slices import convert_slices
from medkd.core.labels import LabelSpec

GUIDE = """\
Synapse multi-organ CT, preprocessed: 18 training scans as slices, 12 test scans as volumes, 8 organs.
download:  see https://github.com/Beckschen/TransUNet (datasets/README.md); made from BTCV's scans (medkd_convert btcv
           --help); about 3 GB; needs h5py: pip install 'medkd[h5]'
licence:   that of BTCV
source:    the folder with
             train_npz/case0005_slice000.npz     arrays image (values 0 to 1) and label, 512 x 512
             test_vol_h5/case0001.npy.h5         the same, all slices of a scan
result:    one volume per scan; the slices state no voxel size, so 1 mm is written (see the report). Test scans go to
           imagesTs and labelsTs: train fold all for the published comparison, or folds 0-4 of the training scans.
labels:    1 aorta, 2 gallbladder, 3 left kidney, 4 right kidney, 5 liver, 6 pancreas, 7 spleen, 8 stomach, as in the
           published tables; give --labels where your copy differs."""

ORGANS = ("aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach")


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the slices and volumes; see :func:`dataset_conversion.slices.convert_slices`."""
    return convert_slices("synapse_slices", source, folder, options, LabelSpec.from_names(ORGANS), "CT")


CONVERTERS.register("synapse_slices")(
    Converter("Synapse multi-organ CT as 2D slices, 8 organs", GUIDE, convert, lambda _: "SynapseSlices")
)
