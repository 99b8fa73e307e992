"""A run as one ``.zip`` to send to somebody: what prediction needs, and no teacher, helper, log or path of this
machine.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from medkd import __version__
from medkd.core.checkpoint import (
    SAFETENSORS,
    load_checkpoint,
    save_checkpoint,
    save_safetensors,
    stored_checkpoint,
    weights_digest,
)
from medkd.core.errors import RunError
from medkd.core.files import atomic_path, read_json, scratch_folder, write_json, write_text
from medkd.core.postprocessing import POSTPROCESSING_FILE
from medkd.core.run import BEST, CROSS_VALIDATION, DATASET_FILE, FINAL, PLANS_FILE, RUN_FILE, SPLIT_FILE
from medkd.core.serial import save
from medkd.core.teachers import apart, together
from medkd.exporting.output import make_room
from medkd.inference.postprocessing import Choice, choose_postprocessing
from medkd.models.base import Checkpoint, ModelFolder, open_model
from medkd.models.packed import ENDING, unpacked

_DETECTOR = "detector_run"
_KINDS = ("run", _DETECTOR)
_CHECKPOINTS = {"final": FINAL, "best": BEST}
_ELSEWHERE = "elsewhere"  # in the place of a folder of this machine, lest a model is taken for a run of its name
_CARD = "README.md"


@dataclass(frozen=True)
class Packed:
    """A run that was packed.

    Attributes:
        folds: whose weights are in it.
        parameters: of one network.
        size: of the file, in bytes.
    """

    folds: tuple[str, ...]
    parameters: int
    size: int


def pack_run(
    model: Path | str,
    output: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: Checkpoint = "final",
    postprocessing: Choice = None,
    overwrite: bool = False,
) -> Packed:
    """Pack a run of medkd, for segmentation or detection, and prove that it opens with the same weights.

    Args:
        model: run folder.
        output: ``*.zip``, which ``medkd_predict -m`` takes.
        folds: 0-4 or ``"all"``; None packs every fold that has the checkpoint.
        checkpoint: ``"final"`` or ``"best"``; in the file the weights are called final.
        postprocessing: as for :func:`medkd.exporting.export.export_model`.
        overwrite: replace a file that is there.

    Raises:
        RunError: the model is no run, a fold is not trained, or the output is there or no ``.zip``.
    """
    output = Path(output)
    if output.suffix.lower() != ENDING:
        raise RunError(f"--format folder writes one file; name it, as in -o {output.name or 'model'}{ENDING}.")
    if output.exists() and not overwrite:
        raise RunError(f"{output} is there already; give --overwrite to replace it.")
    source = open_model(model)
    if source.kind not in _KINDS:
        raise RunError(f"{model} is {source.title}; --format folder packs runs of medkd, send that folder as it is.")
    loaded = source.load(folds, checkpoint=checkpoint)
    make_room(output)
    with scratch_folder(output.parent) as scratch:
        folder = scratch / source.path.name
        folder.mkdir()
        _fill(folder, source, loaded.folds, checkpoint)
        _write_postprocessing(folder, source, loaded, checkpoint, postprocessing)
        with atomic_path(output) as temporary:
            _zip(folder, temporary)
            _check(temporary, loaded.networks, loaded.folds)
    parameters = sum(value.numel() for value in loaded.networks[0].parameters())
    return Packed(tuple(loaded.folds), parameters, output.stat().st_size)


def _fill(folder: Path, source: ModelFolder[Any], folds: Sequence[str], checkpoint: Checkpoint) -> None:
    described = read_json(source.path / RUN_FILE)
    write_json(folder / RUN_FILE, _without_paths(described))
    for name in (PLANS_FILE, DATASET_FILE):
        write_json(folder / name, read_json(source.path / name))
    for fold in folds:
        theirs, ours = source.path / f"fold_{fold}", folder / f"fold_{fold}"
        ours.mkdir()
        content = load_checkpoint(stored_checkpoint(theirs / _CHECKPOINTS[checkpoint]))
        _write_weights(ours / FINAL, content["network"])
        if (theirs / SPLIT_FILE).is_file():
            write_json(ours / SPLIT_FILE, read_json(theirs / SPLIT_FILE))
    write_text(folder / _CARD, _card(source.path.name, described, folds, checkpoint))


def _write_postprocessing(
    folder: Path, source: ModelFolder[Any], loaded: Any, checkpoint: Checkpoint, choice: Choice
) -> None:
    """What the packed folds go on with, of a file as what was found for them."""
    if source.kind == _DETECTOR and choice is not None:
        raise RunError("Post-processing is for segmentation; leave it out for a detector.")
    if source.kind == _DETECTOR or (choice is None and checkpoint != "final"):
        return
    digests = [weights_digest(network.state_dict()) for network in loaded.networks]
    found = choose_postprocessing(source, loaded.folds, lambda: digests, loaded.labels, choice)
    if found is not None:
        stated = found if choice is None else replace(found, folds=tuple(loaded.folds), weights=())
        save(folder / CROSS_VALIDATION / POSTPROCESSING_FILE, stated)


def _without_paths(described: Mapping[str, Any]) -> dict[str, Any]:
    """``run.json`` with the mere names of what lies somewhere on this machine."""
    cleaned = dict(described)
    if isinstance(cleaned.get("backbone_weights"), str):
        cleaned["backbone_weights"] = _last_part(cleaned["backbone_weights"])
    if isinstance(cleaned.get("teacher"), str):
        cleaned["teacher"] = together(map(_last_part, apart(cleaned["teacher"])))
    if isinstance(cleaned.get("taught_by"), list):
        cleaned["taught_by"] = [_hidden(str(name)) for name in cleaned["taught_by"]]
    weights = cleaned.get("weights")
    if isinstance(weights, Mapping) and isinstance(weights.get("file"), str):
        cleaned["weights"] = {**weights, "file": _last_part(weights["file"])}
    return cleaned


def _hidden(name: str) -> str:
    """A run's name as it is, a folder without what lies above it."""
    last = _last_part(name)
    return name if last == name else f"{_ELSEWHERE}/{last}"


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _write_weights(checkpoint: Path, weights: Mapping[str, Tensor]) -> None:
    if find_spec("safetensors") is not None:
        save_safetensors(checkpoint.with_suffix(SAFETENSORS), weights)
    else:
        save_checkpoint(checkpoint, {"network": dict(weights)})


def _zip(folder: Path, file: Path) -> None:
    """Without the times of the files, so that equal runs make equal archives."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix())
                entry.external_attr = 0o644 << 16
                way = zipfile.ZIP_DEFLATED if path.suffix in (".json", ".md") else zipfile.ZIP_STORED
                archive.writestr(entry, path.read_bytes(), way)


def _check(packed: Path, networks: Sequence[Any], folds: Sequence[str]) -> None:
    opened = open_model(unpacked(packed)).load(folds)
    for ours, theirs, fold in zip(networks, opened.networks, folds, strict=True):
        if weights_digest(ours.state_dict()) != weights_digest(theirs.state_dict()):
            raise RunError(f"The packed model holds other weights than fold {fold}; nothing was exported.")


def _card(name: str, described: Mapping[str, Any], folds: Sequence[str], checkpoint: Checkpoint) -> str:
    lines = [
        f"# {name}",
        "",
        f"Packed by medkd {__version__}. Research software, not a medical device; not for diagnosis.",
        "",
        f"- data set: {described.get('dataset')}, configuration {described.get('configuration')}",
        f"- network: {described.get('network', {}).get('name')}, folds {', '.join(folds)} ({checkpoint} weights)",
        f"- method: {described.get('method') or 'trained alone'}",
        "",
        "## Use",
        "",
        "```",
        f"medkd_predict -i scans -o predictions -m {name}.zip",
        "```",
        "",
    ]
    return "\n".join(lines)
