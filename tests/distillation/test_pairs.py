"""Which taps are compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.core.errors import MethodError
from medkd.core.features import Tap
from medkd.distillation import Context
from medkd.distillation.pairs import adapter, choose_pairs, resize
from tests.distillation.toys import ToyNetwork, context, plain_context


def names(taps: str, about: Context) -> list[tuple[str, str]]:
    """Chosen pairs by name."""
    return [(s.name, t.name) for s, t in choose_pairs("at", about, taps)]


def test_words_choose_stages_finest_first() -> None:
    about = context(ToyNetwork(3), ToyNetwork(3, 6), 3)
    assert names("last", about) == [("dec0", "dec0")]
    assert names("decoder", about) == [("dec0", "dec0"), ("dec1", "dec1")]
    assert names("encoder", about) == [("enc0", "enc0")]
    assert names("bottleneck", about) == [("bottleneck", "bottleneck")]
    assert names("deep", about) == [("enc0", "enc0"), ("bottleneck", "bottleneck")]
    assert len(names("all", about)) == 4


def test_names_choose_any_pair() -> None:
    about = context(ToyNetwork(3), ToyNetwork(3, 6), 3)
    assert names("dec1:dec0, enc0:bottleneck", about) == [("dec1", "dec0"), ("enc0", "bottleneck")]
    with pytest.raises(MethodError, match=r"at.taps: there is no tap 'dec7'.*Did you mean"):
        names("dec1:dec7", about)


def test_a_network_without_decoder_is_compared_at_its_deepest_pair() -> None:
    taps = tuple(Tap(name=f"enc{i}", channels=4, stride=(2**i,) * 3, module="x", stage="encoder") for i in range(3))
    about = Context(
        student_taps=taps, teacher_taps=taps, num_outputs=3, regions=False, spacing=(1.0,) * 3, patch_size=(8,) * 3
    )
    assert names("last", about) == names("bottleneck", about) == [("enc2", "enc2")]


def test_no_pair_and_unknown_words_are_errors() -> None:
    with pytest.raises(MethodError, match="at found no pair of taps for 'all': the student has none, the teacher none"):
        names("all", plain_context())
    with pytest.raises(MethodError, match=r"at.taps must be one of last, encoder"):
        names("decoders", plain_context())


def test_between_detectors_every_word_means_the_necks_but_it_must_be_one() -> None:
    taps = tuple(Tap(name=f"p{i}", channels=4, stride=(2**i, 2**i), module="x", stage="neck") for i in (3, 4))
    about = Context(
        student_taps=taps,
        teacher_taps=taps,
        num_outputs=2,
        regions=True,
        spacing=(1.0, 1.0),
        patch_size=(64, 64),
        task="detection",
    )
    assert names("last", about) == names("all", about) == [("p3", "p3"), ("p4", "p4")]
    with pytest.raises(MethodError, match=r"at.taps must be one of last, encoder.*found 'nonsense'"):
        names("nonsense", about)


def test_adapters_exist_where_channels_differ() -> None:
    four, six = (Tap(name="a", channels=c, stride=(1, 1), module="x", stage="decoder") for c in (4, 6))
    assert isinstance(adapter((four, four)), nn.Identity) and isinstance(adapter((four, four), always=True), nn.Conv2d)
    assert adapter((four, six))(torch.zeros(1, 4, 5, 5)).shape == (1, 6, 5, 5)


def test_resizing_is_linear_and_leaves_equal_sizes_alone() -> None:
    x = torch.arange(4.0).view(1, 1, 1, 4)
    assert resize(x, (1, 4)) is x
    assert resize(x, (1, 2)).flatten().tolist() == [0.5, 2.5]
