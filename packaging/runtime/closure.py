"""Which modules of medkd predict with exported models: those that its entry points import, found by reading them."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2]
ENTRIES = (
    "medkd.core.plan_checks",
    "medkd.cli.predict",
    "medkd.cli.serve",
    "medkd.inference.folder",
    "medkd.inference.loaded",
    "medkd.models.exported",
    "medkd.runtime.predictor",
    "medkd.serving.app",
    "medkd.serving.running",
)
"""Commands, functions behind them, the checks of plans and the kind of model, which are imported at run time."""


def packaged() -> list[str]:
    """Names of the modules, without those of packages themselves, which follow from them."""
    found: set[str] = set()
    waiting = list(ENTRIES)
    while waiting:
        module = waiting.pop()
        if module in found or file_of(module) is None:
            continue
        found.add(module)
        waiting += imported(module)
    return sorted(module for module in found if not _is_package(module))


def data_files() -> list[Path]:
    """The JSON files beside the modules whose source names them."""
    found = []
    for module in packaged():
        file = file_of(module)
        if file is None:
            continue
        text = file.read_text(encoding="utf-8")
        found += [data for data in sorted(file.parent.glob("*.json")) if f'"{data.name}"' in text]
    return found


def imported(module: str) -> Iterator[str]:
    """What a module of medkd imports of medkd when it is imported itself."""
    file = file_of(module)
    if file is None:
        return
    for node in _executed(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.partition(".")[0] == "medkd")


def file_of(module: str) -> Path | None:
    """The source of a module; None where there is no such module."""
    path = SOURCES.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _is_package(module: str) -> bool:
    return SOURCES.joinpath(*module.split(".")).is_dir()


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run at import: neither bodies of functions nor what is for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child)
