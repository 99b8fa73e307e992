"""Why a command of a recipe failed and what it warned of, from the words of its own goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.reproduction.graph import Node
from medkd.reproduction.state import Record, State


@pytest.mark.parametrize(
    ("words", "log", "why"),
    [
        (("train", "4"), "epoch 1\nerror: The disk is full.\n", "The disk is full."),
        (("train", "4"), "warning: case a is odd\n", "it ended with status 1, see {output}"),
        (("convert", "fracatlas"), "warning: case a is odd\n", "cases were left out or have problems, see {output}; "),
        (("convert", "fracatlas"), "error: case.png is cut off\n", "case.png is cut off"),
    ],
)
def test_why_a_command_failed_is_its_error_or_where_to_read_it(
    words: tuple[str, ...], log: str, why: str, tmp_path: Path
) -> None:
    state, node = State(tmp_path, "toy"), Node(name="first", kind="prepare", words=words)
    record = state.begin("first", list(words), 1, "ticket")
    state.log("first").write_text(log)
    found = state.end(node, record, 1).error
    assert found.startswith(why.format(output=state.output("first")))


def test_what_a_run_warned_of_is_said_and_kept_and_stands_below_the_table(tmp_path: Path) -> None:
    state, node = State(tmp_path, "toy"), Node(name="first", kind="student", words=("train", "4"))
    record = state.begin("first", ["train", "4"], 1, "ticket")
    state.log("first").write_text(
        "epoch 1\nwarning: the teacher finds nothing\nepoch 2\nwarning: the teacher finds nothing\n"
    )
    state.output("first").write_text("/root/fold_0\n")
    assert state.end(node, record, 0).warnings == ("the teacher finds nothing",)
    assert State(tmp_path, "toy").read()["first"].warnings == ("the teacher finds nothing",)
    state.log("first").write_text("".join(f"warning: case {index} is odd\n" for index in range(13)))
    found = state.end(node, record, 0).warnings
    assert found[:2] == ("case 0 is odd", "case 1 is odd") and found[10:] == (
        f"and 3 more times, see {state.log('first')}",
    )


def test_words_of_earlier_commands_are_not_those_of_the_last(tmp_path: Path) -> None:
    state, node = State(tmp_path, "toy"), Node(name="first", kind="student", words=("train", "4"))
    state.output("first").parent.mkdir(parents=True)
    state.output("first").write_text("/root/fold_0\n")

    def done(command: list[str], said: str, code: int) -> Record:
        state.mark("first", command)
        with state.log("first").open("a") as log:  # an engine's command speaks before its record is written
            log.write(said)
        return state.end(node, state.begin("first", ["train", "4"], 1, "ticket"), code)

    assert done(["train", "4"], "warning: no liver\nerror: memory ran out\n", 1).error == "memory ran out"
    killed = done(["train", "4"], "warning: no spleen\n", 1)  # goes on, and ends without a word
    assert killed.error.startswith("it ended with status 1") and killed.warnings == ("no liver", "no spleen")
    assert done(["train", "4"], "", 1).error.startswith("it ended with status 1")
    assert done(["train", "4"], "", 0).warnings == ("no liver", "no spleen")
    assert done(["train", "4"], "warning: again\n", 0).warnings == ("again",)
    assert done(["train", "4", "--overwrite"], "", 0).warnings == ()
    assert state.log("first").read_text().count("warning") == 3
