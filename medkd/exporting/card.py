"""The model card of an exported model: what it is, what it needs, how it was made; a page that people read first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medkd.runtime.package import Exported


def model_card(exported: Exported, parity: str, scores: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        exported: the description.
        parity: a sentence on how the exported network compares with the model.
        scores: name → value of what is known about the model's quality.
    """
    made, planned = exported.made_from, exported.planned
    lines = [
        f"# {made.get('name', 'model')}",
        "",
        "Exported by medkd. Research software, not a medical device; not for diagnosis.",
        "",
        f"- input: {', '.join(exported.channel_names)}; {planned.rank}D, {_axes(planned.spacing)} mm",
        f"- output: {', '.join(exported.labels)}",
        f"- patch: {_axes(exported.patch_size)} voxels, step {exported.step_size}, mirrored axes "
        f"{list(exported.mirror_axes) if exported.mirror else 'none'}",
        f"- network: `{exported.network}`, input `image` (batch, {len(exported.channel_names)}, "
        f"{', '.join(map(str, exported.patch_size))}) float32, output `logits`",
        f"- parity: {parity}",
        "",
        "## Made from",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in made.items()]
    if scores:
        lines += ["", "## Scores", ""]
        lines += [f"- {name}: {value}" for name, value in scores.items()]
    lines += ["", "## Use", "", "```", "pip install 'medkd[runtime]'"]
    lines += ["medkd_predict -i scans -o predictions -m THIS_FOLDER", "```", ""]
    return "\n".join(lines)


def _axes(values: tuple[float, ...] | tuple[int, ...]) -> str:
    return " × ".join(f"{value:g}" for value in values)
