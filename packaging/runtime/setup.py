"""Packaging of medkd-runtime: what predicts with exported models, from medkd's own sources, without torch.

Build it inside a clone of medkd: ``pip wheel --no-deps packaging/runtime``. It holds the package ``medkd``, so an
environment has either this distribution or medkd itself.
"""

import ast
import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from closure import SOURCES, data_files, packaged  # noqa: E402

os.chdir(HERE)


def version() -> str:
    """medkd's own version, from its source."""
    tree = ast.parse((SOURCES / "medkd" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise LookupError("medkd/__init__.py has no __version__")


class BuildWithData(build_py):
    """Copies the data files of the packaged modules, too, which setuptools does for whole packages only."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        for file in data_files():
            target = Path(self.build_lib) / file.relative_to(SOURCES)
            self.mkpath(str(target.parent))
            self.copy_file(str(file), str(target))


REQUIRES = [
    "numpy>=1.26",
    "scipy>=1.11",
    "nibabel>=5.2",
    "onnxruntime>=1.18",
    "psutil>=5.9",
    "threadpoolctl>=3.1",
    "tqdm>=4.66",
]
EXTRAS = {
    "openvino": ["openvino>=2024.4"],
    "dicom": ["pydicom>=3.0", "highdicom>=0.26", "SimpleITK>=2.3"],
    "serve": ["fastapi>=0.110", "uvicorn>=0.27", "python-multipart>=0.0.9"],
    "pictures": ["Pillow>=10.1", "tifffile>=2022.8"],  # PNG, BMP and TIFF
    "itk": ["SimpleITK>=2.3"],  # NRRD and MetaImage; as large as everything else together
}

setup(
    name="medkd-runtime",
    version=version(),
    description="Prediction with segmentation models that medkd exported: files to files, without torch",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": os.path.relpath(SOURCES, HERE)},
    py_modules=packaged(),
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["medkd_predict = medkd.cli.predict:main", "medkd_serve = medkd.cli.serve:main"]},
    cmdclass={"build_py": BuildWithData},
    options={"egg_info": {"egg_base": "."}},  # beside this file, not among the sources of medkd itself
)
