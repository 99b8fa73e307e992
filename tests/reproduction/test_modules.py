"""Modules of the user's reach the commands of a recipe, and what an interrupt ends is not said to run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medkd.reproduction import runner
from medkd.reproduction.state import Record, State
from tests.reproduction.test_runner import Pretended, PretendedEngine, go, graph


def test_every_command_imports_the_modules_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is due again for them."""
    monkeypatch.setattr(runner, "_PAUSE", 0.0)
    nodes, engine = graph(tmp_path), PretendedEngine(tmp_path)
    runner.Runner(nodes, State(tmp_path, "toy"), engine, lambda line: None, ["my_nets"]).run()
    assert set(engine.commands) == set(nodes)
    for command in engine.commands.values():
        assert command[1:3] == ("-m", "medkd") and command[4:6] == ("--import", "my_nets")
    again = PretendedEngine(tmp_path)
    go(tmp_path, nodes, again)
    assert again.begun == ["prepare"]
    assert (
        nodes["large-fold0"].shown(["my_nets"]).startswith("medkd_train --import my_nets Dataset900_Phantom res_unet")
    )


@pytest.mark.parametrize("lives_on", [False, True])
def test_what_an_interrupt_ended_is_not_said_to_run(
    lives_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the local engine's commands; jobs of a cluster go on."""
    monkeypatch.setattr(runner, "_PAUSE", 0.0)
    nodes, engine = graph(tmp_path), PretendedEngine(tmp_path)
    name = "middle-fold0"
    if lives_on:
        engine.alive[f"ticket {name}"] = Pretended(0)

    def interrupt(line: str) -> None:
        if f"{name} begins" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.Runner(nodes, State(tmp_path, "toy"), engine, interrupt).run()
    record = State(tmp_path, "toy").read()[name]
    assert (record.status, record.error) == (("running", "") if lives_on else ("failed", runner.STOPPED))
    assert sorted(go(tmp_path, nodes, PretendedEngine(tmp_path)).done) == sorted(nodes)
    gone = Record(command=(), status="running", ticket="999999999 1.0 0")
    assert (
        runner.is_lost(gone)
        and not runner.is_lost(replace(gone, status="done"))
        and not runner.is_lost(replace(gone, ticket="4711"))
    )
