"""Names from outside the package: modules that a user names, and installed entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medkd.core.errors import MedkdError, RunError
from medkd.core.plugins import import_plugin, installed
from medkd.core.registry import Registry, foreign_modules

COLOURS: Registry[str] = Registry("colour", RunError, "medkd.test_colours")

REGISTERS = f"""
from {__name__} import COLOURS
COLOURS.register("mauve")("#e0b0ff")
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the search path, whose modules are forgotten afterwards, and an empty table."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    COLOURS.__init__("colour", RunError, "medkd.test_colours")  # type: ignore[misc]
    installed.cache_clear()
    yield tmp_path
    installed.cache_clear()
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(folder: Path, *lines: str) -> None:
    """What pip leaves of a package with these entry points."""
    info = folder / "palette-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: palette\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medkd.test_colours]\n" + "\n".join(lines) + "\n")


def test_a_named_module_registers_and_is_remembered(outside: Path) -> None:
    (outside / "palette.py").write_text("import hues")
    (outside / "hues.py").write_text(REGISTERS)
    assert "mauve" not in COLOURS
    import_plugin("palette")
    assert COLOURS["mauve"] == "#e0b0ff"
    assert foreign_modules((COLOURS, "mauve")) == {"mauve": "palette"}  # what the user named, not what it imports


def test_medkds_own_entries_have_no_module() -> None:
    from medkd.distillation import METHODS

    assert foreign_modules((METHODS, "kd+cwd"), (METHODS, "none")) == {}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("palette.py", "", "expects the name of a module"),
        ("a/b", "", "expects the name of a module"),
        ("absent_module", "", "There is no module 'absent_module'"),
        ("palette", "import absent_library", "needs 'absent_library'"),
        ("palette", "raise ValueError('no paint')", r"cannot be imported \(ValueError: no paint\)"),
        ("palette", "def f(:", r"cannot be imported \(SyntaxError"),
    ],
)
def test_a_module_that_does_not_come_is_one_sentence(outside: Path, name: str, content: str, text: str) -> None:
    (outside / "palette.py").write_text(content)
    with pytest.raises(MedkdError, match=text) as caught:
        import_plugin(name)
    assert "\n" not in str(caught.value)


def test_what_a_file_names_is_never_imported(outside: Path) -> None:
    (outside / "palette.py").write_text(REGISTERS)
    with pytest.raises(RunError, match=r"the colour 'mauve' of the module 'palette'; give --import"):
        COLOURS.require("mauve", "palette", "run")
    assert "palette" not in sys.modules
    import_plugin("palette")
    assert COLOURS.require("mauve", "palette", "run") == "#e0b0ff"


@pytest.mark.parametrize("module", ["__main__", "rm -rf /; \x1b[31m\n", "../x"])
def test_a_strange_module_in_a_file_is_not_repeated(module: str) -> None:
    with pytest.raises(RunError, match="of a script or notebook") as caught:
        COLOURS.require("beige", module, "run")
    assert module not in str(caught.value)


def test_installed_entry_points_load_when_their_name_is_needed(outside: Path) -> None:
    (outside / "palette.py").write_text(REGISTERS)
    (outside / "paints.py").write_text("RED = '#ff0000'")
    install(outside, "mauve = palette", "red = paints:RED")
    assert {"palette", "paints"} & set(sys.modules) == set()
    assert COLOURS["red"] == "#ff0000" and "palette" not in sys.modules
    assert sorted(COLOURS) == ["mauve", "red"]
    assert foreign_modules((COLOURS, "red+mauve")) == {"red": "paints", "mauve": "palette"}
    assert COLOURS.require("red", "paints", "run") == "#ff0000"


def test_an_entry_point_that_fails_does_not_hide_the_others(outside: Path, caplog: pytest.LogCaptureFixture) -> None:
    (outside / "paints.py").write_text("RED = '#ff0000'")
    (outside / "empty.py").write_text("")
    install(outside, "grey = absent_module:GREY", "none = empty", "red = paints:RED")
    assert list(COLOURS) == ["red"]
    assert "'grey' of palette" in caplog.text and "registers no colour 'none'" in caplog.text
    with pytest.raises(MedkdError, match="mend or uninstall palette"):
        COLOURS["grey"]


def test_an_unknown_name_says_how_to_bring_ones_own(outside: Path) -> None:
    COLOURS.register("red")("#ff0000")
    with pytest.raises(RunError, match=r"Did you mean 'red'\? Known: red; for one of your own give --import MODULE\."):
        COLOURS["rad"]
