"""What :mod:`benchmarks.prove_training` trains: data sets, and arms in the order of their worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_FEW, _ALL = "Dataset004_FewLabels", "Dataset005_AllLabels"
_ANTERIOR, _POSTERIOR = "Dataset006_Anterior", "Dataset007_Posterior"
_FEW_HEARTS, _HEARTS = "Dataset026_FewHearts", "Dataset027_ACDC"


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set that is made from a download.

    Attributes:
        source: option that names the download.
        configuration: that is trained.
        batch_size: of all runs.
        patch_size: of all runs; None is the plan's.
        labelled: so many training cases keep their labels; None is all.
        structure: the one label that is kept; None keeps all.
        plan_of: data set whose plan is taken; None plans like MODEL, or anew.
        like_model: plan as for students of MODEL.
    """

    source: Literal["hippocampus", "acdc"]
    configuration: str = "3d_fullres"
    batch_size: int = 2
    patch_size: tuple[int, ...] | None = None
    labelled: int | None = None
    structure: int | None = None
    plan_of: str | None = None
    like_model: bool = False


DATA_SETS: Mapping[str, Data] = {
    _FEW: Data(source="hippocampus", labelled=20, like_model=True),
    _ALL: Data(source="hippocampus", like_model=True),
    _ANTERIOR: Data(source="hippocampus", structure=1),
    _POSTERIOR: Data(source="hippocampus", structure=2),
    _HEARTS: Data(source="acdc", configuration="2d", batch_size=12, patch_size=(192, 192)),
    _FEW_HEARTS: Data(
        source="acdc", configuration="2d", batch_size=12, patch_size=(192, 192), labelled=20, plan_of=_HEARTS
    ),
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train one network.

    Attributes:
        name: unlike any other's.
        says: what is compared, for tables.
        dataset: one of :data:`DATA_SETS`.
        network: registry name.
        method: distillation method; None trains without a teacher, ``score`` scores the teacher itself.
        teachers: ``model``, or arms; the first one leads.
        settings: of the training.
        teaches: a teacher of other arms, trained with the first seed only.
    """

    name: str
    says: str
    dataset: str
    network: str = "plain_unet"
    method: str | None = None
    teachers: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    teaches: bool = False


_KD_DML = "kd+dml"
_WHOLE = {"method_parameters": {"kd.weight": 1.0}}  # with dml the form of the supervised loss, from the teacher alone
_CACHED = {"targets": "cached"}
_NO_LABEL = {**_CACHED, "labels": "none"}
_QUARTER = {"width_divisor": 4}


def _students(prefix: str, few: str, every: str, network: str, teacher: str, base: Mapping[str, Any]) -> dict[str, Arm]:
    """The comparisons that are made for every student."""
    plans: dict[str, tuple[str, str, str | None, Mapping[str, Any]]] = {
        "alone20": ("alone, 20 labels", few, None, {}),
        "alone": ("alone, all labels", every, None, {}),
        "kd20": ("kd, 20 labels and the other scans", few, "kd", _CACHED),
        "kd0": ("kd, no label", few, "kd", _NO_LABEL),
        "kd_dml20": ("kd+dml, 20 labels and the other scans", few, _KD_DML, {**_CACHED, **_WHOLE}),
        "kd_dml0": ("kd+dml, no label", few, _KD_DML, {**_NO_LABEL, **_WHOLE}),
        "dml20": ("dml, 20 labels and the other scans", few, "dml", _CACHED),
        "dml0": ("dml, no label", few, "dml", _NO_LABEL),
        "init20": ("none from the teacher's weights, 20 labels", few, "none", {"init": "teacher"}),
        "init": ("none from the teacher's weights, all labels", every, "none", {"init": "teacher"}),
        "init_kd_dml0": (
            "kd+dml from the teacher's weights, no label",
            few,
            _KD_DML,
            {**_NO_LABEL, **_WHOLE, "init": "teacher"},
        ),
        "init_kd_dml20": (
            "kd+dml from the teacher's weights, 20 labels and the other scans",
            few,
            _KD_DML,
            {**_CACHED, **_WHOLE, "init": "teacher"},
        ),
        "kd": ("kd, all labels", every, "kd", _CACHED),
        "dist": ("dist, all labels", every, "dist", _CACHED),
    }
    arms = {}
    for key, (says, dataset, method, settings) in plans.items():
        arms[key] = Arm(
            name=f"{prefix}.{key}",
            says=says,
            dataset=dataset,
            network=network,
            method=method,
            teachers=(teacher,) if method else (),
            settings={**base, **settings},
        )
    return arms


def _chosen(arms: Mapping[str, Arm], *names: str) -> list[Arm]:
    return [arms[name] for name in names]


def _both_parts(name: str, says: str, *teachers: str) -> Arm:
    settings = {**_QUARTER, **_NO_LABEL}
    return Arm(name=name, says=says, dataset=_ALL, method="dml", teachers=teachers, settings=settings)


_UNET = _students("hippocampus", _FEW, _ALL, "plain_unet", "model", _QUARTER)
_TINY = _students("hippocampus_tiny", _FEW, _ALL, "unet_tiny", "model", {})
_HEART = _students("acdc", _FEW_HEARTS, _HEARTS, "plain_unet", "acdc.teacher", _QUARTER)
_EIGHTH = _students("acdc_eighth", _FEW_HEARTS, _HEARTS, "plain_unet", "acdc.teacher", {"width_divisor": 8})

ARMS: tuple[Arm, ...] = (
    Arm(name="acdc.teacher", says="the teacher", dataset=_HEARTS, teaches=True),
    Arm(name="parts.anterior", says="teacher of the anterior part", dataset=_ANTERIOR, teaches=True),
    Arm(name="parts.posterior", says="teacher of the posterior part", dataset=_POSTERIOR, teaches=True),
    Arm(name="parts.both", says="teacher of both parts", dataset=_ALL, teaches=True),
    Arm(
        name="hippocampus.teacher", says="the teacher", dataset=_ALL, method="score", teachers=("model",), teaches=True
    ),
    *_chosen(_UNET, "alone20", "alone", "kd_dml20", "kd_dml0", "kd20", "kd0", "dml20", "dml0"),
    *_chosen(_UNET, "init20", "init_kd_dml0", "init_kd_dml20", "init"),
    *_chosen(_HEART, "alone20", "alone", "dml20", "dml0", "init20", "init", "kd_dml20", "kd_dml0", "kd", "dist"),
    _both_parts("parts.student_of_two", "no label, a teacher for each part", "parts.anterior", "parts.posterior"),
    _both_parts("parts.student_of_one", "no label, one teacher for both parts", "parts.both"),
    *_chosen(_TINY, "alone20", "alone", "kd_dml20", "kd_dml0"),
    *_chosen(_EIGHTH, "alone", "init"),
)
