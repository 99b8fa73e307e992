"""Scans and label maps turned to one axis code while they are converted (``--reorient``), without interpolation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dataset_conversion.writer import CaseContent, Piece
from medkd.io.orientation import axis_code, turn, turn_geometry
from medkd.io.volumes import Volume, file_ending, read_volume

MARK = "turned"


def reorient(content: CaseContent, code: str) -> CaseContent:
    """The case with every scan's file indices growing along ``code`` (``RAS``), at the same places in space.

    Files that are turned that way already stay as they are; the others are written anew.
    """
    images = tuple(_turned(piece, code) for piece in content.images)
    label = None if content.label is None else _turned(content.label, code)
    if images == content.images and label is content.label:
        return content
    return replace(content, images=images, label=label, marks=(*content.marks, MARK))


def _turned(piece: Piece, code: str) -> Piece:
    if isinstance(piece, Path) and file_ending(piece):
        volume = read_volume(piece, None)
    elif isinstance(piece, Volume):
        volume = piece
    else:  # radiographs and boxes
        return piece
    old = axis_code(volume.geometry)
    if old == code:
        return piece
    return Volume(turn(volume.array, old, code), turn_geometry(volume.geometry, code))
