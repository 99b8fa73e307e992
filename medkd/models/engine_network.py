"""The network of an exported model as a module of torch: outputs only, for whoever learns from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medkd.core.run import NetworkSpec
from medkd.models.base import open_model
from medkd.models.segmentation import TrainedModel
from medkd.networks.base import SegmentationNetwork
from medkd.runtime.engines import open_engine


class EngineNetwork(SegmentationNetwork):
    """Runs a network in its engine on the CPU, in float32; it has no parameters, taps or gradients.

    Args:
        model: what the network is.
        network: its file.

    Raises:
        RunError: the engine is not installed, or cannot read the file.
    """

    def __init__(self, model: TrainedModel, network: Path) -> None:
        spec = NetworkSpec(
            name="exported",
            in_channels=len(model.channels),
            num_outputs=model.labels.num_outputs,
            patch_size=model.patch_size,
        )
        super().__init__(spec)
        self._file = network
        self._engine = open_engine(network)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, K, *patch)`` float32 of ``(B, C, *patch)``, on its device and without a gradient."""
        batch = np.ascontiguousarray(x.detach().float().cpu().numpy())
        return torch.from_numpy(np.array(self._engine(batch))).to(x.device)

    def __reduce__(self) -> tuple[object, ...]:
        """Copies load the file again: a session of an engine cannot be copied."""
        return (_reopened, (self.spec, self._file))


def open_network(folder: Path | str) -> EngineNetwork:
    """The network of an exported model, for configurations that name a function by its path.

    Raises:
        MedkdError: the folder holds no exported model, or it is damaged.
    """
    network: EngineNetwork = open_model(folder, "segmentation").load().networks[0]
    return network


def _reopened(spec: NetworkSpec, network: Path) -> EngineNetwork:
    copy = EngineNetwork.__new__(EngineNetwork)
    SegmentationNetwork.__init__(copy, spec)
    copy._file, copy._engine = network, open_engine(network)
    return copy.eval()
