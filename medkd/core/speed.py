"""torch's own switches that make steps faster, as a user gives them and ``run.json`` keeps them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """How a step is computed, beside its precision; none of it is part of the weights, so that a continued run may have
    others.

    Attributes:
        tf32: products of fp32 numbers with ten bits of fraction, on CUDA; None is torch's own: in convolutions only.
        channels_last: channels are neighbours in memory, in network and images.
        cudnn_benchmark: cuDNN tries its convolutions and takes the fastest, on CUDA.
        compile: the trained network goes through ``torch.compile``.

    >>> Speed(tf32=False, channels_last=True).options()
    ['--tf32', 'off', '--channels-last']
    """

    tf32: bool | None = None
    channels_last: bool = False
    cudnn_benchmark: bool = False
    compile: bool = False

    def options(self) -> list[str]:
        """The words of a command line that ask for this; none for torch's own way."""
        words = [] if self.tf32 is None else ["--tf32", "on" if self.tf32 else "off"]
        for option, wanted in (
            ("--channels-last", self.channels_last),
            ("--cudnn-benchmark", self.cudnn_benchmark),
            ("--compile", self.compile),
        ):
            words += [option] if wanted else []
        return words


USUAL = Speed()
"""torch as it is by itself."""
