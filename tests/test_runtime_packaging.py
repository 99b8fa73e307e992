"""The distribution medkd-runtime: its modules import nothing that it lacks, and no torch."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tests.test_architecture import imports, sources

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "packaging" / "runtime"
MODULES = {  # top-level module → distribution that setup.py requires, or that an extra names
    "numpy": "numpy",
    "scipy": "scipy",
    "nibabel": "nibabel",
    "SimpleITK": "SimpleITK",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "pydicom": "pydicom",
    "PIL": "Pillow",
    "tifffile": "tifffile",
    "highdicom": "highdicom",
    "psutil": "psutil",
    "threadpoolctl": "threadpoolctl",
    "tqdm": "tqdm",
    "fastapi": "fastapi",
    "starlette": "fastapi",
    "uvicorn": "uvicorn",
}
# imported inside functions that prediction with exported models never calls
ELSEWHERE = {
    *("medkd", "medkd.api.steps", "medkd.api.scores", "medkd.core.labels", "medkd.core.splits"),
    *("medkd.api.folds", "medkd.core.folds", "medkd.core.timing"),
    *("medkd.models.base", "medkd.models.exported", "medkd.models.named"),
}


def closure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runtime_closure", FOLDER / "closure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped() -> set[str]:
    """The packaged modules and the packages around them."""
    names = set(closure().packaged())
    for name in list(names):
        while "." in name:
            name = name.rpartition(".")[0]
            names.add(name)
    return names


def required() -> set[str]:
    """Names of the distributions in the ``setup.py``, extras included."""
    found = set()
    for node in ast.parse((FOLDER / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("REQUIRES", "EXTRAS"):
            value = ast.literal_eval(node.value)
            for listed in [value] if isinstance(value, list) else value.values():
                found |= {text.partition(">")[0] for text in listed}
    return found


def test_the_packaged_modules_import_only_each_other_and_what_is_required() -> None:
    modules, known, wrong = sources(), shipped(), []
    assert {"medkd.cli.predict", "medkd.runtime.window", "medkd.models.exported"} <= known <= set(modules)
    for module in sorted(known):
        for target, top in imports(modules[module], module):
            library = target.partition(".")[0]
            if library in ("medkd", "dataset_conversion"):
                inside = bool({target, target.rpartition(".")[0]} & (known - {"medkd"})) or target.count(".") == 1
                if not inside and (top or module not in ELSEWHERE):
                    wrong.append(f"{module} imports {target}")
                continue
            known_library = library in sys.stdlib_module_names or library in MODULES
            if not known_library and (top or module not in ELSEWHERE):
                wrong.append(f"{module} imports {target}")
    # what type checkers read stands in blocks that never run
    assert [line for line in wrong if not line.startswith("medkd.core.labels imports torch")] == []


def test_every_library_is_required_by_its_name() -> None:
    assert required() == {*MODULES.values(), "python-multipart"}  # fastapi imports the last one itself


def test_the_table_of_terms_is_packaged() -> None:
    assert [file.name for file in closure().data_files()] == ["terms.json"]


def test_nothing_of_training_is_packaged() -> None:
    packages = {module.split(".")[1] for module in shipped() if "." in module}
    assert packages == {
        "api",
        "cli",
        "core",
        "inference",
        "io",
        "models",
        "preprocessing",
        "runtime",
        "serving",
        "tasks",
    }
