"""nnU-Net's trainers, told apart by what they do to the planned network."""

from __future__ import annotations

import re

BATCH_NORM = "nnUNetTrainerBN"
# what the names of built-in trainers say of the loss, the schedule, the augmentation, the sampling or the optimiser;
# each may follow others
_PARTS = (
    r"\d+(ep(ochs?)?|k)",
    r"BS\d+",
    r"NoMirroring",
    r"onlyMirror01",
    r"NoDA",
    r"noDummy2DDA",
    r"DA5",
    r"(DA)?(Seg)?[Oo]rd0",
    r"[A-Za-z]*?(CE|Top[Kk]\d*)?Loss",
    r"noSmooth",
    r"LS\d+",
    r"(Vanilla)?R?(AdamW?|Adan)",
    r"\d+en\d+",
    r"CosAnneal",
    r"(Poly|Quarter|Half|Low|High)?LR",
    r"[Ll][Rr]\d+en?\d+",
    r"MOSAIC",
    r"SkeletonRecall",
    r"[Ww]arm[Uu]p",
    r"[Nn]oDeepSupervision",
    r"probabilisticOversampling(_\d+)?",
    r"Benchmark",
    r"noDataLoading",
)
_KEEPS = re.compile(rf"nnUNet_?Trainer((_?({'|'.join(_PARTS)}))*)")


def keeps_network(trainer: str) -> bool:
    """Whether a trainer of this name trains the network that the plan describes, at most with batch norms in it.

    Only names that are made of known parts do; another part may stand for a network of its own, as in
    ``nnUNetTrainer_250epochs_MedNeXt``.
    """
    return trainer == BATCH_NORM or _KEEPS.fullmatch(trainer) is not None


def mirrored_axes(trainer: str, rank: int) -> tuple[int, ...]:
    """The axes of the patch that a trainer of this name mirrors, for checkpoints that do not store them.

    nnU-Net's trainer mirrors all, those called ``NoMirroring`` or ``NoDA`` none, and ``onlyMirror01`` the first two of
    three axes, the first of two; where several are named, none wins.

    >>> mirrored_axes("nnUNetTrainer_onlyMirror01_1500ep", 3)
    (0, 1)
    """
    if re.search(r"NoMirroring|NoDA", trainer):
        return ()
    if "onlyMirror01" in trainer:
        return tuple(range(rank - 1))
    return tuple(range(rank))
