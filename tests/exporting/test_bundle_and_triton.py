"""A student as a MONAI bundle that MONAI runs, and as a repository for Triton that fits its published schema."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medkd.core.checkpoint import load_checkpoint
from medkd.core.errors import RunError
from medkd.core.files import read_json, write_json
from medkd.exporting.export import export_model
from medkd.exporting.triton import CHAIN, NETWORK, version_folder
from medkd.io.volumes import read_image, read_label
from medkd.models.base import open_model
from medkd.runtime.engines import open_engine
from medkd.runtime.package import read_exported

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1_0"
STUDENT = OLD / "plain_unet_w2__3d_fullres__kd+at__from_plain_unet"
REQUIRED = (  # by MONAI's meta_schema_20240725.json
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task"),
    *("description", "authors", "copyright", "network_data_format"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export_model(STUDENT, folder, format="bundle", scan=[OLD / "scan_0000.nii.gz"])
    return folder


def test_monai_runs_the_bundle_to_the_same_label_map(bundle: Path, tmp_path: Path) -> None:
    from monai.bundle import run

    (tmp_path / "scans").mkdir()
    shutil.copy(OLD / "scan_0000.nii.gz", tmp_path / "scans")
    run(
        run_id="run",
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path / "scans"),
        output_dir=str(tmp_path / "out"),
    )
    found = read_label(tmp_path / "out" / "scan.nii.gz").array
    assert np.array_equal(found, read_label(STUDENT / "expected.nii.gz").array)


def test_the_metadata_say_what_monai_asks_for(bundle: Path) -> None:
    """As ``verify_net_in_out`` reads them: the network takes what they state and gives what they state."""
    from monai.bundle import ConfigParser

    metadata = read_json(bundle / "configs" / "metadata.json")
    assert [key for key in REQUIRED if key not in metadata] == []
    given = metadata["network_data_format"]["inputs"]["image"]
    taken = metadata["network_data_format"]["outputs"]["pred"]
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network_def")
    logits = network(torch.zeros(1, given["num_channels"], *given["spatial_shape"]))
    assert logits.shape == (1, taken["num_channels"], *taken["spatial_shape"])
    traced = torch.jit.load(str(bundle / "models" / "model.ts"))
    noise = torch.randn(1, given["num_channels"], *given["spatial_shape"])
    assert torch.allclose(traced(noise), network(noise), atol=1e-3)
    assert sorted(taken["channel_def"]) == [str(i) for i in range(taken["num_channels"])]


def schema() -> dict[str, Any]:
    """What MONAI's meta_schema_20240725.json asks for, in our words: keys, kinds of values, and tensors."""
    texts = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description")
    required = [*texts, "authors", "copyright", "required_packages_version", "network_data_format"]
    shape = {"type": "array", "items": {"type": ["string", "integer"]}}
    described = {
        **{"type": {"type": "string"}, "format": {"type": "string"}, "dtype": {"type": "string"}},
        **{"num_channels": {"type": "integer"}, "spatial_shape": shape, "is_patch_data": {"type": "boolean"}},
        **{"value_range": {"type": "array", "items": {"type": "number"}}, "channel_def": {"type": "object"}},
    }
    needed = ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]
    tensor = {"type": "object", "properties": described, "required": needed}
    tensors = {"type": "object", "patternProperties": {".+": tensor}}
    sides = {"inputs": tensors, "outputs": tensors}
    ports = {"type": "object", "properties": sides, "required": list(sides)}
    kinds: dict[str, Any] = {key: {"type": "string"} for key in (*texts, "authors", "copyright")}
    kinds |= {key: {"type": "object"} for key in ("changelog", "required_packages_version")}
    whole = {"type": "object", "properties": {**kinds, "network_data_format": ports}, "required": required}
    return {"$schema": "https://json-schema.org/draft/2019-09/schema", **whole}


def test_monais_own_verification_passes_without_a_network(bundle: Path, tmp_path: Path) -> None:
    """``verify_metadata`` downloads nothing where the schema's file is there already."""
    pytest.importorskip("jsonschema")
    from monai.bundle import verify_metadata, verify_net_in_out

    write_json(tmp_path / "schema.json", schema())
    metadata = bundle / "configs" / "metadata.json"
    verify_metadata(meta_file=str(metadata), filepath=str(tmp_path / "schema.json"))
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(metadata),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )
    stated = read_json(metadata)
    del stated["task"]
    write_json(tmp_path / "lacking.json", stated)
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "lacking.json"), filepath=str(tmp_path / "schema.json"))
    stated = read_json(metadata)
    stated["network_data_format"]["outputs"]["pred"]["num_channels"] += 1
    write_json(tmp_path / "wrong.json", stated)
    with pytest.raises(ValueError, match="channel number"):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(tmp_path / "wrong.json"),
            config_file=str(bundle / "configs" / "inference.json"),
            device="cpu",
            bundle_root=str(bundle),
        )


def test_the_weights_lie_beside_as_the_specification_asks(bundle: Path) -> None:
    weights = load_checkpoint(bundle / "models" / "model.pt")
    traced = torch.jit.load(str(bundle / "models" / "model.ts")).state_dict()
    assert sorted(weights) == sorted(traced)
    assert all(torch.equal(weights[name], value) for name, value in traced.items())


def test_medkd_takes_the_bundle_as_an_exported_model(bundle: Path) -> None:
    assert open_model(bundle).kind == "exported"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported") / "triton"
    export_model(STUDENT, folder, format="triton", scan=[OLD / "scan_0000.nii.gz"])
    return folder


def model_config() -> Any:
    """The part of Triton's ``ModelConfig`` that the files may use, field for field as it is published."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    kinds = {"string": field.TYPE_STRING, "int32": field.TYPE_INT32, "int64": field.TYPE_INT64}
    tensor = [("name", 1, "string"), ("data_type", 2, "DataType")]
    messages = {
        "ModelInput": [*tensor, ("dims", 4, "int64*")],
        "ModelOutput": [*tensor, ("dims", 3, "int64*")],
        "ModelInstanceGroup": [("name", 1, "string"), ("count", 2, "int32"), ("kind", 4, "Kind")],
        "ModelConfig": [
            *[("name", 1, "string"), ("platform", 2, "string"), ("max_batch_size", 4, "int32")],
            *[("input", 5, "ModelInput*"), ("output", 6, "ModelOutput*")],
            *[("instance_group", 7, "ModelInstanceGroup*"), ("backend", 17, "string")],
        ],
    }
    types = [*("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")]
    types += ["FP16", "FP32", "FP64", "STRING", "BF16"]
    enums = {
        "DataType": [f"TYPE_{name}" for name in types],
        "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
    }
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in enums.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for title, number, kind in fields:
            added = message.field.add(name=title, number=number)
            plain = kind.rstrip("*")
            added.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            if plain in kinds:
                added.type = kinds[plain]
            else:
                added.type = field.TYPE_ENUM if plain in enums else field.TYPE_MESSAGE
                added.type_name = f".inference.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


def test_the_configurations_fit_the_published_schema(repository: Path) -> None:
    pytest.importorskip("google.protobuf")
    import onnx
    from google.protobuf import text_format

    network, chain = (
        text_format.Parse((repository / name / "config.pbtxt").read_text(), model_config()) for name in (NETWORK, CHAIN)
    )
    assert (network.name, chain.name) == (NETWORK, CHAIN)
    graph = onnx.load(version_folder(repository, NETWORK) / "model.onnx").graph
    for stated, found in ((network.input[0], graph.input[0]), (network.output[0], graph.output[0])):
        shape = [side.dim_value for side in found.type.tensor_type.shape.dim]
        assert (stated.name, list(stated.dims)) == (found.name, shape[1:])
    assert [tensor.name for tensor in chain.input] == ["image", "affine"]
    assert chain.instance_group[0].kind == 2


class Backend(ModuleType):
    """What Triton gives to a Python model, with the network of the repository behind it."""

    TritonModelException = RuntimeError
    TritonError = str

    def __init__(self, repository: Path) -> None:
        super().__init__("triton_python_backend_utils")
        self.engine = open_engine(version_folder(repository, NETWORK) / "model.onnx")
        stated = (repository / NETWORK / "config.pbtxt").read_text()
        self.most = int(stated.partition("max_batch_size:")[2].split()[0])

    def Tensor(self, name: str, values: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(name=name, as_numpy=lambda: values)

    def InferenceRequest(
        self, model_name: str, requested_output_names: list[str], inputs: list[Any]
    ) -> SimpleNamespace:
        assert (model_name, requested_output_names, inputs[0].name) == (NETWORK, ["logits"], "image")
        assert len(inputs[0].as_numpy()) <= self.most, "the server refuses larger batches than config.pbtxt states"
        answer = {"logits": self.engine(inputs[0].as_numpy())}
        return SimpleNamespace(exec=lambda: SimpleNamespace(has_error=lambda: False, tensors=answer))

    def InferenceResponse(self, output_tensors: list[Any], error: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(outputs=output_tensors, error=error)

    def get_output_tensor_by_name(self, response: SimpleNamespace, name: str) -> SimpleNamespace:
        return self.Tensor(name, response.tensors[name])

    def get_input_tensor_by_name(self, request: dict[str, np.ndarray], name: str) -> SimpleNamespace:
        return self.Tensor(name, request[name])


def chain_of(repository: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, dict[str, str]]:
    """The module that the server loads, and what it starts the model with."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend(repository))
    folder = version_folder(repository, CHAIN)
    spec = importlib.util.spec_from_file_location("chain", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, {"model_repository": str(folder.parent), "model_version": folder.name}


def test_the_chain_answers_a_server(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, arguments = chain_of(repository, monkeypatch)
    model = module.TritonPythonModel()
    model.initialize(arguments)
    image, geometry = read_image([OLD / "scan_0000.nii.gz"], "scan")
    sound = {"image": image, "affine": np.array(geometry.affine)}
    good, *bad = model.execute(
        [sound, {**sound, "image": image[0]}, {**sound, "image": image * np.nan}, {**sound, "affine": np.zeros((4, 4))}]
    )
    assert np.array_equal(good.outputs[0].as_numpy(), read_label(STUDENT / "expected.nii.gz").array)
    assert all(answer.outputs == [] and answer.error for answer in bad)


def test_a_request_holds_no_more_patches_than_the_configuration_states(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small patches go together in larger batches than the server takes, in 2D nearly always."""
    module, _ = chain_of(repository, monkeypatch)
    patch = read_exported(version_folder(repository, CHAIN)).patch_size
    batch = np.random.default_rng(0).normal(size=(19, 1, *patch)).astype(np.float32)
    wanted = open_engine(version_folder(repository, NETWORK) / "model.onnx")(batch)
    assert np.allclose(module.network(batch), wanted, atol=1e-5)


def test_a_chain_beside_another_network_does_not_start(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    module, arguments = chain_of(copy, monkeypatch)
    with (version_folder(copy, NETWORK) / "model.onnx").open("ab") as file:
        file.write(b"another")
    with pytest.raises(RunError, match="is not the network that"):
        module.TritonPythonModel().initialize(arguments)
