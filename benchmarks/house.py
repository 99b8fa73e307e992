"""The figures by which the house is kept, from the code alone: ``python -m benchmarks.house [FOLDER]``.

Per package: tokens per line (90th percentile) and comprehensions per thousand lines of code; over all: functions by
cyclomatic complexity (branches counted as McCabe does), and blocks of lines that stand in two files.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("medkd", "dataset_conversion")
BLOCK = 6  # lines of code that count as repeated when they stand in two files
COUNTED = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert, ast.comprehension)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Source:
    """A module: its name below the root, its tree, and its tokens by line."""

    name: str
    tree: ast.Module
    lines: dict[int, list[str]]

    @classmethod
    def read(cls, path: Path, root: Path) -> Source:
        """Parse a file."""
        text = path.read_text(encoding="utf-8")
        lines: dict[int, list[str]] = defaultdict(list)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in COUNTED:
                lines[token.start[0]].append(token.string)
        return cls(str(path.relative_to(root)), ast.parse(text), dict(lines))

    @property
    def package(self) -> str:
        """``medkd/core``; ``dataset_conversion`` for what lies in no folder below it."""
        folders = Path(self.name).parts[:-1]
        return "/".join(folders[:2])


def sources(root: Path) -> list[Source]:
    """Everything that is shipped."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            found.append(Source.read(path, root))
    return found


def dense_line(modules: list[Source]) -> float:
    """Tokens of a line at the 90th percentile."""
    counts = [len(tokens) for module in modules for tokens in module.lines.values()]
    return statistics.quantiles(counts, n=10)[-1] if len(counts) > 1 else 0.0


def comprehensions(modules: list[Source]) -> float:
    """Comprehensions per thousand lines of code."""
    lines = sum(len(module.lines) for module in modules)
    found = 0
    for module in modules:
        found += sum(isinstance(node, COMPREHENSIONS) for node in ast.walk(module.tree))
    return 1000 * found / max(lines, 1)


def complexity(function: ast.AST) -> int:
    """Paths through a function: one, and one more for every branch; functions inside count for themselves."""
    paths, waiting = 1, list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            continue
        if isinstance(node, BRANCHES):
            paths += 1
        if isinstance(node, ast.comprehension):
            paths += len(node.ifs)
        if isinstance(node, ast.BoolOp):
            paths += len(node.values) - 1
        waiting += ast.iter_child_nodes(node)
    return paths


def functions(modules: list[Source]) -> Iterator[tuple[int, str]]:
    """Complexity and place of every function."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, FUNCTIONS):
                yield complexity(node), f"{module.name}:{node.lineno} {node.name}"


def repeated_blocks(modules: list[Source]) -> list[tuple[str, str]]:
    """Places of blocks of :data:`BLOCK` lines of code that stand in two files, the longest run of each once."""
    seen: dict[tuple[str, ...], tuple[str, int]] = {}
    found: list[tuple[str, str]] = []
    for module in modules:
        code = [(number, " ".join(tokens)) for number, tokens in sorted(module.lines.items()) if len(tokens) > 2]
        free = 0  # lines before this one belong to a block that was found already
        for start in range(len(code) - BLOCK + 1):
            block = tuple(text for _, text in code[start : start + BLOCK])
            if block[0].startswith(("import ", "from ")):
                continue
            first = seen.setdefault(block, (module.name, code[start][0]))
            if first[0] != module.name and start >= free:
                found.append((f"{first[0]}:{first[1]}", f"{module.name}:{code[start][0]}"))
                free = start + BLOCK
    return found


def print_packages(modules: list[Source]) -> None:
    """Size and density of every package."""
    packages: dict[str, list[Source]] = defaultdict(list)
    for module in modules:
        packages[module.package].append(module)
    print(f"{'package':<28}{'code lines':>11}{'tokens/line p90':>17}{'comprehensions/kLOC':>21}")
    for name, members in [*sorted(packages.items()), ("all", modules)]:
        lines = sum(len(module.lines) for module in members)
        print(f"{name:<28}{lines:>11}{dense_line(members):>17.1f}{comprehensions(members):>21.1f}")


def grade(paths: int) -> str:
    """In which class of complexity a function is."""
    if paths > 20:
        return "above 20"
    return "11-20" if paths > 10 else "up to 10"


def print_functions(modules: list[Source]) -> None:
    """How many functions are how complex, and the worst ones."""
    measured = sorted(functions(modules), reverse=True)
    grades = Counter(grade(paths) for paths, _ in measured)
    print(f"\nfunctions by complexity: {', '.join(f'{name}: {count}' for name, count in sorted(grades.items()))}")
    for paths, place in measured[:10]:
        print(f"  {paths:>3}  {place}")


def main() -> None:
    """Print the figures."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    modules = sources(root)
    print_packages(modules)
    print_functions(modules)
    blocks = repeated_blocks(modules)
    print(f"\nblocks of {BLOCK} lines that stand in two files: {len(blocks)}")
    for first, second in blocks:
        print(f"  {first} = {second}")


if __name__ == "__main__":
    main()
