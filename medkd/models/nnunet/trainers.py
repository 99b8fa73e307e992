"""nnU-Net's trainers, told apart by what they do to the planned network."""

from __future__ import annotations

import re

BATCH_NORM = "nnUNetTrainerBN"
# what the names of built-in trainers say of the loss, the schedule, the augmentation, the sampling or the optimiser;
# each may follow others
_PARTS = (
    r"\d+ep(ochs?)?",
    r"BS\d+",
    r"NoMirroring",
    r"onlyMirror01",
    r"NoDA",
    r"noDummy2DDA",
    r"DA5",
    r"(DA)?(Seg)?[Oo]rd0",
    r"(Dice)?(CE|Top[Kk]\d*)?Loss",
    r"noSmooth",
    r"LS\d+",
    r"(Vanilla)?(Adam|Adan)",
    r"\d+en\d+",
    r"CosAnneal",
    r"PolyLR",
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
