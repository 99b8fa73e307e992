"""Pictures as scans: what is no picture is one sentence, and starts no program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.core.errors import DataError
from medkd.io.volumes import read_image


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_postscript_under_another_name_is_not_run(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"case_0000{ending}"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(DataError, match=f"case_0000{ending}.*cannot be read"):
        read_image([path], "case")


def test_a_picture_of_too_many_pixels_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case_0000.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # more than twice as many are refused by Pillow
    with pytest.raises(DataError, match="cannot be read"):
        read_image([path], "case")
