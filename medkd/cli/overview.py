"""``python -m medkd COMMAND …``: every command, also where none is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from medkd import __version__
from medkd.cli import COMMANDS
from medkd.cli.common import print_anywhere
from medkd.core.serial import nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, or list them all.

    Returns:
        The command's exit status; 2 for an unknown command.
    """
    print_anywhere()
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(_overview())
        return 0
    if first == "--version":
        print(f"medkd {__version__}")
        return 0
    name = first.removeprefix("medkd_")
    if name not in COMMANDS:
        sys.stderr.write(f"error: Unknown command '{first}'.{nearest(name, COMMANDS)} Known: {', '.join(COMMANDS)}.\n")
        return 2
    module, _ = COMMANDS[name]
    return import_module(f"medkd.cli.{module}").main(arguments[1:])


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"medkd {__version__}", "", "usage: python -m medkd COMMAND …, or medkd_COMMAND …", ""]
    for name, (_, does) in COMMANDS.items():
        lines.append(f"  {name.ljust(width)}  {does}")
    return "\n".join([*lines, "", "python -m medkd COMMAND --help says what a command takes."])
