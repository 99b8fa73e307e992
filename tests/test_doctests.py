"""The examples in the docstrings run, and there are enough of them."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from dataset_conversion.registry import CONVERTERS
from medkd.detection.base import DETECTORS
from medkd.distillation import METHODS
from medkd.networks import NETWORKS

MODULES = [
    "medkd.api",
    "medkd.cli.common",
    "medkd.cli.training_options",
    "medkd.core.geometry",
    "medkd.core.labels",
    "medkd.core.limits",
    "medkd.core.numbers",
    "medkd.core.paths",
    "medkd.core.plugins",
    "medkd.core.registry",
    "medkd.core.serial",
    "medkd.core.splits",
    "medkd.distillation.base",
    "medkd.evaluation.segmentation.metrics",
    "medkd.evaluation.statistics",
    "medkd.networks.base",
    "medkd.preprocessing.resampling",
    "medkd.register",
    "medkd.tasks",
    "medkd.training.options",
]
LEAST = 85  # lines of examples; may only become more


def examples(module: str) -> list[doctest.DocTest]:
    """The docstrings of a module that hold examples."""
    return [test for test in doctest.DocTestFinder().find(import_module(module)) if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples_do_what_they_show(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (NETWORKS, METHODS, DETECTORS, CONVERTERS):  # examples may register something
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_modules", dict(registry._modules))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report: list[str] = []
    for test in examples(module):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries > 0


def test_there_are_enough_examples() -> None:
    assert sum(len(test.examples) for module in MODULES for test in examples(module)) >= LEAST
