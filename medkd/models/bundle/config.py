"""The files of a MONAI bundle as plain values; references are followed, expressions refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medkd.core.errors import RunError
from medkd.core.files import read_json
from medkd.core.numbers import whole_number
from medkd.models.limits import MOST_VALUES, leaves

METADATA = Path("configs") / "metadata.json"
INFERENCE = tuple(Path("configs") / f"inference.{ending}" for ending in ("json", "yaml", "yml"))
_MOST_REFERENCES = 20  # one after the other
_MOST_BRACKETS = 200  # inside each other, in YAML
DEEPEST = 50  # lists, objects and references inside each other


class Config:
    """Plain values of a bundle's file; where they are refused, the text says which ``keys`` of a ``teacher.json`` stand
    for them.
    """

    def __init__(self, content: Any, file: Path, keys: tuple[str, ...] = ()) -> None:
        self.content, self.file = content, file
        self._values = 0
        named = f"{', '.join(keys[:-1])} and {keys[-1]}" if len(keys) > 1 else "".join(keys)
        self.remedy = f"state {named} in a teacher.json beside the bundle, see docs/nnunet-teacher.md"

    def stating(self, *keys: str) -> Config:
        """The same values, read for other keys of a ``teacher.json``."""
        return Config(self.content, self.file, keys)

    def get(self, key: str) -> Any:
        """The value at ``a::b::0``, references followed.

        Raises:
            RunError: it is missing or an expression.
        """
        return self.plain(self._find(key), key)

    def plain(self, value: Any, key: str, depth: int = 0) -> Any:
        """A value without references and expressions, at any depth.

        Raises:
            RunError: it holds an expression, or references that lead nowhere or to themselves.
        """
        self.count(key, depth)
        value = self.followed(value)
        if isinstance(value, str) and value.startswith(("$", "@", "%")):
            raise RunError(
                f"{self.file}: '{key}' is the expression '{value[:80]}', which medkd does not run; {self.remedy}."
            )
        if isinstance(value, Mapping):
            return {k: self.plain(v, f"{key}::{k}", depth + 1) for k, v in value.items()}
        return (
            [self.plain(v, f"{key}::{i}", depth + 1) for i, v in enumerate(value)] if isinstance(value, list) else value
        )

    def count(self, key: str, depth: int) -> None:
        """Note that one more value is looked at, so that references to references come to an end.

        Raises:
            RunError: it is nested too deeply, or there were too many.
        """
        self._values += 1
        if depth > DEEPEST:
            raise RunError(
                f"{self.file}: '{key[:80]}' refers to itself or is nested more than {DEEPEST} levels deep; "
                f"{self.remedy}."
            )
        if self._values > MOST_VALUES:
            raise RunError(
                f"{self.file}: '{key[:80]}' leads through references to more than {MOST_VALUES} values; {self.remedy}."
            )

    def followed(self, value: Any) -> Any:
        """What a reference, or a short chain of them, leads to; expressions and other values as they are.

        Raises:
            RunError: it leads nowhere.
        """
        for _ in range(_MOST_REFERENCES):
            if not (isinstance(value, str) and value.startswith("@")):
                break
            value = self._find(value[1:].replace("#", "::"))
        return value

    def entries(self, key: str) -> list[tuple[str, Mapping[str, Any]]]:
        """The objects of a list with their keys; what they hold may be expressions still.

        Raises:
            RunError: it is not a list of objects.
        """
        values = self._find(key)
        if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
            raise RunError(
                f"{self.file}: '{key}' must be a list of transforms, found {str(values)[:80]}; {self.remedy}."
            )
        return [(f"{key}::{i}", value) for i, value in enumerate(values)]

    def numbers(self, key: str) -> list[float]:
        """A list of positive numbers.

        Raises:
            RunError: it is none.
        """
        values = self.get(key)
        if (
            not isinstance(values, list)
            or not values
            or any(isinstance(v, bool) or not isinstance(v, (int, float)) or v <= 0 for v in values)
        ):
            raise RunError(f"{self.file}: '{key}' must list positive numbers, found {str(values)[:80]}; {self.remedy}.")
        return values

    def _find(self, key: str) -> Any:
        value = self.content
        for part in key.split("::"):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and (whole_number(part) or 0) < len(value) and whole_number(part) is not None:
                value = value[int(part)]
            else:
                raise RunError(f"{self.file}: '{key}' is missing; {self.remedy}.")
        return value


def read_file(file: Path) -> Any:
    """The plain values of a bundle's JSON or YAML.

    Raises:
        DataError: it is not JSON.
        RunError: it is not plain YAML.
    """
    if file.suffix == ".json":
        return read_json(file)
    try:
        import yaml
    except ImportError as error:
        raise RunError(
            f"{file} is YAML, which needs PyYAML; install it (pip install pyyaml), or save the file as JSON."
        ) from error
    try:
        text = file.read_text(encoding="utf-8")
        _refuse_depth(text, file)
        _refuse_merges(yaml.scan(text), file)
        content = yaml.safe_load(text)  # plain values only: tags that would make objects are errors
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise RunError(
            f"{file} is not plain YAML ({' '.join(str(error).split())[:160]}); mend it, or save it as JSON."
        ) from error
    return _refuse_expansion(content, file)


def _refuse_depth(text: str, file: Path) -> None:
    """Brackets in brackets cost the square of their number while they are read."""
    depth = 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if depth > _MOST_BRACKETS:
            raise RunError(f"{file} is nested more than {_MOST_BRACKETS} times; mend it, or save it as JSON.")


def _refuse_merges(tokens: Iterable[Any], file: Path) -> None:
    """Merge keys copy what aliases stand for while the file is read, so that a few lines can fill the memory."""
    for token in tokens:
        if getattr(token, "value", None) == "<<" and getattr(token, "plain", False):
            raise RunError(f"{file}: the merge key '<<' is not read; write the merged values out.")


def _refuse_expansion(content: Any, file: Path) -> Any:
    """The content, unless aliases stand for more values than a configuration can have."""
    for count, _ in enumerate(leaves(content)):
        if count > 10 * MOST_VALUES:
            raise RunError(
                f"{file} stands for more than {10 * MOST_VALUES} values, for example by aliases (*name); write the "
                "values out that are needed."
            )
    return content


def short(target: str) -> str:
    """The class of a dotted path that lies in MONAI, or the path itself."""
    return target.rpartition(".")[2] if "." not in target or target.startswith("monai.") else target


def disabled(config: Config, entry: Mapping[str, Any], key: str) -> bool:
    """Whether an object of a configuration is switched off."""
    return "_disabled_" in entry and config.plain(entry["_disabled_"], f"{key}::_disabled_") in (True, "true")
