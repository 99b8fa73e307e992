"""The rules of the house that neither the linter nor the type checker knows."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION, USUAL_FUNCTION = 400, 60, 35

# files that are longer than that, with their lines; the list may only become shorter
STILL_LONG = {
    "tests/dataset_conversion/test_msd.py": 412,
    "tests/models/test_bundle.py": 445,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees(*folders: str) -> dict[str, ast.Module]:
    """Path below the repository → syntax tree."""
    files = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in files}


def package() -> dict[str, ast.Module]:
    """What is shipped."""
    return trees("medkd", "dataset_conversion")


def everything() -> dict[str, ast.Module]:
    """What is shipped, and tests and benchmarks."""
    return trees("medkd", "dataset_conversion", "benchmarks", "tests")


def functions(tree: ast.Module) -> Iterator[Function]:
    """All functions, nested ones and methods too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(node: Function) -> int:
    """Lines of a function from its ``def`` to its end, without its docstring."""
    documented = ast.get_docstring(node, clean=False) is not None
    docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0  # type: ignore[operator]
    return node.end_lineno - node.lineno + 1 - docstring  # type: ignore[operator]


def public(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public classes and functions of a module and the public methods of its public classes."""
    for child in node.body:
        if isinstance(child, (Function, ast.ClassDef)) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{child.name}.")


def unannotated(node: Function) -> list[str]:
    """Names of the parameters without annotation, and ``return``."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    missing = [a.arg for a in arguments if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
    return missing + ([] if node.returns is not None else ["return"])


def test_files_are_short() -> None:
    long = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in everything()}
    assert {name: lines for name, lines in long.items() if lines > STILL_LONG.get(name, MAX_FILE)} == {}


def test_functions_are_short() -> None:
    lengths = {f"{name}:{f.lineno} {f.name}": length(f) for name, tree in everything().items() for f in functions(tree)}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION} == {}


def test_nine_functions_in_ten_fit_on_a_screen() -> None:
    lengths = [length(f) for tree in package().values() for f in functions(tree)]
    assert statistics.quantiles(lengths, n=10)[-1] < USUAL_FUNCTION


def test_every_module_is_documented() -> None:
    shipped = {**package(), **trees("benchmarks")}
    bare = [
        name for name, tree in shipped.items() if not name.endswith("__init__.py") and ast.get_docstring(tree) is None
    ]
    assert bare == []


def test_everything_public_is_documented() -> None:
    bare = [
        f"{name}: {label}"
        for name, tree in package().items()
        for label, node in public(tree)
        if ast.get_docstring(node) is None
    ]
    assert bare == []


def test_everything_public_is_annotated() -> None:
    bare = {
        f"{name}: {label}": unannotated(node)
        for name, tree in package().items()
        for label, node in public(tree)
        if isinstance(node, Function) and unannotated(node)
    }
    assert bare == {}


def narrows(node: ast.AST) -> bool:
    """Whether an assert only tells the type checker what the code before it made sure of (``x is not None``)."""
    tests = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]  # type: ignore[attr-defined]
    return all(isinstance(t, ast.Compare) and isinstance(t.ops[0], ast.IsNot) for t in tests)


@pytest.mark.parametrize("rule", ["star import", "assert", "print"])
def test_package_code_is_free_of(rule: str) -> None:
    found = []
    for name, tree in package().items():
        for node in ast.walk(tree):
            star = isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
            printed = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            asserted = isinstance(node, ast.Assert) and not narrows(node)
            hit = {"star import": star, "assert": asserted, "print": printed and "medkd/cli/" not in name}[rule]
            found += [f"{name}:{node.lineno}"] if hit else []  # type: ignore[attr-defined]
    assert found == []


def test_only_one_module_unpickles() -> None:
    """A checkpoint from elsewhere can run code, so that only the guarded loader may call ``torch.load``."""
    found = [
        f"{name}:{node.lineno}"
        for name, tree in package().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "pickle.load", "pickle.loads")
    ]
    assert [place for place in found if not place.startswith("medkd/core/checkpoint.py")] == []


def test_nothing_is_left_for_later() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    found = [name for name in everything() for word in words if word in (ROOT / name).read_text(encoding="utf-8")]
    assert found == []


def test_the_measures_measure() -> None:
    tree = ast.parse(
        'def f(a, b: int):\n    """One\n    two."""\n    return a\n\n\nclass C:\n    def g(self) -> None: ...\n    def '
        "_h(self): ..."
    )
    assert length(next(functions(tree))) == 2
    assert [label for label, _ in public(tree)] == ["f", "C", "C.g"]
    assert unannotated(next(functions(tree))) == ["a", "return"]
