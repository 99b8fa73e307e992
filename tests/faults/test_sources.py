"""Mutated downloads of every format: what is untouched is converted as before, what is touched is named or refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion import CONVERTERS, ConversionOptions
from dataset_conversion.report import ConversionReport
from medkd.core.errors import MedkdError
from tests.dataset_conversion import own_trees, task_trees, test_dicom, test_nnunet_raw, trees
from tests.dataset_conversion.radiograph_trees import make_fracatlas, make_graz
from tests.dataset_conversion.test_btcv import monai_json
from tests.faults.mutations import mutate
from tests.faults.tally import Tally, mutations

_COUNTED = re.compile(r"\b\d+ (images|of them|of no image|rows|cases|that|lines|other)")
"""Many cases at once are named by their number and the first of them."""


@dataclass(frozen=True)
class Source:
    """A format, a sound tree of it and how to convert it.

    Attributes:
        format: name of the converter.
        make: writes the tree into a folder and returns what is to be given to the converter.
        settings: options of the format; ``{}`` is the folder.
        labels: names of the labels, where the format wants them.
    """

    format: str
    make: Callable[[Path], Path]
    settings: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


def _own(kind: str) -> Callable[[Path], Path]:
    return lambda folder: own_trees.make(kind, folder / "own", own_trees.PARTS)


def _btcv(folder: Path) -> Path:
    source = trees.make_btcv(folder / "btcv", numbers=(1, 2, 10, 21, 35))
    monai_json(folder / "split.json", (1, 2, 10, 21))
    return source


def _dicom(folder: Path) -> Path:
    for number in range(3):
        label = folder / "labels" if number < 2 else None
        test_dicom.make(folder / "scans", f"p{number}", seed=number, patient=f"P{number}", label=label)
    return folder / "scans"


def _graz(folder: Path) -> Path:
    source = make_graz(folder / "graz", patients=3)
    stems = [row.split(",")[0] for row in (source / "dataset.csv").read_text().splitlines()[1:]]
    for part, chosen in {"train": stems[:2], "valid": stems[2:4], "test": stems[4:]}.items():
        (folder / f"{part}_data.csv").write_text("\n".join(["filestem", *chosen]))
    return source


SOURCES = {
    "yolo": Source("yolo", _own("yolo")),
    "coco": Source("coco", _own("coco")),
    "voc": Source("voc", _own("voc")),
    "msd": Source("msd", lambda folder: task_trees.make_task(folder / "Task01_Test")),
    "plain folder": Source("msd", lambda folder: task_trees.make_plain(folder / "plain"), labels=("a", "b")),
    "nnunet": Source("nnunet", lambda folder: trees.make_nnunet(folder, cases=3)),
    "nnunet v1": Source("nnunet", test_nnunet_raw.make_version_1),
    "btcv": Source("btcv", _btcv, {"split": "{}/split.json"}),
    "word": Source("word", lambda folder: trees.make_word(folder / "word", 2, 1, 1)),
    "brats": Source("brats", lambda folder: trees.make_brats(folder / "brats", 2)),
    "brats 2021": Source("brats", lambda folder: trees.make_brats(folder / "brats", 2, year=2021)),
    "dicom": Source("dicom", _dicom, {"label-folder": "{}/labels"}, ("a", "b")),
    "fracatlas": Source("fracatlas", make_fracatlas),
    "grazpedwri": Source("grazpedwri", _graz, {"split": "{}"}),
    "acdc": Source("acdc_h5", lambda folder: trees.make_acdc(folder / "acdc", 3)),
    "cityscapes": Source("cityscapes", lambda folder: trees.make_cityscapes(folder / "cityscapes", 3, 1, 1)),
    "synapse": Source("synapse_slices", lambda folder: trees.make_synapse(folder / "synapse", (5, 6), (1,), 16)),
}


def convert(source: Source, tree: Path, given: Path, target: Path) -> ConversionReport:
    settings = {name: text.format(tree) for name, text in source.settings.items()}
    options = ConversionOptions(settings=settings, labels=source.labels, workers=1)
    return CONVERTERS[source.format].convert(given, target, options)


@dataclass(frozen=True)
class Case:
    """What became of a case: its part (``Tr``, ``val``, ``Ts``), and digests of its images and of its label."""

    part: str
    images: str
    label: str


def written(target: Path) -> dict[str, Case]:
    """Case → what was written of it."""
    splits = target / "splits_final.json"
    published = splits.exists() and len(json.loads(splits.read_text())) == 1
    val = json.loads(splits.read_text())[0]["val"] if published else []
    images: dict[str, list[Path]] = {}
    for path in sorted(target.glob("images*/*")):
        case = re.sub(r"_\d{4}\..*$", "", path.name)
        images.setdefault(case, []).append(path)
    found = {}
    for case, paths in images.items():
        part = "val" if case in val else paths[0].parent.name[-2:]
        labels = [path for path in target.glob(f"labels*/{case}.*") if path.name.split(".", 1)[0] == case]
        found[case] = Case(part, _digest(paths), _digest(labels))
    return found


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".json":  # without the intensity window, which is the image's
            stated = json.loads(content)
            content = json.dumps([stated["boxes"], stated["names"]]).encode()
        digest.update(content)
    return digest.hexdigest()[:8]


def said(report: ConversionReport) -> list[str]:
    """All that a report says, sentence by sentence."""
    texts = [finding.text() for finding in (*report.problems, *report.warnings)]
    texts += [*report.notes, *report.left_out]
    for members in report.lists.values():
        texts += members
    return texts


def unheard(
    sound: dict[str, Case], found: dict[str, Case], sentences: list[str], touched: tuple[str, ...]
) -> list[str]:
    """Cases that became something else, or nothing, without a word."""
    text = "\n".join(sentences)
    counted = any(_COUNTED.search(sentence) for sentence in sentences)
    if counted or any(name in text for name in touched):
        return []
    lost = []
    kept = {(case.images, case.label) for case in found.values()}
    for name, case in sound.items():
        is_there = found.get(name) == case or (name not in found and (case.images, case.label) in kept)
        if not is_there and name not in text:
            lost.append(f"{name}: {case} became {found.get(name)}")
    return lost


def _files(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_file() and not path.name.startswith("."))


def outcome(source: Source, tree: Path, given: Path, target: Path) -> ConversionReport | str | None:
    """The report; None where the conversion was refused in one sentence; else what went wrong."""
    try:
        return convert(source, tree, given, target)
    except MedkdError as error:
        return None if len(str(error)) < 3000 else f"a sentence of {len(str(error))} characters"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", SOURCES)
def test_a_mutated_download_loses_nothing_without_a_word(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = SOURCES[name]
    pristine, tree, target = tmp_path / "pristine", tmp_path / "tree", tmp_path / "Dataset001_X"
    given = tree / source.make(pristine).relative_to(pristine)
    shutil.copytree(pristine, tree)
    first = convert(source, tree, given, target)
    sound, known = written(target), set(said(first))
    assert sound
    files = [path.relative_to(tree) for path in _files(tree)]
    rng = np.random.default_rng(sorted(SOURCES).index(name))
    tally = Tally(f"sources: {name}", 0, [])
    for _ in range(mutations(150, 6)):
        shutil.rmtree(tree)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(pristine, tree)
        path = files[int(rng.integers(len(files)))]
        done = mutate(tree / path, rng)
        found = outcome(source, tree, given, target)
        wrong = found if isinstance(found, str) else ""
        if isinstance(found, ConversionReport):
            now = written(target)
            if "bytes changed" in done and path.suffix in (".jpg", ".png"):  # other grey values, which nobody notices
                now = {case: replace(there, images=sound[case].images) for case, there in now.items() if case in sound}
            sentences = [text for text in said(found) if text not in known]
            touched = (path.name.split(".", 1)[0], *re.findall(r"renamed to ([^.]+)", done))
            wrong = "; ".join(unheard(sound, now, sentences, touched)[:3])
        tally.check(not wrong, f"{path}, {done}: {wrong}")
    tally.finish(request)
