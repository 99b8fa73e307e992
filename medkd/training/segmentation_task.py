"""What segmentation says to the training that all tasks share: its plan, its run, and what must not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import medkd.training.run as training_run
import medkd.training.several_methods as several_methods
from medkd.core.dataset import DatasetDescription
from medkd.core.errors import MedkdError, RunError
from medkd.core.limits import option_name
from medkd.core.plan import Configuration, Plan
from medkd.core.protocol import TrainingRule
from medkd.core.protocol_rows import merged_parameters, published_lines
from medkd.core.run import Budget, NetworkSpec, RunDescription, RunFolder
from medkd.core.splits import ALL, Split
from medkd.distillation import METHODS
from medkd.models.axes import PatchAxes
from medkd.models.base import ModelFolder
from medkd.models.guard import Teacher
from medkd.models.like import prepare_if_new
from medkd.models.pretrained import IMAGENET, Source, find_source, refuse_leak, seen_at_place, start_weights
from medkd.models.segmentation import SegmentationFolder, TrainedModel
from medkd.models.several import SeveralTeachers
from medkd.networks import NETWORKS, fit_patch
from medkd.networks.reference import build_weightless
from medkd.preprocessing.current import check_finished, check_store
from medkd.preprocessing.store import CaseStore
from medkd.training.agreement import write_agreement
from medkd.training.job import FoldData, Job, TrainingTask, describe_run, method_names
from medkd.training.options import INIT_FROM_TEACHER, OUT_OF_FOLD, STORED_TARGETS, TrainOptions, check_start
from medkd.training.plausibility import Score, doubt, number_at, own_name, share_of_voxels, table_at
from medkd.training.published import chosen_plan, followed
from medkd.training.segmentation_lesson import SegmentationLesson, student_axes
from medkd.training.side_by_side import fit_together
from medkd.training.unlabelled import split_with_unlabelled
from medkd.training.untrained_network import UntrainedNetwork
from medkd.training.validation import finish_fold

SegmentationFold = FoldData[Plan, CaseStore, TrainOptions]
SegmentationJob = Job[Plan, CaseStore, TrainOptions]

_SHARED = ("spacing", "normalization", "use_mask_for_norm", "resampling", "crop", "batch_dice")
_DICE_OF_NOTHING = 0.01


class SegmentationTask(TrainingTask[Plan, CaseStore, TrainOptions]):
    """Labels of every voxel, in 2D and 3D."""

    name = "segmentation"
    options = TrainOptions
    in_several_processes = True

    def configuration(self, options: TrainOptions) -> str:
        """What ``--configuration`` says."""
        return options.configuration

    def read_plan(self, path: Path) -> Plan:
        """Read a ``plans.json``."""
        return Plan.load(path)

    def open_store(self, folder: Path, plan: Plan, configuration: str) -> CaseStore:
        """The cases of a configuration, which must be planned and wholly preprocessed."""
        store = CaseStore(folder / plan.configuration(configuration).name)
        check_finished(store)
        return store

    def check_store(self, data: SegmentationFold) -> None:
        """See :func:`medkd.preprocessing.current.check_store`."""
        check_store(data.store, data.plan, configured(data), data.description.labels)

    def facts(self, plan: Plan, description: DatasetDescription, configuration: str) -> Mapping[str, Any]:
        """Preprocessing, labels and protocol; sizes of networks and numbers of cases do not count."""
        configured = plan.configuration(configuration)
        facts: dict[str, Any] = {
            "channels": description.channel_names,
            "labels": description.labels,
            "axis order": plan.transpose,
            "orientation": plan.orientation,
        }
        facts |= {key: getattr(configured, key) for key in _SHARED}
        facts["protocol"] = plan.protocol
        if "ct" in configured.normalization:
            facts["intensities"] = plan.intensities
        return facts

    def structures(self, data: SegmentationFold) -> tuple[str, ...]:
        """The names of labels or regions."""
        return tuple(name for name, _ in data.description.labels.foreground)

    def structures_of(self, data: SegmentationFold, case: str) -> frozenset[str]:
        """Those of which the case has voxels."""
        names = self.structures(data)
        stored = data.store.open(case)
        if not stored.labelled:
            return frozenset(names)  # nobody knows; nobody is warned
        locations = stored.locations
        return frozenset(names[entry - 1] for entry, voxels in locations.items() if entry > 0 and len(voxels))

    def check(self, data: SegmentationFold, network: str, method: str | None) -> None:
        """Refuse an unknown network, and options that are for students of a student without a teacher."""
        NETWORKS[network]
        check_start(data.options.init, method)

    def check_teacher(self, data: SegmentationFold, model: ModelFolder[Any], method: str | None) -> None:
        """A student that only starts from its teacher may have its own plan and labels."""
        names, asked = method_names(method or "none"), (data.plan, data.configuration, data.description)
        starts = data.options.init == INIT_FROM_TEACHER
        gives = model if starts and isinstance(model, SegmentationFolder) else None
        if gives is None or model.merges or any(METHODS[name].needs_teacher for name in names):
            model.check_fits(*asked)
        if gives is not None:
            gives.check_gives_weights(*asked)
        if isinstance(model, SeveralTeachers):
            _doubt_parts(model, data.options.strict)

    def further_teachers(self, options: TrainOptions) -> tuple[str, ...]:
        """What ``--teacher`` says."""
        return options.teachers

    def together(self, models: Sequence[ModelFolder[Any]]) -> ModelFolder[Any]:
        """Their predictions are merged."""
        return SeveralTeachers.of(models)

    def untrained(self, job: SegmentationJob) -> UntrainedNetwork:
        """Plan, labels, layers and cases of what is going to teach."""
        return UntrainedNetwork(job)

    def unlabelled(self, store: CaseStore) -> tuple[str, ...]:
        """The preprocessed scans of ``imagesUn``."""
        return tuple(store.unlabelled.cases())

    def with_unlabelled(self, data: SegmentationFold, method: str | None) -> Split:
        """See :func:`medkd.training.unlabelled.split_with_unlabelled`."""
        return split_with_unlabelled(data, method)

    def prepare_like(self, dataset: str | int, model: ModelFolder[Any], options: TrainOptions) -> None:
        """Take over the preprocessing of a teacher that was trained elsewhere, where there is no plan yet."""
        prepare_if_new(dataset, model, options.root, strict=options.strict)

    def start(self, data: SegmentationFold, network: str) -> SegmentationFold:
        """Weights of timm for networks whose encoder is from there, or a file."""
        asked = data.options.weights
        if asked is None:
            return data
        built = build_weightless(_network(data, network, None))
        sources = {IMAGENET: Source("timm", built.encoder_name)} if built.encoder_name else {}
        return replace(data, weights=start_weights(asked, *find_source(asked, sources, network)))

    def seen_at_start(self, data: SegmentationFold) -> frozenset[str]:
        """What the weights that the network starts from have seen, as far as their place says it."""
        if data.weights is None:
            return frozenset()
        file = Path(data.weights.file)
        cases = sorted({*data.store.cases(), *data.split.val})
        seen = seen_at_place(file, cases, data.raw) or frozenset()
        refuse_leak(file, seen, data.fold, data.split, "--weights", data.description.patients)
        return seen

    def follow(self, data: SegmentationFold, network: str, method: str | None, teacher: str | None) -> SegmentationFold:
        """The protocol that is asked for, else the plan's; its rows set what the user did not."""
        plan = chosen_plan(data.plan, data.options.protocol, data.description)
        plan, found = followed(plan, method, network, teacher)
        given = data.options.method_parameters
        parameters = merged_parameters(found, given)
        named = plan.protocol.name if plan.protocol and (found.sources or data.options.protocol) else None
        options = replace(data.options, method_parameters=parameters)
        return replace(data, plan=plan, options=options, protocol=named, published=published_lines(found, given))

    def network_label(self, network: str, options: TrainOptions) -> str:
        """The network, and by how much its channels are divided."""
        return network if options.width_divisor == 1 else f"{network}_w{options.width_divisor}"

    def describe(
        self, data: SegmentationFold, network: str, method: str | None, teacher: Teacher[TrainedModel] | None
    ) -> RunDescription:
        """``run.json``: the options, else the protocol's values, else the plan's and nnU-Net's."""
        options, rule = data.options, rule_of(data.plan)
        planned = configured(data).architecture(network)
        epochs = rule.distilled_epochs if method and rule.distilled_epochs else rule.epochs
        budget = Budget(
            options.epochs or epochs,
            options.iterations_per_epoch or rule.iterations_per_epoch,
            options.batch_size or (rule.batch_size if options.protocol else None) or planned.batch_size,
            options.learning_rate or rule.learning_rate,
            options.seed,
        )
        spec = _network(data, network, teacher)
        run = describe_run(data, spec, budget, method, teacher, (NETWORKS, METHODS))
        run = replace(run, mirror_axes=mirror_axes(data, teacher))
        if method is None:
            return run
        averaged = averages_targets(options, data.fold, method)
        return replace(
            run,
            targets=options.targets,
            targets_tta=averaged,
            init=options.init,
            unlabelled_share=options.unlabelled_share,
            labels=options.labels,
            confidence=float(options.confidence),
        )

    def score(self, summary: Mapping[str, Any]) -> Score | None:
        """The mean foreground Dice."""
        dice = number_at(summary, "foreground_mean", "Dice")
        if dice is None:
            return None
        trivial = [nothing for _, _, nothing in self.part_scores(summary).values()]
        return "Dice", dice, sum(trivial) / len(trivial) if trivial else _DICE_OF_NOTHING

    def part_scores(self, summary: Mapping[str, Any]) -> Mapping[str, Score]:
        """The mean Dice of each structure that validation cases show, and of calling every voxel that."""
        means = table_at(summary, "mean")
        found: dict[str, Score] = {}
        for key in means:
            dice, share = number_at(means, key, "Dice"), share_of_voxels(means, key)
            if dice is not None and share:
                name = own_name(summary, key)
                found[name] = ("Dice", dice, max(2 * share / (1 + share), _DICE_OF_NOTHING))
        return found

    def build(self, job: SegmentationJob, *, weightless: bool = False) -> SegmentationLesson:
        """Student, and teachers with their method."""
        return SegmentationLesson(job, weightless=weightless)

    def check_side_by_side(self) -> None:
        """They can."""

    def fit_together(
        self,
        jobs: Sequence[SegmentationJob],
        prepare: Callable[[SegmentationJob, Any], None],
        begin: Callable[[SegmentationJob, Any], None],
    ) -> Mapping[str, MedkdError]:
        """See :func:`medkd.training.side_by_side.fit_together`."""
        return fit_together(jobs, prepare, begin)

    def validate(self, job: SegmentationJob, cases: tuple[str, ...]) -> None:
        """Predict the cases in their native grid and score them; without labels, compare them with the teacher's."""
        if cases and not any(job.store.has_label(case) for case in cases):
            write_agreement(job, cases)
            return
        finish_fold(RunFolder.load(job.folder.parent), job.folder, job.store, job.raw, cases, job.device)


train = partial(training_run.train, SegmentationTask())
train_distill = partial(training_run.train_distill, SegmentationTask())
train_side_by_side = partial(several_methods.train_side_by_side, SegmentationTask())
dry_run = partial(training_run.dry_run, SegmentationTask())
dry_run_side_by_side = partial(several_methods.dry_run_side_by_side, SegmentationTask())


def configured(data: SegmentationFold) -> Configuration:
    """The plan's configuration that is trained."""
    return data.plan.configuration(data.configuration)


def rule_of(plan: Plan) -> TrainingRule:
    """The protocol's settings, else nnU-Net's."""
    return plan.protocol.training if plan.protocol else TrainingRule()


def mirror_axes(data: SegmentationFold, teacher: Teacher[TrainedModel] | None) -> tuple[int, ...]:
    """Axes that augmentation and prediction mirror: what the options say, else the plan; none that the teacher was kept
    from, since left may not be right there.

    Raises:
        RunError: an axis was asked for that does not exist, or that the teacher or the protocol does not mirror.
    """
    wanted, rank = data.options.mirror_axes, configured(data).rank
    strange = [axis for axis in wanted or () if axis >= rank]
    if strange:
        raise RunError(
            f"--mirror-axes names axis {strange[0]}, but {data.configuration} has the axes 0 to {rank - 1}; leave it "
            "out."
        )
    if teacher is not None:
        _warn_of_mirroring(data, teacher)
    if wanted is None:
        return _allowed_axes(data, teacher, configured(data).mirrored)[0]
    allowed, because = _allowed_axes(data, teacher, wanted)
    refused = [axis for axis in wanted if axis not in allowed]
    if refused:
        raise RunError(f"--mirror-axes names axis {refused[0]}, but {because}; leave it out.")
    return allowed


def _doubt_parts(model: SeveralTeachers, strict: bool) -> None:
    """A stage that stands beside its cascade is averaged with it, which who named both folders may not have meant."""
    members = [member.model for member in model.members]
    parts = {part.resolve(): whole for whole in members for part in getattr(whole, "parts", ())}
    for member in members:
        whole = parts.get(member.path.resolve())
        if whole is not None:
            doubt(
                f"{member.path} is the first stage of the cascade {whole.path}, which asks it anyway; beside it, its "
                "own coarse predictions are averaged with the cascade's; for the cascade alone leave it out",
                strict=strict,
            )


def _warn_of_mirroring(data: SegmentationFold, teacher: Teacher[TrainedModel]) -> None:
    """A teacher that was mirrored where the student must not be cannot tell apart what differs by side."""
    mirrored = student_axes(data)
    beyond = [str(axis) for axis in teacher.model.describe().mirrored_axes(_patch_axes(data)) if axis not in mirrored]
    if beyond:
        asked = data.options.mirror_axes is not None
        who, how = (option_name("mirror_axes"), "the same option") if asked else ("the plan", "this plan")
        doubt(
            f"the teacher {teacher.model.name} was trained with mirroring along axis {' and '.join(beyond)}, which "
            f"{who} leaves out, so it may not tell structures apart that differ by side only; train a teacher with "
            f"{how}",
            strict=data.options.strict,
        )


def _allowed_axes(
    data: SegmentationFold, teacher: Teacher[TrainedModel] | None, axes: tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
    """Those of the axes that may be mirrored, and why the others may not."""
    rule = rule_of(data.plan).augmentation
    if rule is not None and rule.flip == 0:
        return (), "the plan's protocol mirrors none"
    if teacher is None:
        return axes, ""
    allowed = teacher.model.describe().allowed_axes(_patch_axes(data), axes)
    return allowed, f"the teacher {teacher.model.name} was not mirrored along it"


def _patch_axes(data: SegmentationFold) -> PatchAxes:
    return PatchAxes(data.plan, configured(data).rank)


def _network(data: SegmentationFold, network: str, teacher: Teacher[TrainedModel] | None) -> NetworkSpec:
    options, configuration = data.options, configured(data)
    planned = configuration.architecture(network)
    # a teacher is best on the patch it was trained on: another size changes how much padding it sees
    # (several teachers have none in common)
    known = _patch_alone(data, network) if teacher is None else _patch_of(teacher.model.describe(), configuration)
    known = known or planned.patch_size
    size = fit_patch(network, options.patch_size or known)
    if len(size) != configuration.rank:
        raise RunError(f"--patch-size needs {configuration.rank} values for {data.configuration}, found {len(size)}.")
    return NetworkSpec(
        name=network,
        in_channels=len(data.description.channel_names),
        num_outputs=data.description.labels.num_outputs,
        patch_size=size,
        architecture=planned if network in configuration.architectures else None,
        width_divisor=options.width_divisor,
        deep_supervision=NETWORKS[network].deep_supervision,
    )


def _patch_of(teacher: TrainedModel, configuration: Configuration) -> tuple[int, ...] | None:
    """The teacher's patch; None for a student with a spacing of its own."""
    return teacher.patch_size if teacher.configuration.spacing == configuration.spacing else None


def _patch_alone(data: SegmentationFold, network: str) -> tuple[int, ...] | None:
    """The patch of a protocol that is asked for, of a network that is not planned; a plan that follows the protocol has
    it already.
    """
    configuration, patch = configured(data), rule_of(data.plan).patch_size
    if not data.options.protocol or network in configuration.architectures:
        return None
    return patch if patch is not None and len(patch) == configuration.rank else None


def averages_targets(options: TrainOptions, fold: str, method: str) -> bool:
    """Whether cached targets are means over mirrored copies.

    Raises:
        RunError: the options of the targets do not belong together.
    """
    if options.targets == OUT_OF_FOLD and fold != ALL:
        raise RunError(
            f"--targets {OUT_OF_FOLD} is for a student of fold {ALL}, found fold {fold}, where the folds of a "
            "teacher that may teach have seen all of the student's cases; use --targets cached."
        )
    if options.targets not in STORED_TARGETS:
        if options.targets_tta:
            raise RunError(
                "--targets-tta is for cached targets; add --targets cached, or use the method ensemble, which averages "
                "live ones."
            )
        return False
    return options.targets_tta or any(METHODS[name].averages for name in method_names(method))
