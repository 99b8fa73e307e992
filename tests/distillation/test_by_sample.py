"""Methods that say so are means over samples: what several processes take apart must be the same together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medkd.core.features import Outputs
from medkd.distillation import METHODS, build_method
from medkd.distillation.build import parameters_of
from medkd.distillation.gradient_check import random_outputs
from tests.distillation.toys import context, trained

SAMPLES = 4
BY_SAMPLE = [name for name in METHODS if METHODS[name].by_sample and name != "none"]


def _only(outputs: Outputs, place: int) -> Outputs:
    average = None if outputs.average is None else outputs.average[place, None]
    maps = {name: tensor[place, None] for name, tensor in outputs.features.items()}
    corrections = {name: tensor[place, None] for name, tensor in outputs.corrections.items()}
    return replace(outputs, logits=outputs.logits[place, None], features=maps, corrections=corrections, average=average)


@pytest.mark.parametrize("name", BY_SAMPLE)
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("variant", ["default", "paper"])
def test_terms_are_the_mean_of_those_of_every_sample(name: str, regions: bool, variant: str) -> None:
    if regions and name in {"nkd", "dkd"}:
        pytest.skip("not defined for regions")
    chosen = {f"{name}.variant": variant} if "variant" in parameters_of(METHODS[name]) else {}
    torch.manual_seed(0)
    teacher = trained(3, regions)
    method = build_method(name, context(teacher, teacher, 3, regions), chosen)
    student, taught, target = random_outputs(method, SAMPLES)
    labels = target.labels.clone()
    labels[0], labels[1, ..., 0] = 0, 1  # samples of other classes, and of one
    with torch.no_grad():
        together = method(student, taught, replace(target, labels=labels))
        alone = []
        for place in range(SAMPLES):
            own = replace(target, labels=labels[place, None])
            alone.append(method(_only(student, place), _only(taught, place), own))
    for term, value in together.items():
        mean = torch.stack([terms[term] for terms in alone]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-7)


def test_methods_joined_are_if_all_of_them_are() -> None:
    about = context(trained(3, False), trained(3, False), 3)
    assert build_method("kd+at", about).by_sample
    assert not build_method("kd+rkd", about).by_sample
