"""Shared fixtures: where the real data lies, and a quiet, deterministic torch."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_FORKING = Path(__file__).parent / "faults"
_SLOW = 200  # as many tests as a slow one takes time


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real test data; the test is skipped where it is absent."""
    folder = Path(os.environ.get("MEDKD_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set MEDKD_TEST_DATA")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For what is compared with processes of one thread: sums over other chunks round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """What a file has imported stays: looking at a million such objects takes most of a second, and ultralytics has the
    collector look at all five times a training.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What was imported so far stays, too."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that strike forked commands come first, then files with much to do, so that no process ends long before
    the other one: those with slow tests, then those with many.

    A process that OpenVINO, ONNX Runtime, Ray or a GUI library has given threads to cannot be forked safely: the copy
    may wait for ever for a lock that nobody holds.
    """
    work = Counter[Path]()
    for item in items:
        work[item.path] += _SLOW if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: (_FORKING not in item.path.parents, -work[item.path], str(item.path)))


class _Names:
    """Names each failure when it comes, so that a run that is ended from outside has said what failed."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Names(terminal), "names_of_failures")
