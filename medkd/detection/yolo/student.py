"""A detection network whose loss has a method's terms besides its own, or is that of several processes, while
ultralytics trains it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medkd.core.features import Progress
from medkd.detection.yolo.assignment import to_batch, whole_batch, whole_seen
from medkd.detection.yolo.detectors import YoloDetector
from medkd.detection.yolo.library import DetectionModel
from medkd.detection.yolo.watch import FirstEpoch
from medkd.training.ranks import Ranks

if TYPE_CHECKING:
    from medkd.detection.job import DetectionJob

HELPERS = "helpers"


class Student(DetectionModel):
    """Shares its layers with a detector's network and adds the method's trainable helpers, so that the optimiser finds
    both.

    The teacher is no part of it. A copy, and so ultralytics' moving average and everything that it saves, is the plain
    network without helpers.

    Args:
        detector: whose network is trained.
        job: says which images have annotations, and has the distiller that gives the terms.
        progress: where training stands.
        watch: is shown the method's terms of every step.
        ranks: the processes that have a part of every batch each.
    """

    def __init__(
        self,
        detector: YoloDetector,
        job: DetectionJob,
        progress: Callable[[], Progress],
        watch: FirstEpoch | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(detector.network.__dict__)
        self._modules = dict(detector.network._modules)
        self.criterion = None
        self.__dict__["_parts"] = (detector, job, progress, watch, ranks or Ranks())
        self.helpers = nn.Module() if job.distiller is None else job.distiller.method
        self._names: tuple[str, ...] = ()

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The detector's terms and the method's, times the batch size as ultralytics counts, and what to log.

        Of images without annotation the detector's own terms are 0.
        """
        detector, job, progress, watch, ranks = self.__dict__["_parts"]
        if self.criterion is None:
            self.criterion = self.init_criterion()
        now = progress()
        with ranks.own_chance(job.budget.seed, now.step, batch["img"].device):
            seen = detector.look(batch["img"])
        seen, whole = whole_seen(seen, ranks), whole_batch(with_found_boxes(batch, job), ranks)
        if job.distiller is None:
            return self.criterion(seen[0], whole)  # type: ignore[no-any-return]  # ultralytics' own
        terms, outputs, target = detector.terms_of(self.criterion, seen, whole)
        if is_unlabelled(batch, job):
            terms = {name: (0 * outputs.logits.sum()).abs() for name in terms}
        taught = job.distiller.terms(batch["img"], outputs, replace(target, progress=now))
        extra = {f"kd_{name}" if name in terms else name: value for name, value in taught.items()}
        if watch is not None:
            watch.after_terms(extra, now)
        return self._summed({**terms, **extra}, outputs.logits, len(whole["img"]))

    def _summed(self, items: dict[str, Tensor], logits: Tensor, images: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Terms as ultralytics counts them: times the batch size, under the names of its first batch, since it averages
        these over the epoch; a term may have nothing to say in one batch.
        """
        self._names = self._names or tuple(items)
        zero = logits.new_zeros((), dtype=torch.float32)
        values = {name: items.get(name, zero).float().reshape(()) for name in dict.fromkeys([*self._names, *items])}
        vector = torch.stack([*values.values()]) * images
        return vector, {name: value.detach() for name, value in values.items() if name in self._names}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a plain network's state; the helpers stay as they are where it has none."""
        own = {f"{HELPERS}.{name}": value for name, value in self.helpers.state_dict().items()}
        return super().load_state_dict({**own, **state_dict}, strict, assign)

    def plain(self, memo: dict[int, Any] | None = None) -> DetectionModel:
        """A copy of the network alone."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("_parts", "_names", "criterion")}
        state["_modules"] = {name: module for name, module in self._modules.items() if name != HELPERS}
        network = DetectionModel.__new__(DetectionModel)
        network.__dict__.update(copy.deepcopy(state, memo))
        network.criterion = None
        return network

    def __deepcopy__(self, memo: dict[int, Any]) -> DetectionModel:
        return self.plain(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)


def is_unlabelled(batch: Mapping[str, Any], job: DetectionJob) -> bool:
    """Whether a batch of ultralytics' loader shows images whose annotations are missing or not looked at; it is of one
    kind.
    """
    files = batch.get("im_file", ())
    return bool(job.unlabelled_share and files) and Path(files[0]).stem in job.without_annotation


def with_found_boxes(batch: dict[str, Any], job: DetectionJob) -> dict[str, Any]:
    """A batch with the teacher's boxes in the place of missing ones."""
    if job.distiller is None or not is_unlabelled(batch, job):
        return batch
    return {**batch, **to_batch(batch["img"], *job.distiller.annotate(batch["img"]))}
