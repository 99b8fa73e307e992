"""What all commands share."""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from medkd.cli import common
from medkd.core.errors import DataError


class _Damaged(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise DataError("case a: expected a PNG, found: text.")


def _read(workers: int) -> None:
    list(DataLoader(_Damaged(), num_workers=workers, generator=torch.Generator()))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_one_sentence_wherever_it_was_raised(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: argparse.Namespace) -> None:
        _read(workers)

    assert common.run(main, common.parser("", ""), []) == 1
    assert capsys.readouterr().err == "error: case a: expected a PNG, found: text.\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/a"), "error: /data/a: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/a"), "error: /data/a: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
        (OSError("1024 requested and 12 written"), "error: 1024 requested and 12 written\n"),
        (OSError(), "error: OSError\n"),
    ],
)
def test_what_the_system_refuses_is_one_line(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: argparse.Namespace) -> None:
        raise error

    assert common.run(main, common.parser("", ""), []) == 1
    assert capsys.readouterr().err == line


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    def main(arguments: argparse.Namespace) -> None:
        raise ValueError("a mistake in the code")

    with pytest.raises(ValueError, match="a mistake"):
        common.run(main, common.parser("", ""), [])


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_nobody_reads_any_more_ends_the_command_in_silence(lines: int) -> None:
    command = f"""
import sys
from medkd.cli import common

def main(arguments):
    for _ in range({lines}):
        print("many words")

sys.stdin.readline()
sys.exit(common.run(main, common.parser("", ""), []))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(b"go\n", timeout=60)
    assert (process.returncode, errors) == (128 + signal.SIGPIPE, b"")


def test_a_command_ends_well_where_a_scheduler_closed_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert common.run(lambda arguments: print("done"), common.parser("", ""), []) == 0


def test_another_broken_pipe_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    def main(arguments: argparse.Namespace) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert common.run(main, common.parser("", ""), []) == 1
    assert capfd.readouterr().err == "error: Broken pipe\n"


def test_lines_that_warn_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: argparse.Namespace) -> None:
        for text in ("the teacher finds nothing", "warning: case a is odd"):
            logging.getLogger("medkd.test").warning(text)
        logging.getLogger("medkd.test").info("epoch 1")

    assert common.run(main, common.parser("", ""), []) == 0
    assert capsys.readouterr().err == "warning: the teacher finds nothing\nwarning: case a is odd\nepoch 1\n"
