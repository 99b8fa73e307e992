"""What the commands of a recipe would not understand, asked of their own parsers before one of them begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medkd.core.plugins import Lazy
from medkd.core.serial import nearest
from medkd.reproduction.graph import Node, Tuned
from medkd.reproduction.recipe import Recipe
from medkd.reproduction.words import flag

_configurations = Lazy("medkd.preprocessing.planner:CONFIGURATIONS")
_misunderstood = Lazy("medkd.cli.understood:misunderstood")
_ALONE, _TAUGHT = "train", "train_distill"
_Settings = tuple[str, Mapping[str, Any]]


def refused_words(recipe: Recipe, nodes: Mapping[str, Node], planned: bool) -> list[str]:
    """One sentence per setting that a command would refuse, with where in the recipe it stands.

    Args:
        recipe: of which the nodes are.
        nodes: its commands.
        planned: whether the data set has a plan, to which configurations of one's own may have been added.
    """
    found: dict[str, str] = {} if planned else dict(_unplanned(recipe))
    for node in nodes.values():
        words = [
            word if isinstance(word, str) else f"<{word.node}>" for word in node.words if not isinstance(word, Tuned)
        ]
        wrong = _misunderstood(words)
        if wrong is None:
            continue
        where, option = _place(recipe, node, wrong.words)
        reason = wrong.reason or _why_unknown(node, option)
        found.setdefault(where, f"{where}: {reason}.")
    return list(found.values())


def _unplanned(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Configurations that no new plan has; one that is taken from a model from elsewhere is called as there."""
    asked, known = recipe.dataset.prepare.get("configuration"), _configurations.load()
    if recipe.dataset.prepare.get("like") is not None or asked is None:
        return
    for name in asked if isinstance(asked, (list, tuple)) else [asked]:
        if name not in known:
            where = "dataset.prepare.configuration"
            yield (
                where,
                f"{where}: a new plan has no '{name}'.{nearest(str(name), known)} There are: {', '.join(known)}.",
            )


def _why_unknown(node: Node, option: list[str]) -> str:
    """A word that a command does not have; options of a teacher's are known to trainings with one."""
    command, shown = str(node.words[0]), " ".join(option)
    taught = command == _ALONE and option and _misunderstood([_TAUGHT, "d", "t", "s", "m", "0", *option]) is None
    if taught:
        return (
            f"{option[0]} is a teacher's matter, and '{node.name}' is trained without one; set it in the 'settings' of "
            "methods that have a teacher"
        )
    return f"medkd_{command} (run '{node.name}') does not know {shown or 'one of its words'}; leave it out"


def _place(recipe: Recipe, node: Node, words: tuple[str, ...]) -> tuple[str, list[str]]:
    """Where the recipe says a word, and the whole option there."""
    for where, settings in _settings_of(recipe, node):
        for name, value in settings.items():
            option = flag(name, value)
            if set(option) & set(words):
                return f"{where}.{name}" if where else name, option
    return node.name, list(words)


def _settings_of(recipe: Recipe, node: Node) -> Iterator[_Settings]:
    """What a command was told, the narrower first."""
    if node.kind == "prepare":
        yield "dataset.prepare", recipe.dataset.prepare
        yield "", {"protocol": recipe.protocol}
        return
    method = recipe.teachers[str(node.teacher)].method if node.kind == "teacher" else node.method
    if method is not None:
        yield f"methods.{method}.settings", recipe.methods[method].settings
    if node.student is not None:
        yield f"students.{node.student}.settings", recipe.students[node.student].settings
    if node.teacher is not None:
        yield f"teachers.{node.teacher}.settings", recipe.teachers[node.teacher].settings
    yield "settings", recipe.settings
