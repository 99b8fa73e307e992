"""Detectors as ONNX: a letterboxed radiograph in, boxes, scores and those that survive non-maximum suppression out.

Detectors of both families, with one stage or two; ``detection.json`` says how a radiograph becomes the input and what
the outputs mean (:mod:`medkd.runtime.detection`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medkd import __version__
from medkd.core.checkpoint import weights_digest
from medkd.core.errors import RunError
from medkd.core.files import scratch_folder, write_json, write_text
from medkd.exporting.output import check_output, made_of, make_room, put_in_place
from medkd.models.base import Checkpoint, open_model
from medkd.models.onnx import write_graph
from medkd.runtime.detection import DESCRIPTION, MOST, NETWORK, SCORE, ExportedDetector, write_detector
from medkd.runtime.package import RECORD, digest_of

_PIXELS, _SCORES = 0.05, 1e-3  # by which a box that is found may differ, of rounding
_RAW_PIXELS, _OF_A_SIDE, _OF_A_SCORE = 0.02, 2e-4, 1e-3  # and one of any score
_NO_SCORE, _NO_ROOT = 5e-7, 1e-5  # to which engines compute a sigmoid, and the root of a product with one
_IMAGES = 3  # that both look at
_ALONE = 0.02  # share of boxes that may have no partner: where two overlap as much as the limit, rounding decides


@dataclass(frozen=True)
class DetectorParity:
    """Largest differences between the boxes of the exported detector and those of the original.

    Attributes:
        pixels: of a box's side, in pixels of the input.
        score: of a box's score.
        boxes: that were compared.
        alone: of them without a partner, since rounding decided which of two overlapping boxes is dropped.
        raw: boxes of any score that were compared before any is dropped.
    """

    pixels: float
    score: float
    boxes: int
    alone: int
    raw: int


class Candidates(nn.Module):
    """A detector whose outputs are tensors: boxes ``(B, A, 4)``, scores ``(B, K, A)`` and, of detectors that suppress
    nothing, ``selected`` ``(n, 3)``.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.selects = bool(detector.end_to_end)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, S, S)`` in [0, 1] → boxes in input pixels, scores, and what is selected."""
        boxes, scores = self.detector.candidates(image)  # type: ignore[operator]
        return (boxes, scores, _best(scores)) if self.selects else (boxes, scores)


def _best(scores: Tensor) -> Tensor:
    """Image, class and box of the highest scores of every image."""
    every, anchors = scores.flatten(1), scores.shape[2]
    places = every.topk(min(MOST, every.shape[1])).indices
    images = torch.arange(scores.shape[0]).unsqueeze(1).expand_as(places)
    return torch.stack((images, places // anchors, places % anchors), -1).flatten(0, 1)


def export_detector(
    model: Path | str,
    output: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    overwrite: bool = False,
) -> DetectorParity:
    """Export one fold of a detector to ONNX, and prove that its boxes and scores are the same.

    Args:
        model: run folder of a detector, or its weights.
        output: folder to be made.
        folds: the fold; may be None where there is only one.
        checkpoint: ``"final"`` or ``"best"``.
        overwrite: replace an exported model that is there.

    Raises:
        RunError: there are several folds, the detector cannot be expressed, the output is in use, or the exported
            detector finds other boxes.
    """
    output = Path(output)
    check_output(output, overwrite)
    source = open_model(model, "detection")
    if source.kind == "exported_detector":
        raise RunError(f"{model} is an exported detector already; export the model that it was made from.")
    loaded = source.load(folds, checkpoint=checkpoint)
    if len(loaded.networks) > 1:
        raise RunError(
            f"{model} has the folds {', '.join(loaded.folds)}; an exported detector is one, give it with -f."
        )
    make_room(output)
    with scratch_folder(output.parent) as scratch:
        folder = scratch / "exported"
        folder.mkdir()
        parity = _fill(folder, loaded, made_of(source))
        put_in_place(folder, output)
    return parity


def _fill(folder: Path, loaded: Any, made_from: Mapping[str, str]) -> DetectorParity:
    detector = loaded.networks[0]
    size, graph = detector.spec.image_size, folder / NETWORK
    joined = Candidates(detector).eval()
    outputs = ["boxes", "scores", "selected"] if joined.selects else ["boxes", "scores"]
    single = detector.family == "torchvision"  # whose anchors and proposals are counted in Python
    write_graph(joined, torch.zeros(1 if single else 2, 3, size, size), outputs, graph, single=single)
    if not joined.selects:
        _add_suppression(graph, detector.overlap)
    described = _described(made_from, loaded, digest_of(graph), single)
    write_detector(folder, described)
    parity = _compare(detector, folder)
    write_json(folder / RECORD, {"format": "onnx", "made_from": described.made_from, "parity": asdict(parity)})
    write_text(folder / "README.md", _card(described, parity))
    return parity


def _compare(detector: Any, folder: Path) -> DetectorParity:
    """Let both find boxes in images of noise, through the same door as predictions."""
    size = detector.spec.image_size
    images = torch.rand(_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    exported = open_model(folder, "detection").load().networks[0]
    raw = sum(_compare_raw(detector, exported, image) for image in images.split(1))
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for ours, theirs in zip(detector.detect(images), exported.detect(images), strict=True):
        found.append((abs(len(ours.scores) - len(theirs.scores)), *_apart(ours, theirs)))
    pixels, scores = (np.concatenate([one[place] for one in found]) for place in (1, 2))
    near = (pixels <= _PIXELS) & (scores <= _SCORES)
    alone = int((~near).sum()) + sum(missing for missing, _, _ in found)
    if alone > max(1.0, _ALONE * len(near)):
        raise RunError(
            f"The exported detector finds other boxes than the model ({alone} of {len(near)} boxes in {_IMAGES} images "
            f"of noise, by up to {pixels.max(initial=0):.2g} pixels, scores by {scores.max(initial=0):.2g}); nothing "
            "was exported."
        )
    return DetectorParity(float(pixels[near].max(initial=0)), float(scores[near].max(initial=0)), len(near), alone, raw)


def _compare_raw(detector: Any, exported: Any, image: Tensor) -> int:
    """Compare every box and score of an image ``(1, 3, S, S)``, however low the score: a detector that finds nothing in
    noise is compared as well.

    Returns:
        How many boxes were compared.
    """
    with torch.no_grad():
        ours = [part[0].numpy() for part in detector.candidates(image)]
    theirs = [part[0].numpy() for part in exported.candidates(image)]
    if not all(np.isfinite(part).all() for part in ours):
        raise RunError("The detector gives values that are not finite; export weights that were trained to an end.")
    if detector.two_stage:
        compared, unlike = _by_partners(ours, theirs)
    else:
        compared, unlike = _by_place(ours, theirs, _NO_ROOT if detector.scores_are_roots else _NO_SCORE)
    if unlike or not compared:
        raise RunError(
            f"The exported detector has other boxes or scores than the model before any box is dropped ({unlike} of "
            f"{compared} in an image of noise); nothing was exported."
        )
    return compared


def _by_place(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], nothing: float) -> tuple[int, int]:
    """How many boxes there are, and how many differ, where each has its place; ``nothing`` is what any score may differ
    by.

    A box that only one of both scores is one that rounding put among the best of its level, or among those that are
    wide enough; there may be few of those.
    """
    (boxes, scores), (others, marks) = ours, theirs
    if boxes.shape != others.shape or scores.shape != marks.shape:
        return len(boxes), max(len(boxes), len(others))
    near = np.abs(boxes - others).max(-1) <= _allowed_pixels(boxes)
    same = np.abs(scores - marks) <= np.maximum(nothing, _allowed_score(scores))
    dropped = ~same & (np.minimum(scores, marks) == 0)
    few = dropped.sum() <= max(1.0, _ALONE * np.count_nonzero(scores))
    wrong = ~same & ~dropped if few else ~same
    return len(boxes), int((~near | wrong.any(0)).sum())


def _by_partners(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> tuple[int, int]:
    """How many boxes there are, and how many differ, where they have any order: class by class, in which few may have
    no partner.
    """
    (boxes, scores), (others, marks) = ours, theirs
    compared = unlike = 0
    for own, other in zip(scores, marks, strict=True):
        mine, yours = np.flatnonzero(own), np.flatnonzero(other)
        compared += len(mine)
        alone = abs(len(mine) - len(yours))
        if len(mine) and len(yours):
            moved = np.abs(boxes[mine, None] - others[None, yours]).max(-1) / _allowed_pixels(boxes[mine])[:, None]
            scored = np.abs(own[mine, None] - other[None, yours]) / _allowed_score(own[mine])[:, None]
            alone += int((np.maximum(moved, scored).min(1) > 1).sum())
        unlike += alone if alone > max(1.0, _ALONE * len(mine)) else 0
    return compared, unlike


def _allowed_pixels(boxes: np.ndarray) -> np.ndarray:
    """By how many pixels each of the boxes may differ."""
    return np.maximum(_RAW_PIXELS, _OF_A_SIDE * np.abs(boxes[:, 2:] - boxes[:, :2]).max(-1))


def _allowed_score(scores: np.ndarray) -> np.ndarray:
    """By how much each of the scores may differ."""
    return np.maximum(_NO_SCORE, _OF_A_SCORE * scores)


def _apart(ours: Any, theirs: Any) -> tuple[np.ndarray, np.ndarray]:
    """How far each box and its score are from those of the nearest box of the class, in any order."""
    if not len(ours.scores) or not len(theirs.scores):
        return np.full(len(ours.scores), np.inf), np.full(len(ours.scores), np.inf)
    boxes = np.abs(ours.boxes.numpy()[:, None] - theirs.boxes.numpy()[None]).max(-1)
    scores = np.abs(ours.scores.numpy()[:, None] - theirs.scores.numpy()[None])
    boxes[ours.classes.numpy()[:, None] != theirs.classes.numpy()[None]] = np.inf
    nearest = np.maximum(boxes / _PIXELS, scores / _SCORES).argmin(1)
    rows = np.arange(len(nearest))
    return boxes[rows, nearest], scores[rows, nearest]


def _add_suppression(graph: Path, overlap: float) -> None:
    """Append ONNX's non-maximum suppression per class, with the output ``selected``."""
    import onnx
    from onnx import TensorProto, helper

    content = onnx.load(graph)
    limits = {
        "most": helper.make_tensor("most", TensorProto.INT64, [1], [MOST]),
        "overlap": helper.make_tensor("overlap", TensorProto.FLOAT, [1], [overlap]),
        "lowest": helper.make_tensor("lowest", TensorProto.FLOAT, [1], [SCORE]),
    }
    content.graph.initializer.extend(limits.values())
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *limits], ["selected"], name="suppression")
    content.graph.node.append(node)
    content.graph.output.append(helper.make_tensor_value_info("selected", TensorProto.INT64, ["kept", 3]))
    onnx.checker.check_model(content)
    onnx.save(content, graph)


def _described(made_from: Mapping[str, str], loaded: Any, digest: str, single: bool) -> ExportedDetector:
    detector = loaded.networks[0]
    spec = detector.spec
    return ExportedDetector(
        network=NETWORK,
        digest=digest,
        categories=tuple(spec.categories),
        image_size=spec.image_size,
        sides=spec.sides,
        scaling=loaded.scaling,
        overlap=None if detector.end_to_end else detector.overlap,
        single=single,
        made_from={
            **made_from,
            "detector": spec.name,
            "folds": list(loaded.folds),
            "weights": [weights_digest(detector.state_dict())],
            "medkd": __version__,
        },
    )


def _placing(described: ExportedDetector) -> str:
    if described.sides is None:
        return "the long side of the radiograph fills the square"
    long, short = described.sides
    return f"the radiograph is scaled until its long side has {long} pixels or its short side {short}"


def _card(described: ExportedDetector, parity: DetectorParity) -> str:
    suppression = "none" if described.overlap is None else f"per class, overlap {described.overlap:g}"
    lines = [
        f"# {described.made_from['name']}",
        "",
        "A detector exported by medkd to ONNX. Research software, not a medical device; not for diagnosis.",
        "",
        f"- finds: {', '.join(described.categories)}",
        f"- input `image`: {'one image' if described.single else 'images'} of {described.image_size} pixels a side, "
        f"RGB in [0, 1]; {_placing(described)}, centred on grey 114/255",
        "- output `boxes` (B, A, 4): left, top, right, bottom in pixels of the square; clip them to it",
        "- output `scores` (B, K, A)",
        f"- output `selected` (n, 3): image, class and box of what is found; non-maximum suppression: {suppression}",
        f"- parity: {parity.boxes - parity.alone} of {parity.boxes} boxes in noise are the model's, up to "
        f"{parity.pixels:.2g} pixels and {parity.score:.2g} of the score; so are {parity.raw} boxes of any score",
        "",
        "## Use",
        "",
        "```",
        "medkd_predict -i radiographs -o predictions -m THIS_FOLDER",
        "```",
        "",
        f"`{DESCRIPTION}` describes it for programs.",
        "",
    ]
    return "\n".join(lines)
