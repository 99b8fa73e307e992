"""CIRKD against loops, and its memory."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.core.features import Progress, Target
from medkd.distillation.relations.cirkd import CIRKD, _of_every_class
from medkd.distillation.relations.memory import ClassMemory
from tests.distillation.toys import features_terms, pair_method


def row_kl(a: Tensor, b: Tensor) -> Tensor:
    """``KL(softmax(b) ‖ softmax(a))`` of two vectors."""
    p, q = torch.softmax(b, 0), torch.softmax(a, 0)
    return (p * (p / q).log()).sum()


@pytest.mark.parametrize(("variant", "temperature"), [("default", 0.1), ("paper", 1.0)])
def test_batch_term_compares_every_place_with_all_places_of_every_sample(variant: str, temperature: float) -> None:
    s, t = torch.randn(3, 4, 4, 4), torch.randn(3, 5, 4, 4)
    nodes = [F.normalize(F.avg_pool2d(f, 2).flatten(2), dim=1) for f in (s, t)]
    found = []
    for i in range(3):
        for j in range(3):
            for v in range(4):
                rows = [torch.stack([n[i][:, v] @ n[j][:, u] for u in range(4)]) / temperature for n in nodes]
                found.append(float(row_kl(rows[0], rows[1])))
    method = pair_method("cirkd", 4, 5, 2, max_nodes=4, variant=variant)
    assert float(features_terms(method, s, t)["cirkd_batch"]) == pytest.approx(
        sum(found) / len(found), rel=1e-3, abs=1e-6
    )


def test_memory_terms_compare_foreground_voxels_with_what_is_remembered() -> None:
    """With fewer voxels than are drawn, everything is drawn, and order does not matter."""
    s, t = torch.randn(1, 4, 4, 4), torch.randn(1, 5, 4, 4)
    labels = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    labels[..., 0, :], labels[..., 1, :] = 1, 2
    method = pair_method("cirkd", 4, 5, 2, memory_weight=1.0)
    assert isinstance(method, CIRKD)
    terms = features_terms(method, s, t, Target(labels))
    unit_t = F.normalize(t.flatten(2), dim=1)[0].T
    unit_s = F.normalize(method.projection(s).flatten(2), dim=1)[0].T
    group = labels.flatten()
    means = torch.stack([F.normalize(t.flatten(2)[0].T[group == k].mean(0), dim=0) for k in range(3)])
    for keys, name in ((unit_t, "cirkd_voxels"), (means, "cirkd_means")):
        # 8 background voxels, and 4 of each other class: all are pushed and drawn
        expected = torch.stack(
            [row_kl(keys @ a / 0.1, keys @ b / 0.1) for a, b in zip(unit_s[:8], unit_t[:8], strict=True)]
        ).mean()
        assert float(terms[name]) == pytest.approx(float(expected), rel=1e-3)


def test_what_is_remembered_of_a_class_are_voxels_of_that_class() -> None:
    t = torch.zeros(2, 3, 6, 6)
    labels = torch.randint(0, 3, (2, 1, 6, 6))
    t.scatter_(1, labels, 1.0)  # the feature says the class
    method = pair_method("cirkd", 4, 3, 2)
    assert isinstance(method, CIRKD)
    features_terms(method, torch.randn(2, 4, 6, 6), t, Target(labels))
    for memory in method._memories():
        for k in range(3):
            filled = int(memory.written[k])
            assert filled > 0 and torch.equal(memory.vectors[k, :filled].argmax(1), torch.full((filled,), k))


def test_a_step_is_a_function_of_the_state_and_the_step_number() -> None:
    s, t, labels = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8), torch.randint(0, 3, (2, 1, 8, 8))
    method = pair_method("cirkd", 4, 5, 2)
    features_terms(method, s, t, Target(labels, None, Progress(step=0)))
    again = copy.deepcopy(method)
    torch.manual_seed(7)
    one = features_terms(method, s, t, Target(labels, None, Progress(step=1)))
    torch.manual_seed(8)
    other = features_terms(again, s, t, Target(labels, None, Progress(step=1)))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(
        torch.equal(a, b) for a, b in zip(method.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_without_foreground_the_memory_terms_are_zero_and_hang_on_the_graph() -> None:
    s = torch.randn(1, 4, 4, 4, requires_grad=True)
    method = pair_method("cirkd", 4, 5, 2)
    terms = features_terms(method, s, torch.randn(1, 5, 4, 4))
    assert float(terms["cirkd_voxels"]) == float(terms["cirkd_means"]) == 0.0
    (terms["cirkd_voxels"] + terms["cirkd_means"]).backward()
    assert all(p.grad is not None for p in method.parameters())


def test_regions_have_no_memory() -> None:
    method = pair_method("cirkd", 4, 5, 2, regions=True)
    terms = features_terms(method, torch.randn(1, 4, 4, 4), torch.randn(1, 5, 4, 4), Target(torch.zeros(1, 3, 4, 4)))
    assert set(terms) == {"cirkd_batch", "cirkd_kd"} and list(method.parameters()) == []


def drawn(memory: ClassMemory, number: int) -> list[float]:
    """What is drawn from filled places, sorted."""
    vectors, filled = memory.draw(number, torch.Generator())
    return sorted(vectors[filled].flatten().tolist())


def pushed(memory: ClassMemory, values: list[float]) -> None:
    """Push values to class 1; what is beyond the count must not matter."""
    rows = torch.full((2, 4, 1), 99.0)
    rows[1, : len(values), 0] = torch.tensor(values)
    memory.push(rows, torch.tensor([0, len(values)]))


def test_memory_overwrites_the_oldest_and_draws_only_what_is_there() -> None:
    memory = ClassMemory(2, 4, 1)
    pushed(memory, [0.0, 1.0, 2.0])
    assert drawn(memory, 10) == [0.0, 1.0, 2.0]
    pushed(memory, [3.0, 4.0, 5.0])
    assert drawn(memory, 10) == [2.0, 3.0, 4.0, 5.0] and memory.written.tolist() == [0, 6]
    assert len(drawn(memory, 2)) == 2


def test_places_of_every_class_are_random_and_of_that_class() -> None:
    labels = torch.randint(0, 3, (2, 200))
    labels[1, labels[1] == 2] = 3  # in no class
    masks = torch.stack([labels == k for k in range(3)], 1).float()
    chosen, counts = _of_every_class(masks, 8, torch.Generator().manual_seed(0))
    assert counts.tolist() == [[int((row == k).sum()) for k in range(3)] for row in labels]
    for n in range(2):
        for k in range(3 - n):
            places = chosen[n, k]
            assert len(places.unique()) == 8 and bool((labels[n, places] == k).all())
    other, _ = _of_every_class(masks, 8, torch.Generator().manual_seed(1))
    assert not torch.equal(chosen, other)
