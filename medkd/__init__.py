"""Knowledge distillation for medical image segmentation and detection, from raw scans to a proven small model.

What a notebook needs is here, and imported when it is first used::

    import medkd

    medkd.plan_and_preprocess(4)
    medkd.train(4, "res_unet", 0)
    medkd.train_distill(4, "res_unet", "unet_tiny", "kd", 0, epochs=250)
    medkd.report(4)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# name → module that defines it, and its name there where that is another
_EXPORTS = {
    "DataError": "medkd.core.errors",
    "LeakError": "medkd.core.errors",
    "MedkdError": "medkd.core.errors",
    "MethodError": "medkd.core.errors",
    "PlanError": "medkd.core.errors",
    "RunError": "medkd.core.errors",
    "TrainOptions": "medkd.training.options",
    "best_configuration": "medkd.api.best_configuration",
    "compress": "medkd.api.compress",
    "convert": "dataset_conversion.convert:convert_dataset",
    "cross_validate": "medkd.api",
    "dry_run": "medkd.api",
    "evaluate": "medkd.api",
    "load": "medkd.api",
    "plan_and_preprocess": "medkd.api",
    "predict": "medkd.api",
    "register_converter": "medkd.register",
    "register_detector": "medkd.register",
    "register_method": "medkd.register",
    "register_network": "medkd.register",
    "report": "medkd.evaluation.report.write:make_report",
    "train": "medkd.api",
    "train_distill": "medkd.api",
    "train_side_by_side": "medkd.api",
}
__all__ = [
    "DataError",
    "LeakError",
    "MedkdError",
    "MethodError",
    "PlanError",
    "RunError",
    "TrainOptions",
    "__version__",
    "best_configuration",
    "compress",
    "convert",
    "cross_validate",
    "dry_run",
    "evaluate",
    "load",
    "plan_and_preprocess",
    "predict",
    "register_converter",
    "register_detector",
    "register_method",
    "register_network",
    "report",
    "train",
    "train_distill",
    "train_side_by_side",
]

if TYPE_CHECKING:
    from dataset_conversion.convert import convert_dataset as convert
    from medkd.api import (
        cross_validate,
        dry_run,
        evaluate,
        load,
        plan_and_preprocess,
        predict,
        train,
        train_distill,
        train_side_by_side,
    )
    from medkd.api.best_configuration import best_configuration
    from medkd.api.compress import compress
    from medkd.core.errors import DataError, LeakError, MedkdError, MethodError, PlanError, RunError
    from medkd.evaluation.report.write import make_report as report
    from medkd.register import register_converter, register_detector, register_method, register_network
    from medkd.training.options import TrainOptions


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'medkd' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")
    module, _, attribute = _EXPORTS[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
