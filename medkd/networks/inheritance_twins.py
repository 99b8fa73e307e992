"""Which layer of a teacher a layer of its student stands for, where plans differ in stages, blocks or labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from medkd.core.errors import RunError
from medkd.networks.inheritance_layers import HINT, Layer, layers
from medkd.networks.planned import PlannedUNet

_ENCODER = re.compile(r"encoder\.stages\.(\d+)\.(0\.convs|blocks)\.(\d+)\.(.*)")
_DECODER = re.compile(r"decoder\.(transpconvs|stages|seg_layers)\.(\d+)(?:\.convs\.(\d+)(.*))?")


def counterparts(student: PlannedUNet, teacher: PlannedUNet, *, same_labels: bool = True) -> dict[str, Layer]:
    """Path of a convolution of the student → the layer of the teacher that it stands for; those that stand for none are
    missing.

    Stages stand for each other that see the image at the same resolution, in voxels; of stages that differ in
    convolutions or blocks, the last ones of equal parts. Heads have a counterpart where the labels are the same.

    Args:
        student: who starts.
        teacher: from whom.
        same_labels: whether outputs mean the same.

    Raises:
        RunError: the student is wider somewhere, or one has a projection in a shortcut where the other has none.
    """
    theirs = {layer.conv: layer for layer in layers(teacher)}
    same_labels = same_labels and student.spec.num_outputs == teacher.spec.num_outputs
    found = {}
    for layer in layers(student):
        if layer.is_head and not same_labels:
            continue
        path = _twin_path(layer.conv, student, teacher)
        if path in theirs:
            found[layer.conv] = theirs[path]
            _check_width(layer, found[layer.conv], student, teacher)
        _check_projections(layer, path, found, theirs)
    return found


def without_counterpart(student: PlannedUNet, teacher: PlannedUNet, *, same_labels: bool = True) -> tuple[str, ...]:
    """Paths of the convolutions of the student that stand for none of the teacher's."""
    twins = counterparts(student, teacher, same_labels=same_labels)
    return tuple(layer.conv for layer in layers(student) if layer.conv not in twins)


def _check_width(ours: Layer, theirs: Layer, student: PlannedUNet, teacher: PlannedUNet) -> None:
    width = student.net.get_submodule(ours.conv).out_channels
    available = teacher.net.get_submodule(theirs.conv).out_channels
    if width > available:
        raise RunError(
            f"--init teacher needs a student that is nowhere wider than its teacher, but {ours.conv} has {width} "
            f"channels there and {available} in the teacher; raise --width-divisor, or {HINT}."
        )


def _check_projections(layer: Layer, path: str | None, found: Mapping[str, Layer], theirs: Mapping[str, Layer]) -> None:
    """Blocks that stand for each other must both have a projection, which is before the convolutions, or none."""
    lonely = []
    if path is not None and ".skip." in path and path not in theirs:
        lonely.append(path)
    block, conv1, _ = layer.conv.partition(".conv1.")
    twin = found.get(layer.conv)
    if conv1 and twin is not None and not _projections(block, found):
        lonely += _projections(twin.conv.partition(".conv1.")[0], theirs)
    if lonely:
        raise RunError(
            f"--init teacher needs a student whose stages grow where its teacher's do, but {lonely[0]} is in one of "
            f"the two only; lower --width-divisor, or {HINT}."
        )


def _projections(block: str, paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.startswith(f"{block}.skip.")]


def last_of_part(index: int, ours: int, theirs: int) -> int:
    """Which of ``theirs`` blocks the block ``index`` of ``ours`` ends with, where both do the same in equal parts.

    >>> [last_of_part(i, 2, 6) for i in range(2)], [last_of_part(i, 3, 3) for i in range(3)]
    ([2, 5], [0, 1, 2])
    """
    return (index + 1) * theirs // ours - 1


def _twin_path(path: str, student: PlannedUNet, teacher: PlannedUNet) -> str | None:
    """The path of the counterpart; it need not exist."""
    encoder = _ENCODER.fullmatch(path)
    if encoder is not None:
        return _encoder_path(encoder, student, teacher)
    decoder = _DECODER.fullmatch(path)
    if decoder is not None:
        return _decoder_path(decoder, student, teacher)
    return path  # the stem


def _encoder_path(found: re.Match[str], student: PlannedUNet, teacher: PlannedUNet) -> str | None:
    level, kind, index, rest = int(found[1]), found[2], int(found[3]), found[4]
    other = _level(level, student, teacher)
    if other is None:
        return None
    ours = student.architecture.blocks_encoder[level]
    theirs = teacher.architecture.blocks_encoder[other]
    if kind == "blocks":  # the first one changes resolution and width
        block = 0 if index == 0 else _block(index - 1, ours - 1, theirs - 1, 1)
    else:
        block = _block(index, ours, theirs, 0)
    return None if block is None else f"encoder.stages.{other}.{kind}.{block}.{rest}"


def _decoder_path(found: re.Match[str], student: PlannedUNet, teacher: PlannedUNet) -> str | None:
    kind, stage = found[1], int(found[2])
    other = _level(student.steps - 1 - stage, student, teacher)
    if other is None or other >= teacher.steps:
        return None
    their_stage = teacher.steps - 1 - other
    if kind != "stages":
        return f"decoder.{kind}.{their_stage}"
    ours = student.architecture.blocks_decoder[stage]
    theirs = teacher.architecture.blocks_decoder[their_stage]
    block = _block(int(found[3]), ours, theirs, 0)
    return None if block is None else f"decoder.stages.{their_stage}.convs.{block}{found[4]}"


def _level(level: int, student: PlannedUNet, teacher: PlannedUNet) -> int | None:
    """The teacher's stage of the same total stride; of several, the one of the same rank among them."""
    ours = student.strides[level]
    rank = list(student.strides[:level]).count(ours)
    alike = _levels(teacher.strides, ours)
    return alike[rank] if rank < len(alike) else None


def _levels(strides: Sequence[tuple[int, ...]], wanted: tuple[int, ...]) -> list[int]:
    return [level for level, stride in enumerate(strides) if stride == wanted]


def _block(index: int, ours: int, theirs: int, first: int) -> int | None:
    """The teacher's block, counted from ``first``; where the student has more, its first ones have no counterpart."""
    if ours <= theirs:
        return first + last_of_part(index, ours, theirs)
    index -= ours - theirs
    return None if index < 0 else first + index
