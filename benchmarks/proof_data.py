"""The data sets of :mod:`benchmarks.prove_training`, made from two downloads."""

from __future__ import annotations

import argparse
import importlib
import shutil
from pathlib import Path

import numpy as np

from benchmarks.proof_arms import DATA_SETS, Data
from medkd import api
from medkd.core.files import read_json, write_json
from medkd.core.run import DATASET_FILE, PLANS_FILE
from medkd.core.splits import SPLITS_FILE, Split, load_splits, save_splits

_USED = (
    "medkd.training.run",
    "medkd.training.segmentation_task",
    "medkd.training.segmentation_lesson",
    "medkd.training.cached",
    "medkd.training.validation",
    "medkd.training.logs",
    "medkd.training.augmentation",
    "medkd.models.nnunet.folder",
    "medkd.networks.inheritance",
    "medkd.distillation.build",
    "dynamic_network_architectures.architectures.unet",
    "matplotlib.pyplot",
    "torch.utils.tensorboard",
    "nibabel",
    "scipy.ndimage",
    "scipy.stats",
)


def preload() -> None:
    """Import what trainings import, once for all processes that are forked from this one."""
    for name in _USED:
        importlib.import_module(name)


def prepare(options: argparse.Namespace, name: str) -> None:
    """Make the raw data set ``name`` and preprocess it; what is there already is kept."""
    data = DATA_SETS[name]
    folder = options.root / "preprocessed" / name
    split = _split(options, data)
    labelled = split.train[: data.labelled] if not options.training else split.train[: max(1, len(split.train) // 2)]
    known = split.train if data.labelled is None else labelled
    _raw(options, name, data, split, set(known))
    if data.plan_of and not (folder / PLANS_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(options.root / "preprocessed" / data.plan_of / PLANS_FILE, folder / PLANS_FILE)
    like = options.model if data.like_model and not (folder / PLANS_FILE).exists() else None
    settings = {"like": like} if like else {}
    api.plan_and_preprocess(name, root=options.root, configurations=[data.configuration], workers=4, **settings)
    save_splits(folder / SPLITS_FILE, [Split(tuple(known), split.val)])


def _split(options: argparse.Namespace, data: Data) -> Split:
    """The first fold of what the download says."""
    folder = options.model if data.source == "hippocampus" else options.acdc
    split = load_splits(folder / SPLITS_FILE)[0]
    return Split(split.train[: options.training], split.val[: options.held_out])


def _raw(options: argparse.Namespace, name: str, data: Data, split: Split, known: set[str]) -> None:
    """Links to the images; labels as they are, or one structure of them."""
    raw, source = options.root / "raw" / name, getattr(options, data.source).resolve()
    ending = "" if data.source == "hippocampus" else "_0000"  # the Decathlon has one channel, and does not say so
    for case in (*split.train, *split.val):
        labelled = case in known or case in split.val
        folder = raw / ("imagesTr" if labelled else "imagesUn")
        _link(source / "imagesTr" / f"{case}{ending}.nii.gz", folder / f"{case}_0000.nii.gz")
        if labelled:
            _label(source / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz", data.structure)
    described = read_json((options.model if data.source == "hippocampus" else options.acdc) / DATASET_FILE)
    described["numTraining"] = len(known) + len(split.val)
    if data.structure is not None:
        kept = [label for label, value in described["labels"].items() if value == data.structure]
        described["labels"] = {"background": 0, kept[0]: 1}
    write_json(raw / DATASET_FILE, described)


def _label(source: Path, target: Path, structure: int | None) -> None:
    if structure is None:
        _link(source, target)
        return
    if target.exists():
        return
    import nibabel

    target.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.load(source)
    kept = np.asarray(image.dataobj) == structure
    nibabel.save(nibabel.Nifti1Image(kept.astype(np.uint8), image.affine), target)


def _link(source: Path, target: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(source)
