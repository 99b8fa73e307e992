"""The who-imports-whom table of docs/architecture.md, held against the code by reading its imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# package → the packages it may import; keep equal to the table in docs/architecture.md (the last test compares them)
TABLE: dict[str, set[str]] = {
    "core": set(),
    "io": {"core"},
    "networks": {"core"},
    "distillation": {"core"},
    "tasks": {"core"},
    "evaluation": {"core", "io", "tasks"},
    "preprocessing": {"core", "io"},
    "models": {"core", "io", "networks", "preprocessing", "runtime", "tasks"},
    "runtime": {"core", "preprocessing"},
    "inference": {"core", "networks", "preprocessing", "models", "io", "runtime"},
    "exporting": {"core", "io", "networks", "preprocessing", "models", "runtime", "inference"},
    "training": {
        "core",
        "io",
        "networks",
        "distillation",
        "evaluation",
        "preprocessing",
        "models",
        "inference",
        "runtime",
    },
    "detection": {"core", "io", "networks", "distillation", "evaluation", "models", "runtime", "training"},
    "serving": {"core", "io", "preprocessing", "runtime", "inference"},
    "api": {"core", "preprocessing", "evaluation", "inference", "models", "training", "detection", "tasks"},
    "reproduction": {"core", "tasks", "networks", "distillation", "evaluation", "detection", "dataset_conversion"},
    "register": {"core", "networks", "distillation", "detection", "dataset_conversion"},
    "cli": {
        *("core", "io", "networks", "distillation", "evaluation", "training", "detection"),
        *("tasks", "api", "exporting", "reproduction", "inference", "models", "serving", "dataset_conversion"),
    },
    "dataset_conversion": {"core", "io", "tasks"},
}

FACE = "medkd"  # medkd/__init__.py and medkd/__main__.py, which may import everything, late; all may read the version

# of training, detection may use what does not lead to these
SEGMENTATION_ONLY = {"networks", "preprocessing", "inference"}

# library → the package whose modules may import it at their top; None: only inside functions, everywhere
HEAVY: dict[str, str | None] = {
    "SimpleITK": None,
    "matplotlib": None,
    "tensorboard": None,
    "wandb": None,
    "mlflow": None,
    "optuna": None,
    "pydicom": None,
    "highdicom": None,
    "onnx": None,
    "nncf": None,
    "fastapi": "serving",
    "starlette": "serving",
    "uvicorn": "serving",
    "medpy": None,
    "ultralytics": "detection",
    "torchvision": "detection",
    "timm": "detection",
    "pycocotools": "detection",
}


def package_of(module: str) -> str:
    """``medkd.core.files`` → ``core``; ``dataset_conversion.msd`` → ``dataset_conversion``."""
    parts = module.split(".")
    if parts[0] == "medkd" and (len(parts) == 1 or parts[1].startswith("__")):
        return FACE
    return parts[1] if parts[0] == "medkd" and len(parts) > 1 else parts[0]


@cache
def imports(source: str, module: str) -> tuple[tuple[str, bool], ...]:
    """Every module that ``source`` imports, and whether the import stands outside of any function."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(module.split(".")[: -child.level]) if child.level else ""
                source_name = ".".join(filter(None, (base, child.module)))
                yield from ((f"{source_name}.{alias.name}", top) for alias in child.names)
            else:
                function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, top and not function and not _for_type_checkers(child))

    return tuple(walk(ast.parse(source), True))


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def sources() -> dict[str, str]:
    """Module name → source of everything that is shipped."""
    files = [p for folder in ("medkd", "dataset_conversion") for p in sorted((ROOT / folder).rglob("*.py"))]
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p.read_text(encoding="utf-8")
        for p in files
    }


def climbing(modules: dict[str, str]) -> list[str]:
    """Imports that the table does not allow."""
    found = []
    for module, source in modules.items():
        here = package_of(module)
        for target, _ in imports(source, module):
            if here != FACE and target.split(".")[0] in ("medkd", "dataset_conversion"):
                there = package_of(target)
                if there != FACE and there not in TABLE.get(here, set()) | {here}:
                    found.append(f"{module} imports {target}: {here} may import {sorted(TABLE.get(here, set()))}")
    return found


def reachable(modules: dict[str, str], start: str) -> set[str]:
    """Every shipped module that ``start`` imports, directly or through others."""
    seen, stack = set(), [start]
    while stack:
        module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        for target, _ in imports(modules[module], module):
            stack += [m for m in (target, target.rpartition(".")[0]) if m in modules]
    return seen


def segmentation_in_detection(modules: dict[str, str]) -> list[str]:
    """Modules of training that detection imports although they lead to parts that know segmentation only."""
    found = []
    for module, source in modules.items():
        if package_of(module) != "detection":
            continue
        used = {m for target, _ in imports(source, module) for m in (target, target.rpartition(".")[0])}
        for training in sorted(m for m in used & set(modules) if package_of(m) == "training" and m.count(".") > 1):
            leads_to = {package_of(m) for m in reachable(modules, training)} & SEGMENTATION_ONLY
            if leads_to:
                found.append(f"{module} imports {training}, which leads to {sorted(leads_to)}")
    return found


def heavy_at_top(modules: dict[str, str]) -> list[str]:
    """Heavy libraries imported at module level outside of their corner."""
    return [
        f"{module} imports {target} at module level"
        for module, source in modules.items()
        for target, top in imports(source, module)
        for library in [target.split(".")[0] if "tensorboard" not in target else "tensorboard"]
        if top and library in HEAVY and HEAVY[library] != package_of(module)
    ]


def test_no_import_points_up() -> None:
    assert climbing(sources()) == []


def test_every_permitted_arrow_is_used() -> None:
    """A table that permits more than is used hides the next import that should be thought about."""
    used: dict[str, set[str]] = {package: set() for package in TABLE}
    for module, source in sources().items():
        for target, _ in imports(source, module):
            if target.split(".")[0] in ("medkd", "dataset_conversion"):
                used.get(package_of(module), set()).add(package_of(target))
    assert {package: allowed - used[package] for package, allowed in TABLE.items() if allowed - used[package]} == {}


# packages side by side: none of a group may import another of it, directly or through what it imports
APART = (("medkd.evaluation.segmentation", "medkd.evaluation.detection"),)


def arrows_between_twins(modules: dict[str, str]) -> list[str]:
    """Modules of one of two packages that lead to the other, at whatever level of a function."""
    found = []
    for group in APART:
        for module in sorted(modules):
            own = next((package for package in group if f"{module}.".startswith(f"{package}.")), None)
            if own is None:
                continue
            for target in sorted(reachable(modules, module)):
                if any(f"{target}.".startswith(f"{package}.") for package in group if package != own):
                    found.append(f"{module} leads to {target}")
    return found


def test_the_two_kinds_of_evaluation_know_nothing_of_each_other() -> None:
    assert arrows_between_twins(sources()) == []


def test_an_arrow_between_twins_would_be_found() -> None:
    modules = {
        "medkd.evaluation.segmentation.a": "from medkd.evaluation.middle import x",
        "medkd.evaluation.middle": "def f():\n    from medkd.evaluation.detection.b import y",
        "medkd.evaluation.detection.b": "",
    }
    assert arrows_between_twins(modules) == ["medkd.evaluation.segmentation.a leads to medkd.evaluation.detection.b"]


def test_detection_takes_from_training_only_what_knows_no_segmentation() -> None:
    assert segmentation_in_detection(sources()) == []


def test_heavy_libraries_are_imported_inside_functions() -> None:
    assert heavy_at_top(sources()) == []


def test_every_package_has_a_row() -> None:
    packages = {package_of(module) for module in sources()} - {FACE}
    assert packages == set(TABLE)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("medkd.core.x", "from medkd.io import volumes"),
        ("medkd.io.x", "def f():\n    import medkd.training.run"),
        ("medkd.preprocessing.x", "from ..networks.base import NETWORKS"),
        ("medkd.networks.x", "from medkd import distillation"),
        ("dataset_conversion.x", "from medkd.preprocessing.prepare import plan_and_preprocess"),
    ],
)
def test_the_check_finds_an_import_that_climbs(module: str, source: str) -> None:
    assert len(climbing({module: source})) == 1


def test_the_check_finds_a_heavy_import_at_module_level() -> None:
    lazy = "def f():\n    import SimpleITK\n"
    assert heavy_at_top({"medkd.io.x": lazy}) == []
    assert (
        len(
            heavy_at_top({"medkd.io.x": lazy + "from torch.utils.tensorboard import SummaryWriter\nimport timm.models"})
        )
        == 2
    )
    assert heavy_at_top({"medkd.detection.x": "import timm"}) == []


def test_the_check_finds_segmentation_behind_a_module_of_training() -> None:
    modules = {
        "medkd.detection.x": "from medkd.training.a import f",
        "medkd.training.a": "from medkd.training import b",
        "medkd.training.b": "from medkd.inference.predictor import Predictor",
        "medkd.inference.predictor": "",
    }
    assert len(segmentation_in_detection(modules)) == 1
    assert segmentation_in_detection({**modules, "medkd.training.a": ""}) == []


def test_commands_do_not_load_what_they_may_not_need() -> None:
    """Every command is imported in a fresh process; help and errors must come fast and without the AGPL and GPL
    packages.
    """
    names = sorted(module for module in sources() if module.startswith("medkd.cli."))
    libraries = sorted(HEAVY)
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print(*sorted(set({libraries!r}) & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_the_document_shows_the_same_table() -> None:
    """Rows look like ``| 2 | `medkd/io` | … | core |``."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d \| `([\w/]+)` \|.*\| ([^|]*) \|$", text, flags=re.MULTILINE)
    shown = {name.removeprefix("medkd/"): set(re.findall(r"[a-z_]+", allowed)) - {"nothing"} for name, allowed in rows}
    assert shown == TABLE


def askers(modules: dict[str, str], called: str) -> set[str]:
    """The modules that call a method or function of this name."""
    found = set()
    for module, source in modules.items():
        for node in ast.walk(ast.parse(source if called in source else "")):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == called:
                found.add(module)
    return found


def test_one_module_asks_what_kind_of_model_a_folder_is() -> None:
    """Whoever predicts or teaches holds a ``ModelFolder``: a teacher's way to the loss never comes back to its path."""
    modules = sources()
    assert askers(modules, "recognises") == {"medkd.models.base"}
    assert askers(modules, "kind_of") == {"medkd.models.base", "medkd.models.like"}
    assert askers(modules, "is_detection") == {"medkd.models.run", "medkd.detection.models"}
    assert askers({"a": "x.recognises(path)", "b": "def recognises(path): ..."}, "recognises") == {"a"}


# the rooms that a teacher enters on its way from the command to the loss, in this order
ROOMS = (
    "medkd.cli.train_distill",
    "medkd.api",
    "medkd.training.segmentation_task",
    "medkd.training.run",
    "medkd.training.segmentation_lesson",
    "medkd.distillation.distiller",
)
"""And :mod:`medkd.models`, whose ``find_model`` and ``choose_teacher`` the training calls."""


def test_a_teacher_goes_through_few_rooms_and_never_back() -> None:
    modules = sources()
    for index, room in enumerate(ROOMS):
        earlier = set(ROOMS[:index])
        used = {name for target, _ in imports(modules[room], room) for name in (target, target.rpartition(".")[0])}
        late = {"medkd.training.segmentation_task"} if room == "medkd.training.segmentation_lesson" else set()
        assert used & earlier - late == set(), f"{room} leads back"  # a lesson knows its job by type only
