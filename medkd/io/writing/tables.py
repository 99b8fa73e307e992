"""Names and colours of structures for NIfTI files, which have no place for them of their own: a header extension in the
form of Connectome Workbench's label tables, and 3D Slicer's colour table as a file beside the label maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from medkd.io.writing.structures import Structure

EXTENSION_CODE = 30
"""NIfTI's code of header extensions that Caret and Workbench define."""

COLOUR_TABLE = "labels.ctbl"
"""3D Slicer's colour table beside label maps."""


def label_table(structures: Sequence[Structure]) -> str:
    """The header extension: XML with a ``LabelTable``, one entry per value, background included.

    Args:
        structures: with one value each.
    """
    lines = ['<Label Key="0" Red="0" Green="0" Blue="0" Alpha="0">background</Label>']
    for structure in structures:
        red, green, blue = (f"{part / 255:.4f}" for part in structure.colour)
        lines.append(
            f'<Label Key="{structure.values[0]}" Red="{red}" Green="{green}" Blue="{blue}" Alpha="1">'
            f"{escape(structure.name)}</Label>"
        )
    table = "\n".join(lines)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension>\n<VolumeInformation Index="0">\n<LabelTable>\n'
        f"{table}\n</LabelTable>\n<VolumeType>Label</VolumeType>\n</VolumeInformation>\n</CaretExtension>\n"
    )


def colour_table(structures: Sequence[Structure]) -> str:
    """3D Slicer's colour table, a line per value: value, name without blanks, red, green, blue, opacity.

    Args:
        structures: with one value each.
    """
    lines = ["# Color table, written by medkd; value name red green blue opacity", "0 background 0 0 0 0"]
    for structure in structures:
        red, green, blue = structure.colour
        name = "_".join(structure.name.split()) or f"label_{structure.values[0]}"
        lines.append(f"{structure.values[0]} {name} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"
