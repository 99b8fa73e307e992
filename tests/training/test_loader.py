from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medkd.core.labels import LabelSpec
from medkd.preprocessing.pipeline import Preprocessed
from medkd.preprocessing.store import CaseStore
from medkd.training.augmentation import Augmentation, read_size
from medkd.training.loader import PatchBatches, iterate
from medkd.training.sampling import PatchSampler
from tests.training.builders import PATCH, make_dataset


def _batches(tmp_path: Path, seed: int = 0, stream: int = 0) -> PatchBatches:
    store = tmp_path / "preprocessed/Dataset900_Boxes/3d_fullres"
    if not store.exists():
        make_dataset(tmp_path)
    sampler = PatchSampler(read_size(PATCH), PATCH)
    return PatchBatches(store, CaseStore(store).cases(), sampler, 2, 6, seed, Augmentation(PATCH, (0, 1, 2)), stream)


def test_a_batch_depends_on_seed_stream_and_step_only(tmp_path: Path) -> None:
    first = _batches(tmp_path)
    torch.manual_seed(99)
    assert torch.equal(first[3][0], _batches(tmp_path)[3][0])
    assert not torch.equal(first[3][0], first[4][0])
    assert not torch.equal(first[3][0], _batches(tmp_path, seed=1)[3][0])
    assert not torch.equal(first[3][0], _batches(tmp_path, stream=1)[3][0])


def test_workers_give_the_same_batches_from_any_step(tmp_path: Path) -> None:
    batches = _batches(tmp_path)
    expected = [batches[i] for i in range(2, 6)]
    for workers in (0, 2):
        for (image, label), (e_image, e_label) in zip(iterate(batches, 2, workers), expected, strict=True):
            assert torch.equal(image, e_image) and torch.equal(label, e_label)


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    batches = _batches(tmp_path)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    batches[0]
    assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002


def test_half_of_a_batch_of_two_shows_a_structure(tmp_path: Path) -> None:
    batches = _batches(tmp_path)
    assert all((batches[i][1][1] > 0).any() for i in range(6))


def test_a_case_that_was_made_anew_is_read_anew(tmp_path: Path) -> None:
    """A notebook that mends its scans and trains again must not train on those of before."""
    batches = _batches(tmp_path)
    before = batches[3][0]
    store = CaseStore(tmp_path / "preprocessed/Dataset900_Boxes/3d_fullres")
    labels = LabelSpec.from_names(["small", "large"])
    for case in store.cases():
        record = store.record(case)
        opened = store.open(case)
        content = Preprocessed(-np.array(opened.image), np.array(opened.label), record.properties)
        store.write(case, content, labels, record.files, record.recipe)
    for made_before in (batches, _batches(tmp_path)):
        assert torch.equal(made_before[3][0], _batches(tmp_path)[3][0])
        assert not torch.equal(made_before[3][0], before)
