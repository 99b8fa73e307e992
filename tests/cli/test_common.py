"""What all commands share."""

from __future__ import annotations

import argparse

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
