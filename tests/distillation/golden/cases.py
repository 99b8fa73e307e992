"""Numbers that the authors' own code gave on small random inputs, and how medkd is asked for the same.

``index.json`` names, per method and case, the file of the authors, its constants, the parameters of medkd's method, and
the losses; ``<method>.npz`` has the inputs, the helpers' weights and the losses' gradients. Inputs are exact in
float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medkd.core.features import Outputs, Progress, Tap, Target
from medkd.distillation import Context, Method, build_method
from medkd.distillation.features.reviewkd import hierarchical_loss
from medkd.distillation.prompts.freekd import FrequencyPrompts

FOLDER = Path(__file__).parent
VALUE, GRADIENT = 1e-5, 1e-4  # relative, in float32


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case.

    Attributes:
        method: medkd's method.
        name: ``<source>_<rank>_b<batch>_k<classes>_<size>``.
        parameters: of medkd's method, as ``method.parameter``.
        terms: loss → medkd's term, or the text ``sum of all terms``.
        losses: loss → the authors' value.
        arrays: name → inputs, weights and gradients.
        progress: where training stands.
    """

    method: str
    name: str
    parameters: Mapping[str, Any]
    terms: Any
    losses: Mapping[str, float]
    arrays: Mapping[str, Tensor]
    progress: Progress

    def gradients(self, loss: str) -> dict[str, Tensor]:
        """Student input → the authors' gradient of a loss; inputs that a loss does not use are left out."""
        prefix = "grad_" if loss == "loss" else f"grad_{loss}_"
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def of(self, network: str) -> dict[str, Tensor]:
        """Inputs of ``student`` or ``teacher`` by their short names."""
        prefix = f"{network}_"
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of helpers."""
        return {k.removeprefix("w_"): v for k, v in self.arrays.items() if k.startswith("w_")}


def index() -> dict[str, dict[str, Any]]:
    """Method → case → what is known of it."""
    found: dict[str, dict[str, Any]] = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    return found


def case(method: str, name: str) -> Case:
    """Read one case."""
    entry = index()[method][name]
    arrays = {key: _tensor(_arrays(method)[place]) for key, place in entry["arrays"].items()}
    parameters = {k: v for k, v in entry["medkd"].items() if "." in k} if isinstance(entry["medkd"], dict) else {}
    progress = Progress()
    epochs = re.match(r"epoch (\d+) of (\d+)", str(entry["medkd"].get("progress", "")) if parameters else "")
    if epochs:
        progress = Progress(int(epochs[1]), int(epochs[2]))
    return Case(
        method=method,
        name=name,
        parameters={k: v for k, v in parameters.items() if not k.endswith((".progress", ".attention"))},
        terms=entry["terms"],
        losses=entry["losses"],
        arrays=arrays,
        progress=progress,
    )


def medkd_losses(about: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """medkd's losses by the authors' names, and the student's inputs that they hang on."""
    if about.name.startswith("stage1"):
        return _first_stage(about)
    inputs = {name: value.clone().requires_grad_() for name, value in about.of("student").items()}
    if about.name.startswith("hcl"):
        return {"loss": hierarchical_loss(inputs["f0"], about.of("teacher")["f0"])}, inputs
    teacher = about.of("teacher")
    if about.method == "emkd" and "f0" not in teacher:  # the prediction's term alone: any features will do
        inputs["f0"] = teacher["f0"] = torch.ones_like(teacher["logits"])
    method = _method(about, inputs, teacher)
    _set_weights(method, about)
    logits = {
        k: v.pop("logits", torch.zeros(_labels(about).shape)) for k, v in (("s", dict(inputs)), ("t", dict(teacher)))
    }
    corrections = {"dec0": teacher["correction"]} if "correction" in teacher else {}
    terms = method(
        Outputs(logits=logits["s"], features=inputs),
        Outputs(logits=logits["t"], features=teacher, corrections=corrections),
        Target(_labels(about), None, about.progress),
    )
    if isinstance(about.terms, str):
        return {"loss": torch.stack(list(terms.values())).sum()}, inputs
    return {loss: terms[term] for loss, term in about.terms.items() if term in terms}, inputs


def differs(about: Case) -> dict[str, tuple[float, float]]:
    """The losses on which medkd and the authors do not agree → how far value and gradient are off, relatively."""
    found, inputs = medkd_losses(about)
    off = {}
    for loss, expected in about.losses.items():
        if loss not in found:
            off[loss] = (1.0, 1.0)
            continue
        value = abs(float(found[loss].detach()) - expected) / max(abs(expected), 1e-12)
        gradient = _gradient_off(about, loss, found[loss], inputs)
        if value > VALUE or gradient > GRADIENT:
            off[loss] = (value, gradient)
    return off


def _gradient_off(about: Case, loss: str, value: Tensor, inputs: Mapping[str, Tensor]) -> float:
    worst = 0.0
    for name, expected in about.gradients(loss).items():
        (gradient,) = torch.autograd.grad(value, inputs[name], retain_graph=True, allow_unused=True)
        gradient = torch.zeros_like(expected) if gradient is None else gradient
        worst = max(worst, float((gradient - expected).abs().max() / expected.abs().max()))
    return worst


def _first_stage(about: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tokens, features = about.arrays["input_tokens"].clone().requires_grad_(), about.arrays["teacher_f0"]
    banks, number, channels = tokens.shape
    prompts = FrequencyPrompts(channels, number, banks - 1, paper=True)
    prompts.banks = tokens
    masked, overlap = prompts(features)
    return {"probed_map": (masked * about.arrays["probe"]).sum(), "overlap": overlap}, {"tokens": tokens}


def _method(about: Case, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Method:
    shape = max((v.shape for v in student.values()), key=lambda s: max(s[2:]))
    patch = (12, 10, 14) if about.method == "acf" else tuple(shape[2:])
    classes = student["logits"].shape[1] if "logits" in student else _classes(about)
    spacing = (3.0, 1.0, 0.7)[-len(patch) :] if about.method == "bckd" else (1.0,) * len(patch)
    context = Context(
        student_taps=_taps(about, student),
        teacher_taps=_taps(about, teacher),
        num_outputs=classes,
        regions=False,
        spacing=spacing,
        patch_size=patch,
    )
    torch.manual_seed(0)
    return build_method(about.method, context, about.parameters)


def _taps(about: Case, features: Mapping[str, Tensor]) -> tuple[Tap, ...]:
    taps = []
    for place, (name, value) in enumerate((k, v) for k, v in features.items() if re.fullmatch(r"(f|dec)\d", k)):
        stride = (2**place,) * (value.ndim - 2)
        stage = "encoder" if about.method == "reviewkd" else "decoder"
        taps.append(
            Tap(name=name, channels=value.shape[1], stride=stride, module="", stage=stage, correction=name == "dec0")
        )  # type: ignore[arg-type]
    return tuple(taps)


def _labels(about: Case) -> Tensor:
    if "labels" in about.arrays:
        return about.arrays["labels"].long()
    largest = max(about.of("student").values(), key=lambda v: v.numel())
    return torch.zeros(len(largest), 1, *largest.shape[2:], dtype=torch.long)


def _classes(about: Case) -> int:
    found = re.search(r"_k(\d+)_", about.name)
    return int(found[1]) if found else 2


def _set_weights(method: Method, about: Case) -> None:
    weights, own = about.weights, dict(method.named_parameters()) | dict(method.named_buffers())
    with torch.no_grad():
        for name, value in weights.items():
            target = own[_NAMES[about.method](name)]
            target.copy_(value.view(target.shape))
        if "prepared" in own:
            own["prepared"].fill_(True)
        if about.method == "freekd":
            own["prompts.0.banks"].copy_(about.arrays["tokens"])
        if about.method == "maskd":
            own["prompts.0.tokens"].copy_(about.arrays["tokens"])
            nn.init.zeros_(own["prompts.0.look"])
            nn.init.zeros_(own["prompts.0.choose"])
            own["prompts.0.choose_bias"].copy_(about.arrays["shares"].log())
        if about.method == "sfd":
            for name, parameter in own.items():
                if ".attention." in name:
                    nn.init.zeros_(parameter)


_FOURIER = {"predictor": "adapt", "conv_student": "of_student", "conv_teacher": "of_teacher"}


def _fourier(name: str) -> str:
    if name == "sigma":
        return "fusions.0.sigma"
    layer, kind = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
    return f"fusions.0.{_FOURIER[layer]}.{kind}"


def _reviewkd(name: str) -> str:
    level, part = re.fullmatch(r"level(\d)_(\w+)", name).groups()  # type: ignore[union-attr]
    parts = {"conv1": "enter.0.weight", "conv2": "leave.0.weight", "gates": "gates.weight", "gates_bias": "gates.bias"}
    return f"fusions.{level}.{parts[part]}"


def _recokd(name: str) -> str:
    layer, _, rest = name.partition(".")
    if layer == "align":
        return f"adapters.0.{rest}"
    network = "of_student" if layer.endswith("_s") else "of_teacher"
    return f"{network}.0.{'look' if layer.startswith('conv_mask') else 'add'}.{rest}"


def _adapter(name: str) -> str:
    return "adapters.0.bias" if name.endswith("_bias") else "adapters.0.weight"


_NAMES: Mapping[str, Any] = {
    "acf": lambda name: f"connector.{name}",
    "fourier": _fourier,
    "recokd": _recokd,
    "reviewkd": _reviewkd,
    "maskd": _adapter,
    "freekd": _adapter,
}


@cache
def _arrays(method: str) -> Mapping[str, np.ndarray]:
    with np.load(FOLDER / f"{method}.npz") as file:
        return {name: file[name] for name in file.files}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).float()
