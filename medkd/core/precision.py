"""Names of the precisions in which networks are computed."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["fp32", "bf16", "fp16", "auto"]
PRECISION_CHOICES: tuple[PrecisionChoice, ...] = ("fp32", "bf16", "fp16", "auto")
"""Values of ``--precision``, see :func:`medkd.core.arithmetic.chosen_precision`."""
