"""What all commands share: options, logging, and one sentence instead of a traceback."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medkd import __version__
from medkd.core.errors import WARNING, DataError, MedkdError, RunError
from medkd.core.limits import on_the_command_line
from medkd.core.plugins import import_plugin
from medkd.core.processes import started_together

ROOT_HELP = "medkd's folder with raw, preprocessed and results (default: $MEDKD_ROOT, else ./medkd_data)"
IMPORT_HELP = "import this module of yours first, which registers networks, methods, detectors or formats; repeatable"
_IN_SEVERAL_PROCESSES = ("medkd_train", "medkd_train_distill")


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser with the options of all commands and an example, whose first word is the command, in its
    help.
    """
    command = example.split()[0] if example else None
    result = argparse.ArgumentParser(
        prog=command,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"%(prog)s of medkd {__version__}")
    result.add_argument("--root", type=Path, help=ROOT_HELP)
    result.add_argument("--import", dest="imports", action="append", metavar="MODULE", default=[], help=IMPORT_HELP)
    result.add_argument("-v", "--verbose", action="store_true", help="say more, and show tracebacks")
    return result


def run(
    main: Callable[[argparse.Namespace], int | None],
    arguments: argparse.ArgumentParser | Callable[[], argparse.ArgumentParser],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, set up logging, import the modules that the user named, call ``main``; a :class:`MedkdError`, or what the
    system refuses, is printed as one line and gives status 1.

    Args:
        main: the command.
        arguments: its parser, or what makes it where the parser depends on the modules that the user named.
        argv: the words of the command; None takes those of the process.

    Returns:
        The exit status: ``main``'s own, 1 for a user's error, 130 when interrupted, 141 when nobody reads any more
        what it prints (``medkd_list | head``), as of other programs.
    """
    print_anywhere()
    threading.excepthook = _in_a_thread
    verbose = False
    try:
        with on_the_command_line():
            if not isinstance(arguments, argparse.ArgumentParser):
                _import(_imports_of(argv))
                arguments = arguments()
            options = arguments.parse_args(argv)
            verbose = options.verbose
            _start_logging(verbose)
            _refuse_several_processes(arguments.prog)
            _refuse_null(options)
            _import(options.imports)
            status = main(options) or 0
            if sys.stdout is not None:  # as where a scheduler closed it
                sys.stdout.flush()  # here, where it is caught, and not while Python ends
            return status
    except (MedkdError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 128 + signal.SIGPIPE
        if verbose:
            logging.getLogger(__name__).exception("details")
        sys.stderr.write(f"error: {sentence(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was finished is kept\n")
        return 130


def _reader_left() -> bool:
    """Whether nobody reads standard output any more; what is left of it then goes nowhere, else Python complains at its
    end.
    """
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or a test's or a notebook's, of no file
        return False
    state = select.poll()
    state.register(output, select.POLLOUT)
    left = any(event & select.POLLERR for _, event in state.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return left


def _refuse_several_processes(command: str) -> None:
    """Only trainings share their work with others that ``torchrun`` started; the rest would write the same files."""
    count = started_together()
    if count > 1 and command not in _IN_SEVERAL_PROCESSES:
        raise RunError(
            f"{command} works in one process, but {count} were started (WORLD_SIZE={count}); start it without torchrun."
        )


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an argument.

    >>> positive("3")
    3
    """
    value = int(text) if text.strip().lstrip("+-").isdecimal() and len(text) < 20 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, found '{text}'")
    return value


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and ``--threads`` of the commands that predict scans."""
    parser.add_argument(
        "--engine",
        choices=("torch", "openvino", "onnxruntime", "auto"),
        help="what computes the network on a CPU; other than torch it is converted once and compared with torch "
        "whenever it is opened, auto takes the fastest that is installed and agrees (default: torch, of an exported "
        "model what is installed)",
    )
    parser.add_argument(
        "--threads", type=positive, help="of OpenVINO or ONNX Runtime, where --engine names one (default: all cores)"
    )


def add_options_of_tasks(parser: argparse.ArgumentParser, step: str) -> None:
    """Add the options that a task brings with it (:attr:`medkd.tasks.Task.add_options`)."""
    from medkd.tasks import every_task  # which the overview of the commands does without

    for task in every_task():
        if task.add_options is not None:
            task.add_options(parser, step)


def add_postprocessing(parser: argparse.ArgumentParser) -> None:
    """Add the choice of what label maps go through at last: a file, False, or None for what belongs to the model."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--postprocessing",
        type=Path,
        metavar="FILE",
        help="postprocessing.json (default: that which medkd_cross_validate found for these folds, or that of an "
        "exported model)",
    )
    either.add_argument(
        "--no-postprocessing",
        dest="postprocessing",
        action="store_const",
        const=False,
        help="leave label maps as the network gives them",
    )


def names(text: str) -> tuple[str, ...]:
    """Names joined by commas, as the type of an argument.

    >>> names("liver, spleen")
    ('liver', 'spleen')
    """
    parts = [part.strip() for part in text.split(",")]
    return tuple(part for part in parts if part)


def given(options: argparse.Namespace, wanted: Iterable[str]) -> dict[str, Any]:
    """Those of the wanted options that were given: what is neither None nor an unset switch."""
    found = {}
    for name in wanted:
        value = getattr(options, name, None)
        if value is not None and value is not False:
            found[name] = value
    return found


def sentence(error: Exception) -> str:
    """What an error says; of one that a loader process raised, without the traceback that torch puts before it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        text = ": ".join([*files, error.strerror])
    if "DataLoader worker process" not in text.partition("\n")[0]:
        return text or type(error).__name__
    return text.strip().rpartition("\n")[2].partition(": ")[2] or text


def print_anywhere() -> None:
    """A terminal or pipe that knows ASCII only gets a ``?`` for what it cannot show, instead of an end."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _in_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Of what the system refuses to a library's thread (TensorBoard's, on a full disk) the main thread says a
    sentence.
    """
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


class _Marked(logging.Formatter):
    """Lines that say which of them are warnings."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, behind :data:`~medkd.core.errors.WARNING` where it is one."""
        text = super().format(record)
        marked = record.levelno != logging.WARNING or text.startswith(WARNING)
        return text if marked else f"{WARNING}{text}"


def _start_logging(verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.INFO
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_Marked("%(message)s"))
    logging.basicConfig(level=level, handlers=[terminal], force=True)
    for noisy in ("matplotlib", "PIL", "nibabel.global"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not verbose:  # of each slice what its header does against the standard; what matters, medkd says itself
        for handler in logging.root.handlers:  # pydicom sets its logger's level when it is imported
            handler.addFilter(lambda record: record.name != "pydicom" or record.levelno >= logging.ERROR)
        warnings.filterwarnings("ignore", module="pydicom")
        warnings.filterwarnings(
            "ignore", message=".torch.jit", category=FutureWarning
        )  # timm's, each time it is imported


def _import(modules: Iterable[str]) -> None:
    for module in modules:
        import_plugin(module)


def _imports_of(argv: Sequence[str] | None) -> list[str]:
    """The modules that a command's words name, before its parser is made."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--import", dest="imports", action="append", nargs="?", default=[])
    found, _ = early.parse_known_args(argv)
    return [module for module in found.imports if module]


def _refuse_null(options: argparse.Namespace) -> None:
    for value in vars(options).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, (str, Path)) and "\0" in str(part):
                shown = str(part).replace("\0", "\\0")
                raise DataError(
                    f"An argument holds a null character, which no name or path may: '{shown}'; leave it out."
                )


def axis(text: str) -> int | None:
    """One value of ``--mirror-axes``: the number of an axis, or None for ``none``."""
    if text not in ("none", "0", "1", "2"):
        raise argparse.ArgumentTypeError(f"must be none, 0, 1 or 2, found '{text}'")
    return None if text == "none" else int(text)


def axes(given: Sequence[int | None] | None) -> tuple[int, ...] | None:
    """All values of ``--mirror-axes``; () where it says none, None where it was not given."""
    return None if given is None else tuple(axis for axis in given if axis is not None)
