"""Whether a command would take its words, asked of its own parser; nothing is run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import NoReturn

from medkd.cli import COMMANDS
from medkd.core.errors import MedkdError


@dataclass(frozen=True)
class Misunderstood:
    """The first word that a command would refuse.

    Attributes:
        words: the option as it may be written, or what nobody knows.
        reason: why, without a full stop; empty where the command does not have it.
    """

    words: tuple[str, ...]
    reason: str = ""


def misunderstood(words: Sequence[str]) -> Misunderstood | None:
    """What a command's parser would refuse; None where it takes all words.

    Args:
        words: the command, without ``medkd_``, and what follows it.

    >>> misunderstood(["train", "4", "unet_tiny", "0", "--epochs", "3"])
    >>> misunderstood(["train", "4", "unet_tiny", "0", "--targets", "cached"])
    Misunderstood(words=('--targets', 'cached'), reason='')
    """
    parser = _parser(words[0])
    try:
        _, unknown = parser.parse_known_args(words[1:])
    except argparse.ArgumentError as error:
        return Misunderstood(tuple((error.argument_name or "").split("/")), error.message.rstrip("."))
    except MedkdError as error:
        return Misunderstood((), str(error).rstrip("."))
    return Misunderstood(tuple(unknown)) if unknown else None


@cache
def _parser(command: str) -> argparse.ArgumentParser:
    module, _ = COMMANDS[command]
    parser: argparse.ArgumentParser = import_module(f"medkd.cli.{module}")._arguments()
    parser.exit_on_error = False
    parser.error = _raise  # type: ignore[method-assign]  # which would end the program for words that are missing
    return parser


def _raise(message: str) -> NoReturn:
    raise MedkdError(message)
