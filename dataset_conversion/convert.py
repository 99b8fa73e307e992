"""Convert and verify in one call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dataset_conversion.registry import CONVERTERS, ConversionOptions
from dataset_conversion.report import REPORT_FILE, ConversionReport
from medkd.core.errors import DataError
from medkd.core.paths import Root, new_dataset_name
from medkd.io.orientation import check_code
from medkd.io.verify import REPORT_FILE as VERIFICATION_FILE
from medkd.io.verify import Report
from medkd.tasks import task_of_dataset


@dataclass(frozen=True)
class Converted:
    """A finished conversion: the raw folder, what was done, and what the check of the result says."""

    folder: Path
    conversion: ConversionReport
    verification: Report

    @property
    def ok(self) -> bool:
        """Whether every case was converted and passed the check."""
        return self.conversion.ok and self.verification.ok


def convert_dataset(
    format: str,
    source: Path,
    number: int,
    *,
    name: str | None = None,
    root: str | Path | None = None,
    options: ConversionOptions | None = None,
) -> Converted:
    """Convert ``source`` to ``<root>/raw/DatasetNNN_Name`` and verify the result; running it again continues.

    Args:
        format: a name in :data:`~dataset_conversion.registry.CONVERTERS`.
        source: the data as downloaded; never changed.
        number: data set number, 1 to 999.
        name: data set name; None takes it from the source.
        root: medkd's root, see :meth:`medkd.core.paths.Root.resolve`.
        options: names of labels and channels, copying or linking, the axis code to turn scans to.

    Raises:
        DataError: unknown format, unusable source, number in use by another data set, unwritable output, or not one
            case could be converted.
    """
    converter = CONVERTERS[format]
    options = options or ConversionOptions()
    if options.reorient is not None:
        options = replace(options, reorient=check_code(options.reorient))
    raw = Root.resolve(root).raw
    full_name = new_dataset_name(number, name or converter.name(Path(source)))
    for other in raw.glob(f"Dataset{number:03d}_*"):
        if other.name != full_name:
            raise DataError(
                f"Number {number} is taken by {other}; choose another number, or --name to continue that one."
            )
    folder = raw / full_name
    report = converter.convert(Path(source), folder, options)
    if not (folder / "dataset.json").exists():
        reason = report.problems[0].text() if report.problems else "there are no training cases."
        raise DataError(
            f"No case of {source} could be converted (see {folder / REPORT_FILE}). The first problem: {reason}"
        )
    task = task_of_dataset(full_name, root)
    verification = task.verify(folder)
    verification.save(folder / VERIFICATION_FILE)
    if task.contact_sheet is not None:
        task.contact_sheet(folder, report, (*verification.problems, *verification.warnings))
    return Converted(folder, report, verification)
