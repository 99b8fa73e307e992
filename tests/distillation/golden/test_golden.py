"""Every method gives the values and gradients that its authors' own code gave, or a departure says why not."""

from __future__ import annotations

import re

import pytest

from medkd.distillation import METHODS, parameters_of
from medkd.distillation.departures import Departure, all_departures, departures_of
from medkd.distillation.describe import describe_method
from tests.distillation.golden.cases import FOLDER, case, differs, index

CASES = [(method, name) for method, names in index().items() for name in names]
NAMED = [entry for entry in all_departures() if entry.golden]
# Methods of medkd that no released code computes on segmentation, or that are sums of others.
WITHOUT_NUMBERS = {"none", "ensemble", "crosskd", "mimic", "acf_bckd", "dcd"}


def reasons(method: str, name: str, loss: str) -> list[Departure]:
    """The departures that name a loss of a case."""
    return [entry for entry in NAMED if re.fullmatch(entry.golden, f"{method}/{name}:{loss}")]


@pytest.mark.parametrize(("method", "name"), CASES)
def test_values_and_gradients_are_the_authors_own_or_a_departure_is_named(method: str, name: str) -> None:
    about = case(method, name)
    off = differs(about)
    for loss in about.losses:
        named = reasons(method, name, loss)
        assert (loss in off) == bool(named), f"{loss}: off by {off.get(loss)}, departures {[e.id for e in named]}"


@pytest.mark.parametrize("entry", NAMED, ids=[entry.id for entry in NAMED])
def test_every_departure_with_numbers_is_seen_in_a_case(entry: Departure) -> None:
    method = entry.name
    seen = [
        name for name in index()[method] for loss in case(method, name).losses if entry in reasons(method, name, loss)
    ]
    assert seen


def test_every_departure_names_a_method_and_is_shown_on_its_card() -> None:
    from medkd.detection.base import DETECTORS
    from medkd.detection.families import register_detectors
    from medkd.detection.methods import DETECTION_METHODS
    from medkd.networks import NETWORKS

    register_detectors()
    kinds = {name.rpartition("_r50")[0] for name in DETECTORS if name.endswith("_r50")}
    known = {"method": METHODS, "detection": DETECTION_METHODS, "network": NETWORKS, "detector": kinds}
    ids = [entry.id for entry in all_departures()]
    assert len(set(ids)) == len(ids)
    for entry in all_departures():
        assert entry.name in known[entry.kind], entry.id
        assert entry.what.endswith(".") and entry.why.endswith(".") and entry.size and entry.source, entry.id
        if entry.kind == "method":
            assert entry in describe_method(entry.name, METHODS[entry.name]).departures
            assert entry.variant == "both" or "variant" in parameters_of(METHODS[entry.name]), entry.id
    assert departures_of("fourier")[0].id == "fourier.shift"


def test_every_network_that_is_not_its_original_says_so() -> None:
    named = {entry.name for entry in all_departures() if entry.kind == "network"}
    with_originals = {
        "transunet": "transunet_paper",
        "mednext_b": "mednext_b_paper",
        "mednext_m": "mednext_m_paper",
        "mednext_l": "mednext_l_paper",
        "fcn_r18": "fcn_r18_d8",
        "fcn_r50": "fcn_r50_d8",
    }
    for name, original in with_originals.items():
        assert original not in named
        assert any(original in entry.why for entry in departures_of(name, "network")), name
    assert named - set(with_originals) == {
        "attention_unet",
        "espnetv2",
        "lcov_net",
        "missformer",
        "mobile_unet",
        "res_unet",
        "unet_r18",
        "unet_r50",
        "unet_tiny",
    }


def test_the_numbers_cover_every_method_small_batches_odd_sides_and_two_classes() -> None:
    assert set(METHODS) - set(index()) == WITHOUT_NUMBERS
    names = [name for _, name in CASES]
    for part in ("_b1_", "_b3_", "_k2_", "_1x1", "_2x2", "_3x3", "_4x3", "_4x4", "_5x5"):
        assert any(part in name for name in names), part
    assert sum(file.stat().st_size for file in FOLDER.glob("*.npz")) < 2**20


def test_the_list_of_methods_shows_departures_when_asked_for_more(capsys: pytest.CaptureFixture[str]) -> None:
    from medkd.cli.list_entries import main

    assert main(["methods"]) == 0 and "fourier.shift" not in capsys.readouterr().out
    assert main(["methods", "--verbose"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{entry.id}" in shown and entry.why in shown for entry in all_departures())
