"""Networks, methods, detectors and formats from outside the package: decorators for a module of your own.

The module is named with ``--import`` on the commands, or installed with an entry point (``medkd.networks``,
``medkd.methods``, ``medkd.detectors``, ``medkd.converters``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from dataset_conversion.registry import ConversionOptions
    from dataset_conversion.report import ConversionReport
    from medkd.core.run import NetworkSpec
    from medkd.detection.base import Detector, DetectorSpec
    from medkd.distillation.base import Method
    from medkd.networks.base import SegmentationNetwork

    BuildNetwork = TypeVar("BuildNetwork", bound=Callable[[NetworkSpec], SegmentationNetwork])
    BuildDetector = TypeVar("BuildDetector", bound=Callable[[DetectorSpec], Detector])
    MethodClass = TypeVar("MethodClass", bound=type[Method])
    Convert = TypeVar("Convert", bound=Callable[[Path, Path, ConversionOptions], ConversionReport])


def register_network(
    name: str,
    *,
    citation: str = "",
    planned: bool = False,
    ranks: tuple[int, ...] = (2, 3),
    divisor: int = 1,
    deep_supervision: bool = False,
) -> Callable[[BuildNetwork], BuildNetwork]:
    """Decorator that makes a network known by name, as teacher and as student.

    Args:
        name: by which commands and functions know it.
        citation: where it was published.
        planned: whether it takes its shape from the plan.
        ranks: spatial dimensions that it exists in.
        divisor: every axis of the patch must be a multiple of this.
        deep_supervision: whether it is trained at several resolutions at once.

    Returns:
        A decorator for a subclass of :class:`medkd.networks.base.SegmentationNetwork`, or a function that builds one,
        from a :class:`medkd.core.run.NetworkSpec`.

    Raises:
        ValueError: the name is taken.

    >>> from torch import nn
    >>> from medkd.networks import NETWORKS, SegmentationNetwork
    >>> @register_network("one_convolution", ranks=(3,))
    ... class OneConvolution(SegmentationNetwork):
    ...     def __init__(self, spec):
    ...         super().__init__(spec)
    ...         self.head = nn.Conv3d(spec.in_channels, spec.num_outputs, 3, padding=1)
    ...
    ...     def forward(self, x):
    ...         return self.head(x)
    >>> NETWORKS["one_convolution"].ranks
    (3,)
    """
    from medkd.networks.base import NETWORKS, NetworkEntry

    enter = NETWORKS.register(name, _caller())

    def decorate(build: BuildNetwork) -> BuildNetwork:
        entry = NetworkEntry(
            build=build,
            citation=citation,
            planned=planned,
            ranks=ranks,
            divisor=divisor,
            deep_supervision=deep_supervision,
        )
        enter(entry)
        return build

    return decorate


def register_method(
    name: str, *, task: Literal["segmentation", "detection"] = "segmentation"
) -> Callable[[MethodClass], MethodClass]:
    """Decorator that makes a distillation method known by name.

    Args:
        name: by which commands and functions know it.
        task: ``"detection"`` for a formula of detectors alone; a method for both has ``detection = True``.

    Returns:
        A decorator for a subclass of :class:`medkd.distillation.base.Method`.

    Raises:
        ValueError: the name is taken.

    >>> from medkd.distillation import METHODS, Method
    >>> @register_method("logit_mse")
    ... class LogitMSE(Method):
    ...     outputs_only = True
    ...
    ...     def forward(self, student, teacher, target):
    ...         return {"mse": (student.logits - teacher.logits).square().mean()}
    >>> METHODS["logit_mse"].outputs_only
    True
    """
    if task == "detection":
        from medkd.detection.methods import DETECTION_METHODS

        return DETECTION_METHODS.register(name, _caller())
    from medkd.distillation.base import METHODS

    return METHODS.register(name, _caller())


def register_detector(
    name: str, *, family: Literal["yolo", "torchvision"] = "torchvision", about: str = ""
) -> Callable[[BuildDetector], BuildDetector]:
    """Decorator that makes a detector known by name.

    Args:
        name: by which commands and functions know it.
        family: who trains it: ultralytics' loop, or medkd's own.
        about: a line for ``medkd_list networks``.

    Returns:
        A decorator for a subclass of :class:`medkd.detection.base.Detector`, or a function that builds one, from a
        :class:`medkd.detection.base.DetectorSpec`.

    Raises:
        ValueError: the name is taken.

    >>> from medkd.detection.base import DETECTORS
    >>> @register_detector("fcos_by_another_name", about="FCOS with a ResNet-18")
    ... def build(spec):
    ...     from medkd.detection.tv.dense_models import FCOS
    ...
    ...     return FCOS(spec, "r18")
    >>> DETECTORS["fcos_by_another_name"].family
    'torchvision'
    """
    from medkd.detection.base import DETECTORS, DetectorEntry

    enter = DETECTORS.register(name, _caller())

    def decorate(build: BuildDetector) -> BuildDetector:
        enter(DetectorEntry(family, build, about))
        return build

    return decorate


def register_converter(
    name: str,
    *,
    summary: str,
    guide: str = "",
    dataset_name: Callable[[Path], str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Callable[[Convert], Convert]:
    """Decorator that makes a source of data known to ``medkd_convert``.

    Args:
        name: of the format.
        summary: a line for the list of formats.
        guide: what to download, and what it must look like.
        dataset_name: proposes a name for a source; None takes it from the source's own name.
        settings: options of this format alone, name → help text.

    Returns:
        A decorator for a function ``(source, folder to write, options)`` that returns a
        :class:`dataset_conversion.report.ConversionReport`.

    Raises:
        ValueError: the name is taken.

    >>> from dataset_conversion import CONVERTERS
    >>> @register_converter("decathlon_inside", summary="a Decathlon folder, one folder deeper")
    ... def convert(source, folder, options):
    ...     return CONVERTERS["msd"].convert(source / "inside", folder, options)
    >>> CONVERTERS["decathlon_inside"].summary
    'a Decathlon folder, one folder deeper'
    """
    from dataset_conversion.registry import CONVERTERS, Converter, name_from_path

    enter = CONVERTERS.register(name, _caller())

    def decorate(convert: Convert) -> Convert:
        called = dataset_name or name_from_path
        enter(Converter(summary, guide or summary, convert, called, settings or {}, task=None))
        return convert

    return decorate


def _caller() -> Any:
    """The module that called a function of this one."""
    return sys._getframe(2).f_globals.get("__name__")
