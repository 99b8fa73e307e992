"""The writer of a predictor's label maps: what its labels mean, and which model it is."""

from __future__ import annotations

from pathlib import Path

from medkd.io.writing.dicom_seg import SegmentationKind
from medkd.io.writing.label_maps import LabelMapWriter
from medkd.io.writing.maker import Maker
from medkd.io.writing.terms import terms_with
from medkd.runtime.prediction import CasePredictor


def writer_of(
    predictor: CasePredictor, name: str, *, kind: SegmentationKind | None = None, terms: Path | None = None
) -> LabelMapWriter:
    """Knows the names, colours and terms of the predictor's labels.

    Args:
        predictor: gives labels, data set and weights.
        name: of the model, for DICOM objects; no path.
        kind: of DICOM-SEG; None is ``"binary"``.
        terms: the user's own file of terms.

    Raises:
        DataError: the file is of another form, or the kind has no place for overlapping regions.
    """
    digests = predictor.digests()
    return LabelMapWriter.of(
        predictor.labels,
        terms_with(terms, [structure for structure, _ in predictor.labels.foreground]),
        dataset=predictor.plan.dataset,
        kind=kind or "binary",
        maker=Maker(name, digests[0] if digests else ""),
    )
