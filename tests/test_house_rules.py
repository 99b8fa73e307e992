"""The rules of the house that neither the linter nor the type checker knows."""

from __future__ import annotations

import ast
import gc
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION, USUAL_FUNCTION = 400, 60, 35

# files that are longer than that, with their lines; the list may only become shorter
STILL_LONG: dict[str, int] = {}

# functions of tests that are longer than they should be, with their lines; the list may only become shorter
STILL_LONG_FUNCTIONS = {
    "tests/evaluation/report/test_detection_write.py make_run": 64,
    "tests/training/builders.py make_dataset": 65,
}

# constants that stand in more than one place; the numbers may only become smaller
STILL_REPEATED: dict[object, int] = {}
MOST_COMPLEX = 10  # of a function, grade B

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _trees(folder: str) -> dict[str, ast.Module]:
    files = sorted((ROOT / folder).rglob("*.py"))
    gc.disable()  # it would look at all the nodes again and again
    try:
        return {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in files}
    finally:
        gc.enable()


def trees(*folders: str) -> dict[str, ast.Module]:
    """Path below the repository → syntax tree."""
    return {name: tree for folder in folders for name, tree in _trees(folder).items()}


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
    found = {}
    for name, tree in everything().items():
        for function in functions(tree):
            allowed = STILL_LONG_FUNCTIONS.get(f"{name} {function.name}", MAX_FUNCTION)
            if length(function) > allowed:
                found[f"{name}:{function.lineno} {function.name}"] = length(function)
    assert found == {}


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


def is_dataclass(node: ast.ClassDef) -> ast.expr | None:
    """The decorator that makes a class a dataclass."""
    for decorator in node.decorator_list:
        named = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(named) in ("dataclass", "dataclasses.dataclass"):
            return decorator
    return None


def fields_in(node: ast.ClassDef) -> int:
    """Fields that a class adds, without class variables and those that are given by name."""
    annotated = [ast.unparse(child) for child in node.body if isinstance(child, ast.AnnAssign)]
    return sum("ClassVar" not in child and "kw_only=True" not in child for child in annotated)


def test_large_dataclasses_take_their_values_by_name() -> None:
    """Six values in a row are mixed up sooner or later."""
    found = set()
    for name, tree in package().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef) or fields_in(node) <= 5:
                continue
            decorator = is_dataclass(node)
            if decorator is not None and "kw_only=True" not in ast.unparse(decorator):
                found.add(f"{name}: {node.name}")
    assert found == set()


def private_imports(tree: ast.Module, module: str) -> list[str]:
    """Names with a leading underscore that a module takes from another package."""
    package = module.split("/")[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            other = node.module.split(".")
            own = other[: len(package)] == package or other[:-1] == package
            hidden = [
                alias.name for alias in node.names if alias.name.startswith("_") and not alias.name.endswith("__")
            ]
            hidden += [part for part in other if part.startswith("_") and part != "__future__"]
            if other[0] in ("medkd", "dataset_conversion") and not own:
                found += [f"{module}:{node.lineno} {name}" for name in hidden]
    return found


def test_no_package_uses_what_another_hides() -> None:
    shipped = {**package(), **trees("benchmarks")}
    assert [place for name, tree in shipped.items() for place in private_imports(tree, name)] == []


def test_no_test_imports_ultralytics_past_the_switches() -> None:
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node).startswith("pytest.importorskip('ultralytics'"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module has at its top level, also under an ``if`` or ``try``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_benchmarks_import_what_is_there() -> None:
    """The type checker does not see them, and a name that has moved is found by whoever starts one."""
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): tree
        for name, tree in everything().items()
    }
    missing = []
    for name, tree in trees("benchmarks").items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if node.module.split(".")[0] not in ("medkd", "benchmarks", "dataset_conversion"):
                continue
            known = _defined(modules[node.module]) if node.module in modules else set()
            wanted = [alias.name for alias in node.names if f"{node.module}.{alias.name}" not in modules]
            missing += [f"{name}: {node.module}.{alias}" for alias in wanted if alias not in known]
    assert not missing


def test_benchmarks_use_what_users_may_use() -> None:
    """A benchmark that reaches into a class measures something that no user can do, and breaks with every change."""
    found = []
    for name, tree in trees("benchmarks").items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.endswith("__"):
                continue
            if ast.unparse(node.value) not in ("self", "cls", "super()"):
                found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert found == []


def too_complex(source: str) -> bool:
    """Whether a function of a module is worse than grade B."""
    radon = pytest.importorskip("radon.complexity")
    return any(block.complexity > MOST_COMPLEX for block in radon.cc_visit(source))


def test_no_function_is_more_complex_than_grade_b() -> None:
    """What ``make lint`` asks of the code that is shipped, asked again here, file by file."""
    files = [path for folder in ("medkd", "dataset_conversion", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    complex_files = [str(path.relative_to(ROOT)) for path in files if too_complex(path.read_text(encoding="utf-8"))]
    assert complex_files == []


@pytest.mark.parametrize("wanted", [7919, "run.json", "checkpoint_final.pt", "splits_final.json", "plans.json"])
def test_a_constant_stands_once(wanted: object) -> None:
    """The helpers' seed and the names of files are defined in one place, and imported."""
    found = []
    for name, tree in package().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value == wanted and type(node.value) is type(wanted):
                found.append(f"{name}:{node.lineno}")
    assert len(found) <= STILL_REPEATED.get(wanted, 1), found


def test_digits_are_not_asked_for_before_int() -> None:
    """``"²".isdigit()`` is true and ``int`` refuses it; :func:`medkd.core.numbers.whole_number` answers."""
    found = []
    for name, tree in package().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "isdigit" and name != "medkd/core/numbers.py":
                found.append(f"{name}:{node.lineno}")
    assert found == []


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
