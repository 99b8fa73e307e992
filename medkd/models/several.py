"""Several models as one teacher: each knows some of the structures, or all of one set, which makes an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from medkd.core.channels import differing_channels
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.core.labels import LabelSpec
from medkd.core.made_with import known_digest
from medkd.core.plan import Plan
from medkd.core.postprocessing import Postprocessing
from medkd.core.serial import nearest
from medkd.core.teachers import together
from medkd.models.base import Checkpoint, ModelFolder, open_model
from medkd.models.found_postprocessing import stored_postprocessing
from medkd.models.segmentation import SegmentationFolder, TrainedModel, label_meaning

TEACHERS_FILE = "teachers.json"
_SEPARATOR = " "


@dataclass(frozen=True)
class Member:
    """One of several teachers, and the folds of it that are averaged; none leaves that to the student's fold."""

    model: ModelFolder[TrainedModel]
    folds: tuple[str, ...] = ()

    def folds_for(self, fold: str) -> tuple[str, ...]:
        """The folds that teach a student of a fold: those that were asked for, else its own, else the first."""
        trained = self.model.teaching_folds
        if not trained:
            raise RunError(f"The teacher {self.model.path} has no finished fold; finish its training first.")
        missing = [name for name in self.folds if name not in trained]
        if missing:
            raise RunError(
                f"The teacher {self.model.path} has no finished fold {missing[0]}, only {', '.join(trained)}."
            )
        return self.folds or ((fold,) if fold in trained else trained[:1])


class SeveralTeachers(SegmentationFolder):
    """Models whose predictions of whole cases are merged, see :mod:`medkd.training.merged`.

    Each keeps its own preprocessing; the student's is its own choice. ``teachers.json`` lists them::

        {"teachers": ["MODEL_A", {"model": "MODEL_B", "folds": [0, 1]}]}

    Paths are relative to the file. A list may name lists, but not itself.
    """

    kind = "several"
    title = "a list of several models"
    merges = True
    predictor = "medkd.inference.several:SeveralPredictor"

    def __init__(self, path: Path, members: Sequence[Member] = ()) -> None:
        super().__init__(path)
        self.members = tuple(members) or _read(self._file)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a ``teachers.json`` or the folder of one."""
        return (path.name == TEACHERS_FILE and path.is_file()) or (path / TEACHERS_FILE).is_file()

    @classmethod
    def of(cls, models: Sequence[ModelFolder[TrainedModel]]) -> SeveralTeachers:
        """These models together."""
        return cls(models[0].path, [Member(model) for model in models])

    @property
    def name(self) -> str:
        """The names of all."""
        return "_and_".join(dict.fromkeys(member.model.name for member in self.members))

    @property
    def recorded(self) -> str:
        """What ``run.json`` says of all."""
        return together(str(member.model.path) for member in self.members)

    def taught_as(self, results: Path) -> tuple[str, ...]:
        """Each of them."""
        return tuple(text for member in self.members for text in member.model.taught_as(results))

    def postprocessing(self, folds: Sequence[str], weights: Sequence[str]) -> Postprocessing | None:
        """What was found on the validation cases of just these folds, predicted by all together."""
        return stored_postprocessing(self._file.parent, folds, weights)

    def folds(self, checkpoint: Checkpoint = "final") -> tuple[str, ...]:
        """Every fold that a member has: the others take part with what they have."""
        every = [fold for member in self.members for fold in (member.folds or member.model.teaching_folds)]
        return tuple(dict.fromkeys(every))

    def seen(self, fold: str, cases: Sequence[str], raw: Path) -> frozenset[str]:
        """What the members have seen together."""
        found: set[str] = set()
        for member in self.members:
            for own in member.folds_for(fold):
                found |= member.model.seen(own, cases, raw)
        return frozenset(found)

    def weights_file(self, fold: str) -> Path:
        """The first member's."""
        first = self.members[0]
        return first.model.weights_file(first.folds_for(fold)[0])

    def weights_files(self, fold: str) -> tuple[Path, ...]:
        """Those of all members."""
        found: list[Path] = []
        for member in self.members:
            for own in member.folds_for(fold):
                found += member.model.weights_files(own)
        return tuple(found)

    def check_fits(self, plan: Any, configuration: str, description: DatasetDescription) -> None:
        """Every structure of the student must have one teacher, or several of equal labels; all see its channels.

        Raises:
            RunError: the first thing that does not fit.
        """
        groups_of(self.members, description.labels)
        for member in self.members:
            model = member.model.describe()
            count, names = len(model.configuration.normalization), description.channel_names
            if count != len(names) or differing_channels(model.channels, names):
                raise RunError(
                    f"The teacher {member.model.path} takes the channels {', '.join(model.channels) or count}, the "
                    f"data set has {', '.join(names)}; order and name the data set's channels as the teacher's."
                )
        described = [member.model.describe() for member in self.members]
        inputs = [(model.channels, len(model.configuration.normalization)) for model in described]
        refuse_other_channels([str(member.model.path) for member in self.members], inputs)

    def check_once(self, fold: str) -> None:
        """Each network may teach a student of a fold once, under whatever path its weights lie.

        Raises:
            RunError: the files of two members' weights are equal.
        """
        weights = [_files_of(member, fold) for member in self.members] if len(self.members) > 1 else [()]
        refuse_twice([str(member.model.path) for member in self.members], weights)

    def check_gives_weights(self, plan: Plan, configuration: str, description: DatasetDescription) -> None:
        """The first member gives them, and has to fit as if it were alone."""
        first: Any = self.members[0].model
        first.check_gives_weights(plan, configuration, description)

    def _describe(self) -> TrainedModel:
        first = self.members[0].model.describe()
        every = [member.model.describe() for member in self.members]
        return replace(first, networks=(), folds=(), patch_size=(), mirror_axes=(), members=tuple(every))

    def _load(self, folds: Sequence[int | str] | None, checkpoint: Checkpoint) -> TrainedModel:
        raise RunError(
            f"{self.path}: several teachers have no single network; they teach by --targets cached, with methods that "
            "need outputs only."
        )

    @property
    def _file(self) -> Path:
        return self.path / TEACHERS_FILE if self.path.is_dir() else self.path


def refuse_other_channels(names: Sequence[str], inputs: Sequence[tuple[Sequence[str], int]]) -> None:
    """Models that get one scan must see the same channels, as far as they say which.

    Args:
        names: of the models.
        inputs: the names of each model's channels (empty where nobody says) and their number.

    Raises:
        RunError: two of them differ; nobody else may stand between both, since channels without a meaning agree with
            all.
    """
    for (first, (theirs, count)), (second, (ours, number)) in combinations(zip(names, inputs, strict=True), 2):
        differs = differing_channels(theirs, ours)
        if count != number or differs:
            raise RunError(
                f"The models {first} and {second} together must take the same channels, found "
                f"{', '.join(theirs) or count} and {', '.join(ours) or number}; take each alone."
            )


def refuse_twice(names: Sequence[str], weights: Sequence[Sequence[str]]) -> None:
    """Models that are averaged must be different ones.

    Args:
        names: of the models.
        weights: a hash of each network of each model.

    Raises:
        RunError: two of them have a network in common.
    """
    for (first, theirs), (second, ours) in combinations(zip(names, weights, strict=True), 2):
        if set(theirs) & set(ours):
            raise RunError(
                f"The models {first} and {second} have the same weights, which would count twice; list one of them, or "
                "folds that they do not have in common."
            )


def counted(member: Member, digests: Sequence[str]) -> tuple[str, ...]:
    """What of a model may count once: each network, but of a cascade its stages together."""
    alone = member.model.merges and not isinstance(member.model, SeveralTeachers)
    return (_SEPARATOR.join(digests),) if alone else tuple(digests)


def _files_of(member: Member, fold: str) -> list[str]:
    """A hash of the file of each network that teaches a student of a fold."""
    model, found = member.model, list[str]()
    for own in member.folds_for(fold):
        if isinstance(model, SeveralTeachers):
            found += [digest for inner in model.members for digest in _files_of(inner, own)]
        else:
            stage = f"{model.path.resolve()} " if model.merges else ""  # a cascade's first stages lie elsewhere
            found.append(stage + known_digest(model.weights_file(own)))
    return found


@dataclass(frozen=True)
class Group:
    """Teachers of one set of structures, which are averaged.

    Attributes:
        members: positions among the teachers.
        outputs: structure's output channel of the student → its output channel of these teachers.
    """

    members: tuple[int, ...]
    outputs: dict[int, int]


def joined_labels(members: Sequence[Member]) -> LabelSpec:
    """The structures of all teachers, each once, in their order.

    Raises:
        RunError: they are regions, of which nobody knows how those of one teacher lie to another's.
    """
    specs = [member.model.describe().labels for member in members]
    if all(label_meaning(spec) == label_meaning(specs[0]) for spec in specs):
        return specs[0]
    if any(spec.regions for spec in specs):
        raise RunError(
            "Regions of several models cannot be put together, since nobody knows how they lie to each other; write "
            "the data set's dataset.json yourself."
        )
    names: dict[str, str] = {}
    for spec in specs:
        for name, _ in spec.foreground:
            names.setdefault(name.casefold(), name)
    return LabelSpec.from_names(tuple(names.values()))


def groups_of(members: Sequence[Member], labels: LabelSpec) -> list[Group]:
    """Which teachers answer for which of the student's structures; names are compared whatever the case of letters.

    Args:
        members: the teachers.
        labels: of the student.

    Raises:
        RunError: a structure has no teacher, or teachers of different sets of structures claim it; labels and regions
            are mixed; a teacher knows none of the structures.
    """
    wanted = _channels(labels)
    found: dict[tuple[str, ...], Group] = {}
    for position, member in enumerate(members):
        theirs = member.model.describe().labels
        if theirs.regions != labels.regions:
            raise RunError(
                f"The teacher {member.model.path} and the data set differ: one has labels, the other regions."
            )
        own = _channels(theirs)
        _check_regions(member, theirs, labels)
        common = {wanted[name]: own[name] for name in wanted if name in own}
        if not common:
            raise RunError(
                f"The teacher {member.model.path} knows {', '.join(own)}, none of the data set's structures "
                f"({', '.join(wanted)}); leave it out, or name the labels alike."
            )
        key = tuple(sorted(own))
        same = found.get(key)
        if same is not None and same.outputs != common:
            raise RunError(f"The teacher {member.model.path} orders its labels otherwise than one of equal names.")
        found[key] = Group((*(same.members if same else ()), position), common)
    _check_owners(list(found.values()), members, wanted)
    return list(found.values())


def _check_regions(member: Member, theirs: LabelSpec, ours: LabelSpec) -> None:
    """Regions of equal names mean the same only if they lie in each other, beside or across each other alike."""
    own, wanted = ({name.casefold(): set(values) for name, values in spec.foreground} for spec in (theirs, ours))
    common = [name for name in wanted if name in own] if ours.regions else []
    for first, second in combinations(common, 2):
        if _relation(own[first], own[second]) != _relation(wanted[first], wanted[second]):
            raise RunError(
                f"The teacher {member.model.path} means other regions than the data set by '{first}' and '{second}': "
                f"there '{first}' {_relation(own[first], own[second])} '{second}', here it "
                f"{_relation(wanted[first], wanted[second])} it; leave the teacher out."
            )


def _relation(first: set[int], second: set[int]) -> str:
    if first == second:
        return "equals"
    if first < second:
        return "is a part of"
    if first > second:
        return "holds"
    return "overlaps" if first & second else "lies beside"


def _check_owners(groups: Sequence[Group], members: Sequence[Member], wanted: dict[str, int]) -> None:
    for name, output in wanted.items():
        owners = [group for group in groups if output in group.outputs]
        if not owners:
            raise RunError(f"No teacher knows the structure '{name}'; add one that does, or name its label alike.")
        if len(owners) > 1:
            first, second = (members[group.members[0]].model.path for group in owners[:2])
            raise RunError(
                f"The teachers {first} and {second} both know '{name}' but differ in their other structures, so that "
                "it need not mean the same; leave one of them out."
            )


def _channels(labels: LabelSpec) -> dict[str, int]:
    """Structure → output channel; the background has none of its own."""
    first = 0 if labels.regions else 1
    return {name.casefold(): channel for channel, (name, _) in enumerate(labels.foreground, start=first)}


def _read(path: Path) -> tuple[Member, ...]:
    listed = _listed(path)
    _refuse_circle(path, listed, ())
    return tuple(Member(open_model(path.parent / model, "segmentation"), folds) for model, folds in listed)


def _listed(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The folders that a file names, as they stand there, and the folds of each."""
    data = read_json(path)
    listed = data.get("teachers") if isinstance(data, dict) else None
    if not isinstance(listed, list) or not listed:
        raise RunError(f'{path}: expected {{"teachers": [MODEL, ...]}}, found {data!r:.100}.')
    _refuse_unknown(data, ("teachers",), path)
    return [_entry(entry, path) for entry in listed]


def _entry(entry: Any, path: Path) -> tuple[str, tuple[str, ...]]:
    content = {"model": entry} if isinstance(entry, str) else entry
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        raise RunError(f'{path}: expected a folder, or {{"model": FOLDER, "folds": [0]}}, found {entry!r:.100}.')
    _refuse_unknown(content, ("model", "folds"), path)
    if "folds" not in content:
        return content["model"], ()
    folds = content["folds"]
    named = list(map(str, folds)) if isinstance(folds, list) and all(map(_is_fold, folds)) else []
    if not named or len(set(named)) < len(named):
        raise RunError(
            f"{path}: expected under 'folds' a list of folds, each once, for example [0, 1], found {folds!r:.100}, "
            "or leave it out."
        )
    return content["model"], tuple(named)


def _is_fold(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _refuse_unknown(content: Mapping[str, Any], known: Sequence[str], path: Path) -> None:
    for key in content:
        if key not in known:
            raise RunError(f"{path}: unknown key '{key}', expected {' and '.join(known)}.{nearest(key, known)}")


def _refuse_circle(path: Path, listed: Sequence[tuple[str, Any]], above: Sequence[Path]) -> None:
    """See that a list is no part of itself, whichever lists stand between."""
    chain = [*above, path.resolve()]
    for model, _ in listed:
        inner = path.parent / model
        file = inner / TEACHERS_FILE if inner.is_dir() else inner
        if file.name != TEACHERS_FILE or not file.is_file():
            continue
        if file.resolve() in chain:
            raise RunError(f"{path}: the list names itself ('{model}' is {file.resolve()}); take that entry out.")
        _refuse_circle(file, _listed(file), chain)
