"""A MONAI bundle's folder is enough; its expressions are never run, and what medkd cannot repeat is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medkd.core.errors import DataError, MedkdError, RunError
from medkd.inference.predictor import Predictor
from medkd.models.bundle.folder import BundleFolder

METADATA = {
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "channel_def": {"0": "image"}}},
        "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}},
    }
}


UNET = {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 2, "norm": "batch"}


# the form of MONAI's own spleen bundle: expressions around plain values
CONFIG: dict[str, Any] = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "spacing": [1.5, 1.5, 2.0],
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, **UNET},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": -57,
                "a_max": 164,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5},
}


Edit = Callable[[dict[str, Any]], object]


def unet() -> nn.Module:
    """The network of the bundle, with running statistics that are not those of the start."""
    from monai.networks.nets import UNet

    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, **UNET)
    network(torch.randn(2, 1, 16, 16, 16) * 3 + 1)
    return network.eval()


def write(
    folder: Path, edit: Edit = lambda _: None, content: object = None, *, yaml: bool = False, teacher: object = None
) -> Path:
    """A bundle folder with an edited configuration."""
    config = json.loads(json.dumps(CONFIG))
    edit(config)
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    if yaml:
        import yaml as yaml_package

        (folder / "configs" / "inference.yaml").write_text(yaml_package.safe_dump(config))
    else:
        (folder / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(unet().state_dict() if content is None else content, folder / "models" / "model.pt")
    if teacher is not None:
        (folder / "teacher.json").write_text(json.dumps(teacher))
    return folder


@pytest.mark.parametrize("yaml", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_bundle_gives_monais_logits(tmp_path: Path, wrapped: bool, yaml: bool) -> None:
    if yaml:
        pytest.importorskip("yaml")
    theirs = unet()
    content = {"model": {f"module.{k}": v for k, v in theirs.state_dict().items()}} if wrapped else theirs.state_dict()
    folder = write(tmp_path / "bundle", content=content, yaml=yaml)
    assert BundleFolder.recognises(folder)
    model, image = BundleFolder(folder).load(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.networks[0](image), theirs(image))
    assert model.configuration.spacing == (1.5, 1.5, 2.0) and model.plan.transpose == (2, 1, 0)
    assert model.configuration.normalization == ("window(-57, 164)",) and model.configuration.crop == "none"
    assert [name for name, _ in model.labels.entries] == ["background", "spleen"]
    assert [(t.name, t.channels, t.stride[0]) for t in model.networks[0].taps] == [
        ("enc0", 4, 2),
        ("enc1", 8, 4),
        ("bottleneck", 16, 4),
        ("dec1", 4, 2),
    ]


def test_taps_are_what_the_network_makes(tmp_path: Path) -> None:
    network = BundleFolder(write(tmp_path / "bundle")).load().networks[0]
    shapes: dict[str, torch.Size] = {}
    for tap in network.taps:
        network.get_submodule(tap.module).register_forward_hook(
            lambda _m, _i, o, name=tap.name: shapes.update({name: o.shape})
        )
    network(torch.randn(1, 1, 16, 16, 16))
    assert {t.name: (1, t.channels, *(16 // s for s in t.stride)) for t in network.taps} == shapes


def test_a_bundle_predicts(tmp_path: Path) -> None:
    predictor = Predictor.from_run(write(tmp_path / "bundle"), device="cpu", mirror=False)
    assert predictor.predict_preprocessed(torch.randn(1, 20, 16, 9)).shape == (2, 20, 16, 9)


def test_medkds_own_network_is_used_where_it_is_the_same(tmp_path: Path) -> None:
    def segresnet(config: dict[str, Any]) -> None:
        arguments = {"init_filters": 16, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "dropout_prob": 0.2}
        config["network_def"] = {"_target_": "monai.networks.nets.SegResNet", "spatial_dims": 3, **arguments}

    found = BundleFolder(write(tmp_path / "bundle", segresnet, {})).read()
    assert found.network == "segresnet" and not found.arguments


def test_who_has_not_said_what_was_seen_does_not_teach(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not say on which cases"):
        BundleFolder(write(tmp_path / "silent")).seen("given", ["a"], Path())
    assert BundleFolder(write(tmp_path / "stated", teacher={"train": ["a"]})).seen("given", ["a"], Path()) == {"a"}


def test_a_teacher_json_overrides_single_keys(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "bundle",
        lambda c: c["inferer"].update(roi_size="$[96] * 3"),
        teacher={"train": [], "patch_size": [32, 16, 16], "labels": {"background": 0, "milz": 1}},
    )
    found = BundleFolder(folder).read()
    assert found.patch_size == (32, 16, 16) and "milz" in found.labels and found.spacing == (1.5, 1.5, 2.0)


def brats(config: dict[str, Any], *, spaced: bool = True) -> None:
    """The form of MONAI's bundle for brain tumours: three regions behind a sigmoid."""
    config["network_def"] = {**config["network_def"], "out_channels": 3}
    config["preprocessing"]["transforms"] = config["preprocessing"]["transforms"][: 4 if spaced else 3]
    activation = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
    config["postprocessing"] = {
        "_target_": "Compose",
        "transforms": [{"_target_": "Invertd", "keys": "pred"}, activation],
    }


def name_outputs(folder: Path, *names: str) -> Path:
    """Other names of the network's channels."""
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {str(i): name for i, name in enumerate(names)}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def drop_sigmoid(config: dict[str, Any]) -> None:
    """Regions by their names only."""
    brats(config)
    del config["postprocessing"]


def refer_to_sigmoid(config: dict[str, Any]) -> None:
    """The same activation, by references."""
    brats(config)
    config["after"] = [{**config["postprocessing"]["transforms"][1], "sigmoid": "@regions"}]
    config |= {"regions": True, "postprocessing": {"_target_": "Compose", "transforms": "@after"}}


REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
    "regions_class_order": [1, 2, 3],
}


@pytest.mark.parametrize(
    ("edit", "first", "message"),
    [
        (brats, "whole", "'postprocessing' applies a sigmoid"),
        (brats, "background", "'postprocessing' applies a sigmoid"),
        (refer_to_sigmoid, "background", "'postprocessing' applies a sigmoid"),
        (drop_sigmoid, "whole", "channel 0 of the outputs is 'whole', not the background"),
    ],
)
def test_regions_are_not_read_as_classes(tmp_path: Path, edit: Edit, first: str, message: str) -> None:
    folder = name_outputs(write(tmp_path / "bundle", edit, {}), first, "core", "enhancing")
    with pytest.raises(RunError, match=rf"{message}.*state labels in a teacher.json.*regions_class_order"):
        BundleFolder(folder).read()


def test_a_background_may_be_written_in_capitals(tmp_path: Path) -> None:
    assert list(BundleFolder(name_outputs(write(tmp_path / "bundle"), "Background", "spleen")).read().labels) == [
        "Background",
        "spleen",
    ]


def test_regions_of_a_teacher_json_are_painted(tmp_path: Path) -> None:
    from monai.networks.nets import UNet

    theirs = UNet(spatial_dims=3, in_channels=1, out_channels=3, **UNET).eval()
    model = BundleFolder(
        write(tmp_path / "bundle", brats, theirs.state_dict(), teacher={"train": [], **REGIONS})
    ).load()
    image = torch.randn(1, 1, 16, 16, 16)
    assert model.labels.regions and torch.equal(model.networks[0](image), theirs(image))
    logits = torch.tensor([[-9.0, 9, 9, 9], [-3, -9, 9, 9], [-9, -9, -9, 9]])
    assert model.labels.decode(logits).tolist() == [0, 1, 2, 3]


def test_regions_that_would_hide_others_are_refused(tmp_path: Path) -> None:
    stated = {
        "train": [],
        "labels": {"background": 0, "core": [2, 3], "whole": [1, 2, 3], "enhancing": [3]},
        "regions_class_order": [2, 1, 3],
    }
    with pytest.raises(DataError, match=r"teacher.json.*list the regions in the order 'whole', 'core', 'enhancing'"):
        BundleFolder(write(tmp_path / "bundle", brats, {}, teacher=stated)).describe()


EVIL = "$__import__('os').system('touch hostile')"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["network_def"].update(in_channels=EVIL), "'network_def::in_channels' is the expression"),
        (lambda c: c["network_def"].update(norm=["batch", {"eps": EVIL}]), "is the expression"),
        (lambda c: c.update(network_def=EVIL), "'network_def' is the expression"),
        (lambda c: c["network_def"].update(_target_=EVIL), "is the expression"),
        (lambda c: c["network_def"].update(_target_="os.system"), "'os.system' is not one of"),
        (
            lambda c: c["network_def"].update(_target_="scripts.networks.UNet"),
            r"'scripts\.networks\.UNet' is not one of",
        ),
        (lambda c: c["network_def"].update(_target_="monai.networks.nets.UNETR"), "'UNETR' is not one of"),
        (
            lambda c: c["network_def"].update(channels="@evil", strides="@evil") or c.update(evil=EVIL),
            "is the expression",
        ),
        (lambda c: c["network_def"].update(channels="@loop") or c.update(loop="@loop"), "is the expression"),
        (lambda c: c["network_def"].update(channels=["@network_def::channels"]), "refers to itself"),
        (lambda c: c["network_def"].update(norm={"a": "@network_def"}), "refers to itself"),
        (lambda c: c.update(postprocessing=["@postprocessing", "@postprocessing"]), "refers to itself"),
        (lambda c: c["network_def"].update(command="x"), "no argument 'command'"),
        (lambda c: c["network_def"].update(norm="no such norm"), "does not accept"),
        (lambda c: c["inferer"].update(roi_size=EVIL), "'inferer::roi_size' is the expression"),
        (lambda c: c["inferer"].update(roi_size=[16, -1, 16]), "must list positive numbers"),
        (lambda c: c["preprocessing"].update(transforms=EVIL), "must be a list of transforms"),
        (lambda c: c["preprocessing"]["transforms"][0].update(_target_=EVIL), "is the expression"),
        (lambda c: c["preprocessing"]["transforms"][3].update(pixdim=EVIL), "is the expression"),
        (lambda c: c["preprocessing"]["transforms"][4].update(_disabled_=EVIL), "is the expression"),
        (lambda c: c["preprocessing"]["transforms"][4].update(b_max=2), "another range"),
        (
            lambda c: c["preprocessing"]["transforms"].append({"_target_": "GaussianSmoothd"}),
            "'GaussianSmoothd' is not one",
        ),
        (
            lambda c: c["preprocessing"]["transforms"].append({"_target_": "NormalizeIntensityd"}),
            "is a second normalisation",
        ),
        (lambda c: c["preprocessing"]["transforms"].pop(3), "no Spacing transform"),
    ],
)
def test_what_is_not_plain_or_not_known_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Edit, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MedkdError, match=message) as caught:
        BundleFolder(write(tmp_path / "bundle", edit)).load()
    assert "\n" not in str(caught.value) and not (tmp_path / "hostile").exists()


def test_hostile_yaml_makes_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "bundle", yaml=True)
    file = folder / "configs" / "inference.yaml"
    file.write_text(file.read_text() + "\nevil: !!python/object/apply:os.system ['touch hostile']\n")
    with pytest.raises(RunError, match="not plain YAML"):
        BundleFolder(folder).load()
    assert not (tmp_path / "hostile").exists()


def test_files_of_the_bundle_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "bundle")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("import os; os.system('touch hostile')")
    BundleFolder(folder).load()
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        ([{"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True}], (("zscore",), (True,), "none")),
        ([{"_target_": "ScaleIntensityd"}], (("rescale_0_1",), (), "none")),
        ([{"_target_": "CropForegroundd"}], (("none",), (), "above(0)")),
    ],
)
def test_transforms_become_preprocessing(
    tmp_path: Path, transforms: list[dict[str, Any]], expected: tuple[Any, ...]
) -> None:
    found = BundleFolder(
        write(
            tmp_path / "bundle",
            lambda c: c["preprocessing"].update(transforms=[*c["preprocessing"]["transforms"][:4], *transforms]),
        )
    ).read()
    assert (found.normalization, found.use_mask_for_norm, found.crop) == expected


def without_spacing(config: dict[str, Any]) -> None:
    """No transform says the voxel size."""
    config["preprocessing"]["transforms"].pop(3)


def with_(*transforms: dict[str, Any]) -> Edit:
    """An edit that adds transforms at the end."""
    return lambda config: config["preprocessing"]["transforms"].extend(transforms)


WINDOW, CROP = ("window(-57, 164)",), {"_target_": "CropForegroundd"}
