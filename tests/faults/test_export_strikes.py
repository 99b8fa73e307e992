"""An export that replaces another one and is killed leaves the older or the newer one whole, whenever that was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.detection.tv.builders import narrow  # noqa: F401 - a fixture
from tests.faults.killing import run_until, warm_up
from tests.faults.stages import BUNDLE, DETECTOR, NNUNET, ONNX, PACK, Stage
from tests.faults.tally import Tally, is_full, share_of
from tests.faults.trees import digests

_FORMATS = (PACK, NNUNET, ONNX, BUNDLE, DETECTOR)
_LAST = 3  # moments at the end, at which it takes the other's place


def made(root: Path, stage: Stage) -> dict[str, str]:
    """What the export holds, without what a killed process left beside it."""
    return {name: digest for name, digest in digests(root / stage.output).items() if ".tmp-" not in name}


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("stage", _FORMATS, ids=lambda stage: stage.name.replace(", ", "-"))
def test_a_killed_replacement_leaves_the_older_or_the_newer_export(
    stage: Stage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if stage not in (PACK, DETECTOR) and not is_full():
        pytest.skip("a run takes seconds; MEDKD_FAULTS=full")
    start, work = tmp_path / "start", tmp_path / "work"
    stage.start(start)
    warm_up(stage.command, stage.line(start), start)
    (start / "modules").unlink()
    newer = made(start, stage)
    (target,) = (start / stage.output).iterdir()
    changed = target / "README.md" if target.is_dir() else target
    changed.write_bytes(changed.read_bytes() + b"of the older one")
    older = made(start, stage)
    assert older != newer

    def struck(moment: int) -> tuple[int, dict[str, str]]:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(start, work, symlinks=True)
        ended = run_until(stage.command, stage.line(work, "--overwrite"), work, moment, "kill")
        return ended.changes, made(work, stage)

    moments, unbroken = struck(10**9)
    assert unbroken == newer
    tally = Tally(f"kills of replacements: {stage.name}", 0, [])
    last = range(max(0, moments - _LAST), moments)
    for moment in [*share_of(range(moments - _LAST), 2), *last]:
        found = struck(moment)[1]
        tally.check(found in (older, newer), f"at {moment} of {moments}: {sorted(set(found) ^ set(newer))[:5]}")
    tally.finish(request)
