"""What is installed: commands, packages, data files and licences."""

from __future__ import annotations

import ast
import re
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

import medkd
from medkd import cli

ROOT = Path(__file__).parents[1]


def _setup_value(name: str) -> object:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    values = {
        t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    return ast.literal_eval(values[name])


COMMANDS: dict[str, str] = {f"medkd_{command}": module for command, (module, _) in cli.COMMANDS.items()}


def test_the_installed_commands_are_those_of_setup() -> None:
    installed = {e.name: e.value for e in entry_points(group="console_scripts") if e.value.startswith("medkd.")}
    assert installed == {name: f"medkd.cli.{module}:main" for name, module in COMMANDS.items()}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_shows_the_root_option_and_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = entry_points(group="console_scripts", name=command)
    with pytest.raises(SystemExit) as stop:
        entry.load()(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--root" in text
    assert f"example:\n  {command}" in text


def test_every_folder_with_code_is_a_package() -> None:
    folders = {p.parent for top in ("medkd", "dataset_conversion") for p in (ROOT / top).rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_data_files_inside_the_packages_are_shipped() -> None:
    """A file that works in a clone but is missing from the wheel fails only at the user's."""
    shipped = tuple(pattern.removeprefix("*") for pattern in _setup_value("DATA_FILES"))  # type: ignore[attr-defined]
    files = [
        p
        for top in ("medkd", "dataset_conversion")
        for p in (ROOT / top).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    ]
    assert [str(p.relative_to(ROOT)) for p in files if p.suffix != ".py" and not p.name.endswith(shipped)] == []


def test_packages_with_a_strong_licence_are_optional() -> None:
    """ultralytics (AGPL-3.0) and medpy (GPL-3.0) come with an extra only."""
    required = [r for r in metadata("medkd").get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert required
    assert [r for r in required if r.lower().startswith(("ultralytics", "medpy"))] == []


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [c for c in COMMANDS if f"`{c}" not in text] == []


def test_the_version_stands_once() -> None:
    """In the package; setup.py and the citation follow."""
    assert metadata("medkd")["Version"] == medkd.__version__
    assert f"version: {medkd.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {medkd.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)[^)]*\)", text):
            if "://" in target:
                continue
            place = page.parent / target if target else page
            if not place.exists():
                broken.append(f"{page.name}: {target}")
            elif anchor and place.suffix == ".md" and anchor not in anchors(place):
                broken.append(f"{page.name}: {target}#{anchor}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by, as public hosts make it."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def test_every_document_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}\n" not in contents] == []
