"""``medkd_convert``: bring a data set as downloaded into medkd's raw layout, and check it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_conversion import CONVERTERS, ConversionOptions, convert_dataset
from medkd.cli.common import IMPORT_HELP, ROOT_HELP, names, parser, positive, run

_SHOWN = 20
_SETTING = "setting:"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_convert``; status 1 when a case was left out or the result has a problem."""
    return run(_main, _arguments, argv)


def _arguments() -> argparse.ArgumentParser:
    """The parser; a format has options of its own, so the formats must be known first."""
    arguments = parser(
        "Convert a data set, as it is downloaded, to <root>/raw/DatasetNNN_Name (nnU-Net v2's layout), and verify the "
        "result.\n"
        "The source is never changed; running the command again continues.",
        "medkd_convert msd Task04_Hippocampus.tar -d 4\n  medkd_convert msd my_folder -d 12 --labels liver,tumour "
        "--channels CT --link\n"
        "  medkd_convert msd --help      what to download, and what it must look like",
    )
    formats = arguments.add_subparsers(dest="format", metavar="FORMAT", required=True, title="formats")
    for name in CONVERTERS:
        converter = CONVERTERS[name]
        command = formats.add_parser(
            name,
            help=converter.summary,
            description=converter.guide,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_options(command)
        for setting, text in converter.settings.items():
            command.add_argument(f"--{setting}", dest=_SETTING + setting, metavar=setting.upper(), help=text)
    return arguments


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, metavar="SOURCE", help="the data set as downloaded")
    command.add_argument(
        "-d", "--dataset", type=int, required=True, metavar="NNN", help="number of the new data set, 1-999"
    )
    command.add_argument("--name", help="name of the new data set (default: from the source)")
    command.add_argument("--labels", type=names, default=(), metavar="A,B", help="names of the label values 1, 2, ...")
    command.add_argument(
        "--channels", type=names, default=(), metavar="X,Y", help="names of the image channels, for example CT"
    )
    how = command.add_mutually_exclusive_group()
    how.add_argument(
        "--copy", dest="mode", action="store_const", const="copy", default="copy", help="copy the files (default)"
    )
    how.add_argument(
        "--link", dest="mode", action="store_const", const="link", help="make symbolic links to the source's files"
    )
    command.add_argument(
        "--reorient", metavar="CODE", help="turn scans and label maps to this axis code, for example RAS"
    )
    command.add_argument("-np", "--workers", type=positive, help="threads (default: by cores and memory)")
    # the same as before FORMAT; SUPPRESS keeps what was given there
    command.add_argument("--root", type=Path, default=argparse.SUPPRESS, help=ROOT_HELP)
    command.add_argument(
        "--import", dest="imports", action="append", metavar="MODULE", default=argparse.SUPPRESS, help=IMPORT_HELP
    )
    command.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="list every finding, show tracebacks"
    )


def _main(arguments: argparse.Namespace) -> int:
    options = ConversionOptions(
        labels=arguments.labels,
        channels=arguments.channels,
        mode=arguments.mode,
        workers=arguments.workers,
        reorient=arguments.reorient,
        settings=_settings(arguments),
    )
    result = convert_dataset(
        arguments.format, arguments.source, arguments.dataset, name=arguments.name, root=arguments.root, options=options
    )
    for text in (result.conversion.text(), result.verification.text()):
        _show(text, arguments.verbose)
    print(f"reports: {result.folder}/conversion_report.txt, verification_report.txt, contact_sheet.png")
    if not result.ok:
        return 1
    like = f" --like {vars(arguments)[_SETTING + 'like']}" if arguments.format == "folder" else ""
    print(f"next: medkd_plan_and_preprocess -d {arguments.dataset}{like}")
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the format itself; a model that scans are converted for is read here."""
    settings: dict[str, Any] = {}
    for key, value in vars(arguments).items():
        if key.startswith(_SETTING) and value is not None:
            settings[key.removeprefix(_SETTING)] = value
    if arguments.format == "folder" and "like" in settings:
        from medkd.api import data_of_model

        settings["like"] = data_of_model(settings["like"])
    return settings


def _show(text: str, verbose: bool) -> None:
    """Print a report; its first lines suffice unless more is asked for."""
    lines = text.splitlines()
    shown = lines if verbose else lines[:_SHOWN]
    print("\n".join(shown))
    if len(lines) > len(shown):
        print(f"… and {len(lines) - len(shown)} more lines in the report")
