"""Finding a detector that teaches, and checking that it knows the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.core.errors import LeakError, RunError
from medkd.core.run import DETECTION, FINAL, RUN_FILE, SPLIT_FILE
from medkd.core.serial import load, nearest
from medkd.core.splits import Split
from medkd.detection.base import DETECTORS, Detector, DetectorSpec
from medkd.detection.trained import DetectionRun, load_detector, register_detectors
from medkd.detection.weights import load_into, read_detector_weights
from medkd.models.guard import TeacherSource, seen_by, short_name

FILE = "teacher.json"
GIVEN = "given"
"""The only fold of a detector that nobody cross-validated."""

_WEIGHTS = (".pt", ".pth")


@dataclass(frozen=True)
class DetectorFile:
    """``teacher.json`` beside weights that were trained elsewhere: what they do not tell themselves.

    Attributes:
        network: registry name of the detector, ``yolov8l``.
        categories: the classes in order, named as in the data set.
        train: the case ids that it was trained on; an empty list states that none of the data set's cases was among
            them.
        weights: the file, beside the description.
        image_size: side of the input that it was trained with.
        anchor_scale: see :class:`~medkd.detection.plan.DetectionPlan`; a detector with anchors must say it.
    """

    network: str
    categories: tuple[str, ...]
    train: tuple[str, ...]
    weights: str = "best.pt"
    image_size: int = 640
    anchor_scale: float | None = None
    schema: int = 1


@dataclass(frozen=True)
class DetectorSource(TeacherSource[Detector]):
    """What a TEACHER argument names, before one of its folds is chosen.

    Attributes:
        categories: the classes it knows, in order.
        image_size: side of its input.
    """

    categories: tuple[str, ...]
    image_size: int


def find_teacher(text: str, results: Path) -> DetectorSource:
    """The detector that a TEACHER argument names.

    Args:
        text: a run folder, a run's name, a detector with a finished run, or the weights of a detector that was trained
            elsewhere: the file, or its folder, with a ``teacher.json`` (:class:`DetectorFile`).
        results: results folder of the data set.

    Raises:
        RunError: there is no such teacher; the existing runs are named.
    """
    path = Path(text)
    if path.suffix in _WEIGHTS or (path / FILE).is_file():
        return _of_file(path)
    for folder in (path, results / text, results / f"{text}__{DETECTION}"):
        if (folder / RUN_FILE).exists():
            return _of_run(DetectionRun.load(folder))
    known = sorted(p.parent.name for p in results.glob(f"*/{RUN_FILE}")) if results.is_dir() else []
    raise RunError(
        f"Teacher '{text}' is neither a detector trained for {results.name}, nor weights (best.pt) with a teacher.json "
        "beside them."
        f"{nearest(text, known)} Runs found: {', '.join(known) or 'none'}; train it with medkd_train first."
    )


def check_same_classes(source: DetectorSource, categories: Sequence[str]) -> None:
    """Teacher and student must mean the same by their outputs.

    Raises:
        RunError: the names of the classes, or their order, differ.
    """
    theirs, ours = list(source.categories), list(categories)
    if theirs == ours:
        return
    what = "the same classes in another order" if sorted(theirs) == sorted(ours) else "other classes"
    raise RunError(
        f"The teacher {source.path.name} does not fit: it knows {what} ({', '.join(theirs)}) than the data set "
        f"({', '.join(ours)}); train "
        "one for this data set."
    )


def seen_by_start(path: Path, fold: int | str, split: Split) -> frozenset[str]:
    """Every case that weights which a detector starts from have seen, as far as their place tells; they pass the guard
    of teachers.

    Weights in a fold folder of medkd's (also those in ``ultralytics/weights``) have seen what its ``split.json`` says;
    weights beside a ``teacher.json`` what that says; nobody knows about others, for example a backbone from ImageNet,
    which has seen nothing here.

    Args:
        path: the file.
        fold: which is going to be trained.
        split: its cases.

    Raises:
        LeakError: they have seen a case on which the fold is judged.
    """
    seen = _seen_by_file(path)
    overlap = sorted(seen & set(split.val))
    if overlap:
        raise LeakError(
            f"--backbone-weights {path} was trained on {len(overlap)} of the {len(split.val)} cases on which fold "
            f"{fold} is judged, for "
            f"example {overlap[0]}; start from weights that were trained for fold {fold} with the same splits, or that "
            "have not seen them."
        )
    return seen


def _seen_by_file(path: Path) -> frozenset[str]:
    for file in dict.fromkeys((path.absolute(), path.resolve())):
        for folder in file.parents[:3]:  # fold_0, fold_0/ultralytics, fold_0/ultralytics/weights
            if (folder / SPLIT_FILE).is_file():
                return seen_by(folder)
        if (file.parent / FILE).is_file() and (found := load(DetectorFile, file.parent / FILE)).weights == file.name:
            return frozenset(found.train)
    return frozenset()


def _of_run(run: DetectionRun) -> DetectorSource:
    name = short_name(run.path)
    folds = tuple(sorted(p.parent.name.removeprefix("fold_") for p in run.path.glob(f"fold_*/{FINAL}")))
    return DetectorSource(
        name,
        name,
        run.path,
        folds,
        lambda fold: seen_by(run.fold(fold)),
        lambda fold: load_detector(run, fold),
        run.plan.categories,
        run.spec.image_size,
    )


def _of_file(path: Path) -> DetectorSource:
    folder = (path if path.is_dir() else path.parent).absolute()
    if not (folder / FILE).is_file():
        raise RunError(
            f"{path} does not say which images it was trained on, so nobody knows whether it may teach; put a {FILE} "
            "beside it, like "
            '{"network": "yolov8l", "categories": ["fracture"], "train": ["case_1", …], "weights": "'
            + path.name
            + '"}.'
        )
    found = load(DetectorFile, folder / FILE)
    file = folder / found.weights if path.is_dir() else path.absolute()
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RunError(
            f"{folder / FILE}: the weights '{found.weights}' lie outside of the folder; put them beside the "
            "description."
        )
    if file.name != Path(found.weights).name:
        raise RunError(f"{folder / FILE} describes {found.weights}, not {file.name}; correct 'weights'.")
    register_detectors(found.network)
    spec = DetectorSpec(
        found.network, found.categories, found.image_size, found.anchor_scale or DetectorSpec.anchor_scale
    )
    train = frozenset(found.train)
    return DetectorSource(
        folder.name,
        str(folder),
        folder,
        (GIVEN,),
        lambda _: train,
        lambda _: _load(file, spec, found.anchor_scale is not None),
        found.categories,
        found.image_size,
    )


def _load(file: Path, spec: DetectorSpec, scaled: bool) -> Detector:
    state, names = read_detector_weights(file)
    if names is not None and names != spec.categories:
        raise RunError(
            f"{file} was trained for the classes {', '.join(names)}, but {FILE} says {', '.join(spec.categories)}."
        )
    detector = DETECTORS[spec.name].build(spec)
    if detector.anchors and not scaled:
        raise RunError(
            f"{file.parent / FILE}: {spec.name} has anchors, but 'anchor_scale' is missing; add the side of the "
            "smallest anchor in strides "
            "with which it was trained (of a medkd run it stands in plans.json; as published it is 4)."
        )
    load_into(detector, state, file)
    return detector.eval()
