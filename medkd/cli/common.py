"""What all commands share: options, logging, and one sentence instead of a traceback."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from medkd.core.errors import MedkdError


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser with ``--root``, ``-v`` and an example in its help."""
    result = argparse.ArgumentParser(
        description=description, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--root",
        type=Path,
        help="medkd's folder with raw, preprocessed and results (default: $MEDKD_ROOT, else ./medkd_data)",
    )
    result.add_argument("-v", "--verbose", action="store_true", help="say more, and show tracebacks")
    return result


def run(
    main: Callable[[argparse.Namespace], int | None],
    arguments: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, set up logging, call ``main``; a :class:`MedkdError`, or what the system refuses, is printed as one line
    and gives status 1.

    Returns:
        The exit status: ``main``'s own, 1 for a user's error, 130 when interrupted.
    """
    options = arguments.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    for noisy in ("matplotlib", "PIL", "nibabel.global"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return main(options) or 0
    except (MedkdError, OSError) as error:
        if options.verbose:
            logging.getLogger(__name__).exception("details")
        sys.stderr.write(f"error: {sentence(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was finished is kept\n")
        return 130


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an argument."""
    value = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, found '{text}'")
    return value


def sentence(error: Exception) -> str:
    """What an error says; of one that a loader process raised, without the traceback that torch puts before it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = ": ".join(
            [*(str(name) for name in (error.filename, error.filename2) if name is not None), error.strerror]
        )
    if "DataLoader worker process" not in text.partition("\n")[0]:
        return text or type(error).__name__
    return text.strip().rpartition("\n")[2].partition(": ")[2] or text
