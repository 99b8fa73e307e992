"""The one writer of all converters: raw data sets in nnU-Net v2's layout, case by case, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from dataset_conversion.findings import has_errors, problem, warning
from dataset_conversion.registry import ConversionOptions
from dataset_conversion.report import ConversionReport
from dataset_conversion.state import Entry, State
from medkd.core.boxes import IMAGE_ENDINGS
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import DataError, MedkdError
from medkd.core.files import atomic_path, check_file, sweep, temporary_prefix, write_json
from medkd.core.patients import named_patients
from medkd.io.checks import Finding
from medkd.io.radiographs import write_png
from medkd.io.verify import worker_count
from medkd.io.volumes import Volume, file_ending, write_volume

Mode = Literal["copy", "link", "move"]
Split = Literal["Tr", "Ts", "Un"]
_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
Piece = Path | Volume | np.ndarray | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CaseContent:
    """One case, ready to be written.

    Attributes:
        images: per channel, a file to take over as it is, or voxels to write, or (detection) pixels to write as PNG.
        label: the label map: a file, voxels, or (detection) the boxes as a JSON object.
        values: label values present.
        findings: what was noticed; an error leaves the case out.
        marks: what is remarkable about the case without being wrong (``rotated``); the report lists the cases of each
            mark.
        digest: fingerprint of the contents, where duplicates are looked for.
    """

    images: tuple[Piece, ...]
    label: Piece | None = None
    values: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()
    marks: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class CaseJob:
    """A case to convert.

    Attributes:
        case: case id in the new data set.
        sources: the files it is made from; an unchanged case is not made again.
        prepare: reads and checks the sources; called in a thread; a :class:`DataError` leaves the case out.
        recipe: whatever else the result depends on, as text (label mapping, options).
        split: ``Tr`` (training) or ``Ts`` (test).
        patient: patient id where known; splits are grouped by it, and intervals of test scores.
    """

    case: str
    sources: tuple[Path, ...]
    prepare: Callable[[], CaseContent]
    recipe: str = ""
    split: Split = "Tr"
    patient: str | None = None


class RawWriter:
    """Writes ``imagesTr``, ``labelsTr``, ``imagesTs``, at the end ``dataset.json``, and the conversion report.

    Args:
        folder: ``DatasetNNN_Name`` to write; continued when it exists.
        format: name of the converter.
        source: what is converted; file paths in the log are relative to it.
        options: of the conversion.
        mode: ``copy`` files that can be taken over as they are, ``link`` to them, or ``move`` them (only for files of
            our own); None is the options'.
        label: how the source is called in reports, where it differs (an archive).
        file_ending: of the images.

    Raises:
        DataError: the folder belongs to another conversion or cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        format: str,
        source: Path,
        options: ConversionOptions,
        *,
        mode: Mode | None = None,
        label: Path | None = None,
        file_ending: str = ".nii.gz",
    ) -> None:
        self.folder = Path(folder)
        self.mode = mode or options.mode
        self._options = options
        self.file_ending = file_ending
        self._source = Path(source).absolute()
        for name in ("", *_FOLDERS):
            sweep(self.folder / name)
        called = Path(label or source).absolute()
        self._state = State.open(self.folder, format, str(called))
        self._entries: dict[str, Entry] = {}
        self._patients: dict[str, str] = {}
        self._problems: list[Finding] = []
        self._warnings: list[Finding] = []
        self._converted: list[str] = []
        self._unchanged: list[str] = []
        self._left_out: list[str] = []
        self._lists: dict[str, tuple[str, ...]] = {}

    def report_findings(self, findings: Iterable[Finding]) -> None:
        """Add findings of the converter; an error that names a case counts this case as left out."""
        for finding in findings:
            (self._problems if finding.error else self._warnings).append(finding)
            if finding.error and finding.case and finding.case not in self._left_out:
                self._left_out.append(finding.case)

    def report_list(self, name: str, members: Iterable[str]) -> None:
        """Add a named list to the report, for example of the files that a download should have had; an empty one is
        left out.
        """
        if listed := tuple(sorted(members)):
            self._lists[name] = listed

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What is in the data set by now: ``Tr/case`` or ``Ts/case`` → its entry."""
        return dict(sorted(self._entries.items()))

    @property
    def patients(self) -> Mapping[str, str]:
        """Training or test case → patient, where known, of the cases written by now."""
        return dict(self._patients)

    def convert(self, jobs: Sequence[CaseJob]) -> None:
        """Convert the cases in parallel; bad ones are recorded and left out.

        Raises:
            DataError: the output cannot be written (read-only, full disk); finished cases stay, the current one is
                removed.
        """
        jobs = self._without_duplicates(jobs)
        scans: list[Path] = []
        for job in jobs:
            scans += filter(file_ending, job.sources)
        pool = ThreadPoolExecutor(self._options.workers or worker_count(scans))
        try:
            futures = [pool.submit(self._run, job) for job in jobs]
            finished = as_completed(futures)
            for future in tqdm(finished, total=len(jobs), desc="converting", unit="case", disable=None):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    @property
    def training_cases(self) -> tuple[str, ...]:
        """The training cases that are written by now, sorted."""
        cases = []
        for key in self._entries:
            part, _, case = key.partition("/")
            if part == "Tr":
                cases.append(case)
        return tuple(sorted(cases))

    def finish(self, description: DatasetDescription, notes: Iterable[str] = ()) -> ConversionReport:
        """Write ``dataset.json`` (with the number of training cases and the patients) and the report.

        Where no training case (nor a scan without labels) could be converted there is no ``dataset.json``.
        """
        training = len(self.training_cases)
        unlabelled = any(key.startswith("Un/") for key in self._entries)
        for key in set(self._state.entries) - set(
            self._entries
        ):  # of an earlier run; the source or the options have changed
            self._state.discard(key)
        marked: dict[str, list[str]] = {}
        for key, entry in self._entries.items():
            for mark in entry.marks:
                marked.setdefault(mark, []).append(key[3:])
        for mark, cases in sorted(marked.items()):
            self.report_list(mark, cases)
        report = ConversionReport(
            dataset=self.folder.name,
            format=self._state.format,
            source=self._state.source,
            converted=tuple(sorted(self._converted)),
            unchanged=tuple(sorted(self._unchanged)),
            left_out=tuple(sorted(self._left_out)),
            problems=tuple(sorted(self._problems, key=_place_of)),
            warnings=tuple(sorted(self._warnings, key=_place_of)),
            notes=tuple(notes),
            lists=self._lists,
        )
        report.save(self.folder)
        if training or unlabelled:
            stated = {**description.patients, **self._patients}
            patients = named_patients(stated, [key.partition("/")[2] for key in self._entries])
            description = replace(
                description, num_training=training, file_ending=self._common_ending(), patients=patients
            )
            description.save(self.folder / "dataset.json")
        else:
            (self.folder / "dataset.json").unlink(missing_ok=True)
        return report

    def _run(self, job: CaseJob) -> None:
        key = f"{job.split}/{job.case}"
        try:
            signature = self._signature(job)
            entry = self._state.finished(key, signature)
            content = CaseContent(images=()) if entry is not None else self._prepare(job)
        except DataError as error:
            entry, signature = None, ""
            content = CaseContent(images=(), findings=(_unreadable(job.case, error),))
        except MedkdError:
            raise
        except Exception as error:
            raise RuntimeError(f"converting case {job.case} failed: {error}") from error
        if entry is not None:
            self._accept(job, key, entry, self._unchanged)
        elif has_errors(content.findings):
            self._state.discard(key)
            self.report_findings(content.findings)
            if job.case not in self._left_out:
                self._left_out.append(job.case)
        else:
            self._write(job, key, signature, content)

    def _prepare(self, job: CaseJob) -> CaseContent:
        content = job.prepare()
        if self._options.reorient is None or has_errors(content.findings):
            return content
        from dataset_conversion.reorient import reorient

        return reorient(content, self._options.reorient)

    def _write(self, job: CaseJob, key: str, signature: str, content: CaseContent) -> None:
        earlier = self._state.entries.get(key)
        files = self._place_all(job, content)
        for name in earlier.files if earlier else ():
            if name not in files:  # the same image under another ending
                (self.folder / name).unlink(missing_ok=True)
        entry = Entry(
            case=key,
            signature=signature,
            files=files,
            values=content.values,
            warnings=content.findings,
            marks=content.marks,
            digest=content.digest,
        )
        self._state.add(entry)
        self._accept(job, key, entry, self._converted)

    def _accept(self, job: CaseJob, key: str, entry: Entry, cases: list[str]) -> None:
        cases.append(job.case)
        self._entries[key] = entry
        self._warnings += entry.warnings
        if job.patient is not None:
            self._patients[job.case] = job.patient

    def _place_all(self, job: CaseJob, content: CaseContent) -> dict[str, int]:
        """Write all files of a case, or none."""
        placed: dict[str, int] = {}
        pieces: dict[str, Piece] = {}
        for channel, piece in enumerate(content.images):
            pieces[f"images{job.split}/{job.case}_{channel:04d}{self._ending(piece)}"] = piece
        if content.label is not None:
            ending = ".json" if isinstance(content.label, Mapping) else self.file_ending
            pieces[f"labels{job.split}/{job.case}{ending}"] = content.label
        try:
            for name, piece in pieces.items():
                self._place(piece, self.folder / name)
                placed[name] = (self.folder / name).stat().st_size
        except BaseException:
            for name in placed:
                (self.folder / name).unlink(missing_ok=True)
            raise
        return placed

    def _ending(self, piece: Piece) -> str:
        """Of an image file: volumes all have the data set's, radiographs their own, so that JPEGs need not become
        PNGs.
        """
        if isinstance(piece, np.ndarray):
            return ".png"
        own = piece.suffix.lower() if isinstance(piece, Path) else ""
        if own not in IMAGE_ENDINGS:
            return self.file_ending
        return ".jpg" if own == ".jpeg" else own

    def _common_ending(self) -> str:
        """The ending of most images; only radiographs have more than one."""
        endings: Counter[str] = Counter()
        for entry in self._entries.values():
            endings.update(Path(name).suffix for name in entry.files if name.startswith("images"))
        known = [ending for ending in sorted(endings) if ending in IMAGE_ENDINGS]
        return max(known, key=endings.__getitem__, default=self.file_ending)

    def _place(self, piece: Piece, target: Path) -> None:
        if isinstance(piece, Volume):
            write_volume(target, piece.array, piece.geometry)
        elif isinstance(piece, np.ndarray):
            write_png(target, piece)
        elif isinstance(piece, Mapping):
            write_json(target, piece)
        elif self.mode == "copy":
            with atomic_path(target) as temporary:
                shutil.copyfile(piece, temporary)
        else:
            _link_or_move(piece, target, self.mode)

    def _signature(self, job: CaseJob) -> str:
        stats = []
        for path in job.sources:
            if not path.is_dir():  # a DICOM series
                check_file(path)
            stat = path.stat()
            name = os.path.relpath(path.absolute(), self._source)
            stats.append([name, stat.st_size, stat.st_mtime_ns])
        mode = "link" if self.mode == "link" else "copy"
        turned = [self._options.reorient] if self._options.reorient else []
        return json.dumps([stats, job.recipe, mode, *turned])

    def _without_duplicates(self, jobs: Sequence[CaseJob]) -> list[CaseJob]:
        unique: dict[tuple[str, str], CaseJob] = {}
        for job in jobs:
            if unique.setdefault((job.split, job.case), job) is not job:
                expected, found = "each case once", "the case a second time"
                self._warnings.append(warning(job.case, job.sources[0], expected, found, "the first one was used"))
        return list(unique.values())


def _place_of(finding: Finding) -> tuple[str, str]:
    return finding.case, finding.file


def _unreadable(case: str, error: DataError) -> Finding:
    return problem(
        case, "", "a case that can be read", str(error).rstrip("."), "mend or replace the file, then convert again"
    )


def _link_or_move(source: Path, target: Path, mode: Mode) -> None:
    """Not by :func:`atomic_path`: that would set the permissions of the link's target, which is the user's file."""
    temporary = target.with_name(f"{temporary_prefix()}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "move":
            os.replace(source, target)
            return
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(source.resolve())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"Cannot write {target}: {error.strerror or error}; convert with --copy, or choose another root."
        ) from error
