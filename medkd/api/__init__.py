"""The steps as functions, for all tasks: what the commands call, and what :mod:`medkd` exports.

On a phantom of six scans, with trainings of one step:

>>> import medkd
>>> from dataset_conversion.phantom import make_phantom
>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> folder = TemporaryDirectory()
>>> root = Path(folder.name)
>>> raw = root / "raw" / "Dataset004_Phantom"
>>> _ = make_phantom(raw, cases=5, test_cases=1, shape=(24, 40, 40))
>>> plan = medkd.plan_and_preprocess(4, root=root, configurations=["3d_fullres"], orientation="RAS")
>>> plan.configuration("3d_fullres").normalization
('ct',)

What training would do, and training itself, without and with a teacher:

>>> short = medkd.TrainOptions(
...     root=root, epochs=1, iterations_per_epoch=1, batch_size=2, patch_size=(16, 32, 32), workers=0, device="cpu"
... )
>>> medkd.dry_run(4, "unet_tiny", 0, short)[1]
'budget     1 epochs of 1 steps, 2 patches of 16 × 32 × 32, fp32, learning rate 0.01, seed 0'
>>> medkd.train(4, "unet_tiny", 0, short, validate=False).parent.name
'unet_tiny__3d_fullres'
>>> student = medkd.train_distill(4, "unet_tiny", "unet_tiny", "kd", 0, short, validate=False)
>>> student.parent.name
'unet_tiny__3d_fullres__kd__from_unet_tiny'

Prediction of a folder, or with a model that is loaded once; and the scores of a student that has learnt nothing:

>>> run = f"4/{student.parent.name}"
>>> medkd.predict(raw / "imagesTs", root / "predictions", run, root=root, device="cpu", mirror=False).predicted
['phantom_test_000']
>>> model = medkd.load(run, root=root, device="cpu", mirror=False)
>>> model.predict(next((raw / "imagesTs").iterdir())).labels.ndim
3
>>> scores = medkd.evaluate(root / "predictions", raw / "labelsTs", dataset_json=raw / "dataset.json")
>>> scores.mean_dice < 0.5
True
>>> medkd.train(4, "unet_tiny", 0, root=root, epoch=1)
Traceback (most recent call last):
    ...
medkd.core.errors.RunError: medkd.train has no setting 'epoch'. Did you mean 'epochs'? Known: ...
>>> folder.cleanup()
"""

from __future__ import annotations

from medkd.api.scores import cross_validate, evaluate, measure, score_teacher
from medkd.api.steps import dry_run, load, plan_and_preprocess, predict, train, train_distill, train_side_by_side
from medkd.models.named import data_of_model, find_model, task_of_model

__all__ = [
    "cross_validate",
    "data_of_model",
    "dry_run",
    "evaluate",
    "find_model",
    "load",
    "measure",
    "plan_and_preprocess",
    "predict",
    "score_teacher",
    "task_of_model",
    "train",
    "train_distill",
    "train_side_by_side",
]
