"""ACDC cardiac cine MR as slices and volumes in HDF5.

Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-structures Segmentation and Diagnosis, IEEE
Transactions on Medical Imaging 37(11), 2018, doi:10.1109/TMI.2018.2837502.
"""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.registry import CONVERTERS, ConversionOptions, Converter
from dataset_conversion.report import ConversionReport
from dataset_conversion.slices import convert_slices
from medkd.core.labels import LabelSpec

GUIDE = """\
ACDC cardiac MR, preprocessed: 100 patients, end diastole and end systole of each, 3 structures.
download:  the original: https://www.creatis.insa-lyon.fr/Challenge/acdc
           as .h5: https://github.com/HiLab-git/SSL4MIS (data/ACDC); a few hundred MB;
           needs h5py: pip install 'medkd[h5]'
licence:   that of the challenge: research, with citation
source:    the folder with .h5 (or .npz) files that hold the arrays image and label, anywhere below it:
             patient001_frame01.h5                 all slices (y, x) of one phase, or
             patient001_frame01_slice_0.h5         one slice; the volume is used where both are there
             case001_slice0.h5, case_001_sliceED_0.npz, case_001_volume_ED.npz     other copies
           Folders named test... hold test cases, val... the validation cases of fold 0; train.list, val.list and
           test.list say the same.
result:    one volume per phase; both phases of a patient share a fold. No voxel size is known, so 1 mm is written (see
           the report).
labels:    1 right ventricle, 2 myocardium, 3 left ventricle."""

STRUCTURES = ("right_ventricle", "myocardium", "left_ventricle")


def convert(source: Path, folder: Path, options: ConversionOptions) -> ConversionReport:
    """Convert the slices and volumes; see :func:`dataset_conversion.slices.convert_slices`."""
    return convert_slices("acdc_h5", source, folder, options, LabelSpec.from_names(STRUCTURES), "MR")


CONVERTERS.register("acdc_h5")(
    Converter("ACDC cardiac MR as HDF5 slices or volumes, 3 structures", GUIDE, convert, lambda _: "ACDC")
)
