"""The model card of an exported model: what it is, what it needs, how it was made; a page that people read first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medkd.core.postprocessing import steps_text
from medkd.core.protocol import InferenceRule
from medkd.exporting.parity import Parity
from medkd.exporting.quantising import Quantised

if TYPE_CHECKING:
    from medkd.exporting.formats import Parcel

_USE = {
    "onnx": ("pip install 'medkd[runtime]'", "medkd_predict -i scans -o predictions -m THIS_FOLDER"),
    "openvino": ("pip install openvino medkd", "medkd_predict -i scans -o predictions -m THIS_FOLDER"),
    "bundle": (
        "pip install 'medkd[runtime]'  # the bundle's chain is medkd's own: MONAI's transforms resample otherwise",
        "python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir scans "
        "--output_dir predictions",
    ),
    "triton": (
        "pip install medkd_runtime-*.whl  # in the environment of Triton's Python backend",
        "tritonserver --model-repository THIS_FOLDER",
    ),
}
_APART = "; nnU-Net does not do that by itself, postprocessing.json beside the plans says it for medkd_predict"


def model_card(parcel: Parcel, format: str, parity: Parity, quantised: Quantised | None = None) -> str:
    """The card as Markdown.

    Args:
        parcel: what was exported.
        format: how.
        parity: how the exported network compares with the model, before it was quantised.
        quantised: how the quantised network compares with that, where there is one.
    """
    trained, rule = parcel.trained, parcel.rule
    mirrored = f"mirrored along the axes {list(trained.mirror_axes)}" if rule.mirror else "not mirrored"
    lines = [
        f"# {parcel.origin['name']}",
        "",
        f"Exported by medkd as {format}. Research software, not a medical device; not for diagnosis.",
        "",
        f"- input: {', '.join(trained.channels)}; {trained.configuration.rank}D, voxels of "
        f"{_axes(trained.configuration.spacing)} mm",
        f"- output: {', '.join(name for name, _ in trained.labels.entries)}",
        f"- patch: {_axes(trained.patch_size)} voxels, step {rule.step_size:g} of it, {mirrored}",
        f"- parity: {parity.differing} of {parity.voxels} voxels of {parity.case} differ from the model, logits by up "
        f"to {parity.logits:.2g}",
    ]
    if parcel.steps:
        lines.append(f"- post-processing: {steps_text(parcel.steps)}{_APART if format == 'nnunet' else ''}")
    if quantised is not None:
        lines.append(f"- {quantised.text()}; it was calibrated on {quantised.patches} patches")
    lines += ["", "## Made from", ""]
    for name, value in parcel.origin.items():
        lines.append(f"- {name}: {value}")
    lines += ["", "## Use", "", "```", *(_USE[format] if format in _USE else _use_in_nnunet(parcel)), "```", ""]
    if format == "nnunet" and rule.blending != "gaussian":
        lines += [f"nnU-Net weighs tiles by a Gaussian, the model's own protocol by {rule.blending} weights.", ""]
    return "\n".join(lines)


def _use_in_nnunet(parcel: Parcel) -> tuple[str, str]:
    """nnU-Net's command: without ``-f`` it asks for five folds, and without the others it predicts by its own rule."""
    rule = parcel.rule
    words = ["nnUNetv2_predict_from_modelfolder -i scans -o predictions -m THIS_FOLDER -f", *parcel.trained.folds]
    if rule.step_size != InferenceRule.step_size:
        words.append(f"-step_size {rule.step_size:g}")
    if not rule.mirror:
        words.append("--disable_tta")
    return "pip install nnunetv2", " ".join(words)


def _axes(values: Sequence[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)
