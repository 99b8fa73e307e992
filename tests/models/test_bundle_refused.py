"""What bundles are told when they are refused, and other networks that bundles may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medkd.core.errors import DataError, RunError
from medkd.models.bundle.folder import BundleFolder
from tests.models.test_bundle import CROP, EVIL, UNET, WINDOW, Edit, with_, without_spacing, write


@pytest.mark.parametrize(
    ("edit", "message", "stated", "expected"),
    [
        (without_spacing, "state spacing in", {"spacing": [1, 1, 1]}, ((1, 1, 1), WINDOW, "none", (2, 1, 0))),
        (
            lambda c: c["preprocessing"]["transforms"][3].update(pixdim=EVIL),
            "state spacing in",
            {"spacing": [1, 1, 1]},
            ((1, 1, 1), WINDOW, "none", (2, 1, 0)),
        ),
        (
            lambda c: c["preprocessing"]["transforms"][4].update(b_max=2),
            "state normalization in",
            {"normalization": ["none"]},
            ((1.5, 1.5, 2), ("none",), "none", (2, 1, 0)),
        ),
        (
            lambda c: c["preprocessing"]["transforms"][2].update(axcodes="RAX"),
            "state transpose in",
            {"transpose": [0, 1, 2]},
            ((1.5, 1.5, 2), WINDOW, "none", (0, 1, 2)),
        ),
        (
            with_({**CROP, "margin": 5}),
            "state crop in",
            {"crop": "nonzero"},
            ((1.5, 1.5, 2), WINDOW, "nonzero", (2, 1, 0)),
        ),
        (
            with_({"_target_": "GaussianSmoothd"}, CROP),
            "state spacing and normalization in",
            {"spacing": [1, 1, 1], "normalization": ["window(-9, 9)"]},
            ((1, 1, 1), ("window(-9, 9)",), "above(-9)", (2, 1, 0)),
        ),
        (
            lambda c: c.update(preprocessing=EVIL),
            "state spacing, normalization, crop and transpose in",
            {"spacing": [1, 1, 1], "normalization": ["none"], "crop": "none", "transpose": [0, 1, 2]},
            ((1, 1, 1), ("none",), "none", (0, 1, 2)),
        ),
    ],
)
def test_what_a_refusal_asks_for_helps(
    tmp_path: Path, edit: Edit, message: str, stated: dict[str, Any], expected: object
) -> None:
    folder = write(tmp_path / "bundle", edit, {})
    with pytest.raises(RunError, match=message):
        BundleFolder(folder).read()
    (folder / "teacher.json").write_text(json.dumps(stated))
    found = BundleFolder(folder).read()
    assert (found.spacing, found.normalization, found.crop, found.transpose) == expected


def test_a_crop_by_normalised_values_is_still_refused_where_the_normalisation_is_stated(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", with_(CROP), {}, teacher={"normalization": ["zscore"]})
    with pytest.raises(RunError, match=r"crops by normalised values.*state crop in"):
        BundleFolder(folder).read()


def test_stated_arguments_replace_those_that_are_expressions(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", lambda c: c["network_def"].update(channels=EVIL))
    with pytest.raises(RunError, match="state network and arguments in"):
        BundleFolder(folder).read()
    (folder / "teacher.json").write_text(json.dumps({"arguments": UNET}))
    assert BundleFolder(folder).read().network == "UNet" and BundleFolder(folder).read().arguments == UNET


@pytest.mark.parametrize("stated", [{"channels": 1}, {"normalization": 1}, {"normalization": "zscore"}])
def test_stated_keys_of_the_wrong_form_are_named(tmp_path: Path, stated: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(stated))}: expected a list"):
        BundleFolder(write(tmp_path / "bundle", with_(CROP), {}, teacher=stated)).read()


def test_empty_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle")
    (folder / "models" / "model.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"model\.pt") as caught:
        BundleFolder(folder).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("SegResNet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
        ("AttentionUnet", {"channels": [4, 8, 16], "strides": [2, 2]}),
        (
            "DynUNet",
            {
                "kernel_size": [3] * 3,
                "strides": [1, 2, [2, 2, 1]],
                "upsample_kernel_size": [2, [2, 2, 1]],
                "filters": [4, 8, 8],
            },
        ),
    ],
)
def test_other_networks_give_monais_logits(tmp_path: Path, kind: str, arguments: dict[str, Any]) -> None:
    from monai.networks import nets

    theirs = getattr(nets, kind)(spatial_dims=3, in_channels=1, out_channels=2, **arguments).eval()
    folder = write(
        tmp_path / "bundle", lambda c: c.update(network_def={"_target_": kind, **arguments}), theirs.state_dict()
    )
    network, image = BundleFolder(folder).load().networks[0], torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(image), theirs(image))
    assert {tap.stage for tap in network.taps} == {"encoder", "bottleneck", "decoder"}
