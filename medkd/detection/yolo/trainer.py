"""Trains a YOLO detector with ultralytics' own trainer, alone or with a method's terms."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medkd.core.checkpoint import save_checkpoint
from medkd.core.errors import DivergedError, RunError
from medkd.core.features import Progress
from medkd.core.run import BEST, FINAL
from medkd.detection.job import DetectionJob
from medkd.detection.yolo import checkpoints as saved
from medkd.detection.yolo.assignment import from_batch
from medkd.detection.yolo.data import APART, UNLABELLED, StoreDataset, mixed_loader, training_loader
from medkd.detection.yolo.detectors import YoloDetector
from medkd.detection.yolo.library import (
    DetectionTrainer,
    DistillationModel,
    build_dataloader,
    engine,
    unwrap_model,
    version,
)
from medkd.detection.yolo.settings import builtin_teacher, is_builtin
from medkd.detection.yolo.student import Student, with_found_boxes
from medkd.detection.yolo.validator import AP, StoreValidator
from medkd.detection.yolo.watch import FirstEpoch
from medkd.training.logs import EpochRecord, RunLog
from medkd.training.ranks import Ranks, current
from medkd.training.shared_norm import share_norms

_log = logging.getLogger(__name__)


class YoloTrainer(DetectionTrainer):
    """ultralytics' trainer on medkd's data, with the distiller's terms.

    Augmentation, schedule and moving average are ultralytics' own. Its ``last.pt`` and ``best.pt`` hold the plain
    network at every time and are never read; what a continued training needs lies beside them, see
    :mod:`medkd.detection.yolo.checkpoints`.

    Args:
        job: what to train.
        settings: ultralytics' arguments.
        state: what to go on from, of :func:`medkd.detection.yolo.checkpoints.read_state`.

    Attributes:
        ranks: this process among those that train the detector together. ultralytics believes that it is the only one:
            each has its part of every batch, and the first one validates, saves and speaks.
    """

    model: Any
    ema: Any
    tloss: Any
    optimizer: Any

    def __init__(self, job: DetectionJob, settings: dict[str, Any], state: dict[str, Any] | None = None) -> None:
        self.job = job
        self._state = state
        self.detector: YoloDetector = job.detector  # type: ignore[assignment]  # fit has looked
        self.method = job.distiller.method if job.distiller is not None else None
        self.builtin = is_builtin(job)
        self._run_log: RunLog | None = None
        self._bar: tqdm | None = None
        self._frozen: list[torch.nn.Parameter] = []
        self._steps: dict[int, int] = {}
        self.ranks = current()
        self._watch = FirstEpoch(self.detector.network, _log.warning, self.ranks)
        super().__init__(overrides=settings)
        self.add_callback("on_train_epoch_start", YoloTrainer._begin_epoch)
        self.add_callback("on_train_batch_end", YoloTrainer._end_step)

    @property
    def distilled(self) -> bool:
        """Whether medkd's own distillation takes part."""
        return self.method is not None and not self.builtin

    # data

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> StoreDataset:
        """The cases of a list, augmented for training, whole on rectangles for validation."""
        training = mode == "train"
        return StoreDataset(
            img_path=img_path,
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=training,
            hyp=self.args,
            rect=not training,
            stride=max(int(self.detector.network.stride.max()), 32),
            pad=0.0 if training else 0.5,
            prefix=f"{mode}: ",
            task="detect",
            data=self.data,
        )

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Training images as the plan draws them; validation on the rectangles that ultralytics gives one process, but
        with twice as many at once as this process has in training. Only the first one ever looks at them.
        """
        if mode == "train":
            return self._training_loader(dataset_path, batch_size, self.ranks)
        dataset = self.build_dataset(dataset_path, mode, batch_size)
        workers = 2 * self.args.workers if self.ranks.first else 0
        own = len(self.ranks.part(batch_size))
        return build_dataloader(dataset, batch=own, workers=workers, shuffle=False, device=self.device)

    def _training_loader(self, dataset_path: str, batch_size: int, ranks: Ranks) -> Any:
        dataset = self.build_dataset(dataset_path, "train", batch_size)
        if not self.job.unlabelled_share:
            return training_loader(self.job, dataset, batch_size, self.args.workers, ranks)
        plain = Path(dataset_path).with_name(f"{UNLABELLED}.txt")
        parts = [dataset] if self.job.train else []
        parts.append(self.build_dataset(str(plain), "train", batch_size))
        return mixed_loader(self.job, parts, batch_size, self.args.workers, ranks)

    # network

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Whether to go on; the arguments are the job's, and no file is read."""
        self.resume = self.args.resume = self._state is not None

    def setup_model(self) -> dict[str, Any] | None:
        """Take the job's network, with the weights of the last state when resuming, and join it with the method."""
        self.model = self.get_model()
        distiller: Any = self.job.distiller
        if distiller is not None and distiller.teacher is not None:
            distiller.teacher.to(self.device)
        if self.builtin:
            teacher = builtin_teacher(self.job)
            self.model = DistillationModel(teacher_model=teacher, student_model=self.model.to(self.device))
        if self.method is not None:
            self.method.to(self.device)
        if self._state is not None:
            self._load_state(self._state)
        share_norms(self.detector, self.ranks)
        if not self.distilled and self.ranks.alone:
            return self._state
        self._join()
        return self._state

    def _join(self) -> None:
        """Join the network with the method, and with the other processes."""
        distiller: Any = self.job.distiller
        if getattr(distiller, "needs_preparation", False):
            _log.info("First stage of the method, on the teacher")
            distiller.prepare(self._preparation())
        self.ranks.equalise((self.detector, self.method))
        if distiller is not None:
            self._frozen = [p for p in distiller.method.parameters() if not p.requires_grad]
            distiller.ranks = self.ranks
        self.model = Student(self.detector, self.job, self._progress, self._watch, self.ranks)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """The job's network."""
        network = self.detector.network
        network.args, network.nc, network.names = self.args, self.data["nc"], self.data["names"]
        network.criterion = None
        return network

    def build_optimizer(self, model: Any, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """ultralytics thaws everything that it finds; what the method had frozen is frozen again."""
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return super().build_optimizer(model, *args, **kwargs)

    def _setup_train(self) -> None:
        """Without the AMP check, which would download a network."""
        check, engine.check_amp = engine.check_amp, lambda model: True
        try:
            super()._setup_train()
        finally:
            engine.check_amp = check

    def _build_train_pipeline(self) -> None:
        """ultralytics would halve the batch and build all anew when memory runs out, and so train another experiment
        than was asked for.

        Raises:
            RunError: it has run out.
        """
        if getattr(self, "_oom_retries", 0):
            raise RunError(
                f"The device's memory does not suffice for {self.job.budget.batch_size} images of {self.args.imgsz} "
                "px; use a smaller --batch-size or --image-size."
            )
        super()._build_train_pipeline()

    def _preparation(self) -> Iterator[tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Endless training batches ``(images, boxes, classes)``, as all processes together have them, from a loader of
        their own.
        """
        loader = self._training_loader(self.data["train"], self.batch_size, Ranks())
        while True:
            for batch in loader:
                ready = with_found_boxes(self.preprocess_batch(batch), self.job)
                yield ready["img"], *from_batch(ready)

    def optimizer_step(self) -> None:
        """A step with the gradients of the whole batch."""
        self.ranks.share_gradients(self.detector, self.method, by_sample=False)
        super().optimizer_step()

    def _progress(self) -> Progress:
        step = self._steps.get(self.epoch, 0)
        self._steps = {self.epoch: step + 1}
        return Progress(self.epoch, self.epochs, self.epoch * len(self.train_loader) + step)

    def _begin_epoch(self) -> None:
        """Randomness follows from seed and epoch, whether the training was killed before or not; several processes
        differ in the numbers of NumPy and Python, by which images are augmented.
        """
        seed = self.args.seed + self.epoch
        engine.init_seeds(seed + self.ranks.number * APART, deterministic=self.args.deterministic)
        torch.manual_seed(seed)
        if self._bar is None and self.ranks.first:
            steps = len(self.train_loader)
            self._bar = tqdm(total=self.epochs * steps, initial=self.epoch * steps, unit="step", disable=None)

    def _end_step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _close_dataloader_mosaic(self) -> None:
        """The loader starts anew then; images that its processes had fetched ahead are not lost."""
        super()._close_dataloader_mosaic()
        self.train_loader.sampler.go_to(self.epoch)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """ultralytics would try again from the last checkpoint, and go on without a word in the first epoch.

        Raises:
            DivergedError: the loss is infinite or NaN.
        """
        bad = [name for name, value in self.tloss.items() if not np.isfinite(float(value))]
        if bad:
            raise DivergedError(
                f"The loss term '{bad[0]}' became infinite or NaN in epoch {epoch}; continue from the last checkpoint "
                "with a lower "
                "--learning-rate, or with --precision bf16 or fp32."
            )
        return False

    # checkpoints

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Go on after the last checkpoint, with the images that an unbroken run would see next."""
        super().resume_training(ckpt)
        self.train_loader.sampler.go_to(self.start_epoch)

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Load weights, helpers, optimiser, average and what ultralytics remembers of the best epoch."""
        self._load_state(ckpt)
        for stored, group in zip(ckpt["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            stored["fused"] = group.get("fused")  # the device at hand picks the kernel
        self.optimizer.load_state_dict(ckpt["optimizer"])
        if ckpt.get("scaler"):
            self.scaler.load_state_dict(ckpt["scaler"])
        self.ema = engine.ModelEMA(self.model)  # validation has made the former one's tensors unchangeable
        self.ema.ema.load_state_dict(ckpt["ema"])
        self.ema.updates = ckpt["updates"]
        self.best_fitness = ckpt.get("best_fitness")
        self.stopper.__dict__.update(ckpt.get("stopper") or {})

    @property
    def _helpers(self) -> torch.nn.Module | None:
        """What is trained beside the network: the method, or the projectors of ultralytics' own distillation."""
        wrapped: Any = unwrap_model(self.model) if self.builtin else None
        return self.method if wrapped is None else wrapped.projector

    def _load_state(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["network"])
        if self._helpers is not None:
            self._helpers.load_state_dict(state["helpers"])

    def save_model(self) -> bool:
        """Write ``last.pt``, ``best.pt`` and medkd's checkpoints so that a kill leaves the former ones whole.

        The state is written last: until it is there, a continued training repeats the epoch.
        """
        if not self.ranks.first:
            return False
        average = unwrap_model(self.ema.ema)
        facts = {
            "train_args": vars(self.args),
            "train_metrics": {**(self.metrics or {}), "fitness": self.fitness},
            "train_results": self.read_results_csv(),
            "version": version,
        }
        saved.write_plain(self.last, average, facts)
        if self.best_fitness == self.fitness:
            saved.write_plain(self.best, average, facts)
            save_checkpoint(self.job.folder / BEST, self._content())
        if self.epoch + 1 >= self.epochs:
            save_checkpoint(self.job.folder / FINAL, self._content())
        state = saved.state_path(self.wdir, self.epoch)
        save_checkpoint(state, self._state_now())
        for path in saved.state_files(self.wdir):
            if path != state:
                path.unlink()
        return True

    def _state_now(self) -> dict[str, Any]:
        """What :func:`medkd.detection.yolo.checkpoints.read_state` is to find after this epoch."""
        helpers = {} if self._helpers is None else self._helpers.state_dict()
        best = None if self.best_fitness is None else float(self.best_fitness)
        stopper = {"best_fitness": float(self.stopper.best_fitness), "best_epoch": int(self.stopper.best_epoch)}
        return {
            "schema": saved.SCHEMA,
            "epoch": self.epoch,
            "network": self.detector.state_dict(),
            "helpers": helpers,
            "ema": unwrap_model(self.ema.ema).state_dict(),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_fitness": best,
            "stopper": stopper,
        }

    def _averaged(self) -> Any:
        """The moving average of the network."""
        average = unwrap_model(self.ema.ema)
        return getattr(average, "student_model", average)

    def _content(self) -> dict[str, Any]:
        state = {name: value.detach().cpu().clone() for name, value in self._averaged().state_dict().items()}
        return {
            "schema": 1,
            "network": state,
            "epoch": self.epoch,
            "score": None if self.fitness is None else float(self.fitness),
        }

    def get_validator(self) -> StoreValidator:
        """One that leaves out what is to be ignored."""
        super().get_validator()  # some versions name the losses there
        return StoreValidator(self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks)

    def validate(self) -> tuple[dict[str, Any], float | None]:
        """ultralytics' own validation, by the first process; nothing where the fold has no validation cases."""
        return super().validate() if self.job.val and self.ranks.first else ({}, None)

    def final_eval(self) -> None:
        """Keep the final average in the detector, too; medkd judges all detectors alike, so nothing is measured
        here.
        """
        self.detector.load_state_dict(self._averaged().state_dict())
        self.detector.eval()
        saved.forget_states(self.wdir)

    # logs

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ultralytics' table and medkd's log."""
        if not self.ranks.first:
            return
        super().save_metrics(metrics)
        if self._run_log is None:
            self._run_log = RunLog(self.job.folder, self.start_epoch)
        terms = {name: float(value) for name, value in self.tloss.items()}
        validation = [float(value) for name, value in metrics.items() if name.startswith("val/")]
        record = EpochRecord(
            epoch=self.epoch,
            train_loss=sum(terms.values()),
            validation_loss=sum(validation) if validation else None,
            validation_dice=None,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            seconds=time.time() - self.epoch_time_start,
            terms=terms,
            validation_score=float(metrics[AP]) if AP in metrics else None,
        )
        self._run_log.add(record)
        self._watch.after_epoch(self.epoch, terms)
        self.job.tell(record)

    def close(self) -> None:
        """Close the log and the progress bar."""
        if self._bar is not None:
            self._bar.close()
        if self._run_log is not None:
            self._run_log.close()
