"""Label values and regions: the only authority on what a network's output channels mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medkd.core.errors import DataError
from medkd.core.regions import check_order

if TYPE_CHECKING:
    from torch import Tensor  # loaded where tensors are made: commands that read labels only do without torch


_IGNORE = "ignore"
_FEW_THREADS = 2
_MOST = 10_000  # labels of a data set; label maps are int16


@dataclass(frozen=True)
class LabelSpec:
    """The labels of a data set, as nnU-Net's ``dataset.json`` states them.

    Plain labels give softmax outputs, one channel per class, background first. If any entry is a list of values, all
    entries are *regions*: sigmoid outputs, one channel per foreground entry; overlapping is allowed.

    Attributes:
        entries: name → label values, background first, without ``ignore``; plain labels in the order of their values,
            whatever the order in ``dataset.json``; regions in its order, which ``order`` refers to.
        regions: whether outputs are sigmoid regions.
        order: for regions, the label value painted for each region, in painting order (``regions_class_order``).
        ignore: the label value of voxels without annotation, or None.

    >>> spec = LabelSpec.from_names(["liver", "tumour"])
    >>> spec.num_outputs, spec.foreground
    (3, (('liver', (1,)), ('tumour', (2,))))
    >>> import torch
    >>> logits = torch.tensor([[0.0, 5.0], [9.0, 1.0], [1.0, 2.0]])  # background, liver, tumour at two voxels
    >>> spec.decode(logits).tolist()
    [1, 0]
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]
    regions: bool = False
    order: tuple[int, ...] = ()
    ignore: int | None = None

    @classmethod
    def from_names(cls, names: list[str] | tuple[str, ...]) -> LabelSpec:
        """Plain labels 1..n with these foreground names.

        Raises:
            DataError: a name stands twice, ``background``, which has the value 0, included.
        """
        entries = [("background", (0,))]
        for value, name in enumerate(names, start=1):
            if name in dict(entries):
                raise DataError(f"Each label needs a name of its own, found '{name:.60}' twice; rename one.")
            entries.append((name, (value,)))
        return cls(tuple(entries))

    @classmethod
    def from_json(cls, labels: Any, order: Any, where: str) -> LabelSpec:
        """Read the ``labels`` and ``regions_class_order`` of a ``dataset.json``; ``where`` names the file in error
        texts.

        Raises:
            DataError: these keys are not of the form that nnU-Net v2 describes, background is not 0, values are not
                consecutive, ``ignore`` is not the largest value, or a region order is missing, of the wrong length, or
                paints a perfect prediction wrongly (:func:`medkd.core.regions.check_order`).
        """
        read = _read_labels(labels, where)
        ignore = read.pop(_IGNORE, (None,))
        if len(ignore) > 1:
            raise DataError(f"{where}: label 'ignore' must be one integer, found {list(ignore)}.")
        regions = any(len(values) > 1 for values in read.values())
        entries = _in_order(read, regions)
        if not entries or entries[0][1] != (0,):
            raise DataError(f'{where}: no label has the value 0; name the background, for example "background": 0.')
        if len(entries) < 2:
            raise DataError(f"{where}: only the background is named; at least one structure is needed.")
        if not isinstance(order, (list, tuple, type(None))):
            raise DataError(f"{where}: 'regions_class_order' must be a list of integers, found {order!r:.200}.")
        painted = _values(order, f"{where}: 'regions_class_order'") if regions and order else ()
        spec = cls(entries, regions, painted, ignore[0])
        spec._validate(where)
        return spec

    def _validate(self, where: str) -> None:
        present = self._present()
        if present != list(range(len(present))):
            raise DataError(f"{where}: label values must be consecutive from 0, found {present!s:.200}; renumber.")
        behind = present[-1] + 1
        if self.ignore is not None and self.ignore != behind:
            raise DataError(f"{where}: 'ignore' must be the largest label plus one ({behind}), found {self.ignore}.")
        if self.regions:
            self._validate_regions(where)
        elif [values[0] for _, values in self.entries] != present:
            raise DataError(
                f"{where}: plain labels must have a value each of their own, found {self.to_json()['labels']}."
            )

    def _validate_regions(self, where: str) -> None:
        if len(self.order) != len(self.foreground):
            raise DataError(
                f"{where}: regions need 'regions_class_order', one label per region ({len(self.foreground)}), found "
                f"{list(self.order)}."
            )
        check_order(self.foreground, self.order, where)

    def _present(self) -> list[int]:
        """All label values but ``ignore``, in order."""
        present: set[int] = set()
        for _, values in self.entries:
            present.update(values)
        return sorted(present)

    def to_json(self) -> dict[str, Any]:
        """The keys ``labels`` and, for regions, ``regions_class_order`` of ``dataset.json``."""
        labels: dict[str, Any] = {}
        for name, values in self.entries:
            labels[name] = values[0] if len(values) == 1 else list(values)
        if self.ignore is not None:
            labels["ignore"] = self.ignore
        data: dict[str, Any] = {"labels": labels}
        if self.regions:
            data["regions_class_order"] = list(self.order)
        return data

    @property
    def foreground(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and label values of each evaluated structure (label or region), background excluded."""
        return self.entries[1:]

    @property
    def num_outputs(self) -> int:
        """Output channels of a network: classes with background, or regions."""
        return len(self.entries) - 1 if self.regions else len(self.entries)

    @property
    def values(self) -> tuple[int, ...]:
        """Every label value that a label map may hold, ``ignore`` included."""
        present = self._present()
        if self.ignore is not None:
            present.append(self.ignore)
        return tuple(present)

    def encode(self, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn label values into training targets.

        Args:
            labels: integer tensor ``(B, 1, *spatial)``; negative values (outside the body mask) count as background.

        Returns:
            Plain labels: class indices ``(B, 1, *spatial)``, int64; regions: multi-hot ``(B, K, *spatial)``, float32.
            And the mask of annotated voxels ``(B, 1, *spatial)``, bool, or None where there is no ``ignore`` label.
        """
        import torch

        labels = labels.clamp(min=0)
        valid = None
        if self.ignore is not None:
            valid = labels != self.ignore
            labels = labels.masked_fill(~valid, 0)
        if not self.regions:
            return labels.long(), valid
        hot = []
        for _, values in self.foreground:
            wanted = torch.tensor(values, device=labels.device, dtype=labels.dtype)
            hot.append(torch.isin(labels, wanted))
        return torch.cat(hot, 1).float(), valid

    def decode(self, logits: Tensor) -> Tensor:
        """Turn logits ``(K, *spatial)`` into label values ``(*spatial)``, uint8 or int16.

        Plain labels: the arg-max. Regions: every region with a logit above 0 (probability above 0.5) paints its label
        in the stated order, later ones over earlier ones.
        """
        import torch

        dtype = torch.uint8 if self.values[-1] < 256 else torch.int16
        if not self.regions:
            return _first_highest(logits).to(dtype)
        result = torch.zeros(logits.shape[1:], dtype=dtype, device=logits.device)
        for channel, value in enumerate(self.order):
            result[logits[channel] > 0] = value
        return result

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Softmax over ``dim`` for plain labels, sigmoid for regions."""
        return logits.sigmoid() if self.regions else logits.softmax(dim)


def first_highest(scores: np.ndarray) -> np.ndarray:
    """``scores.argmax(0)`` by its parts, each of which is vectorised.

    Args:
        scores: ``(K, *spatial)``.

    Returns:
        ``(*spatial)``, int16 or larger; of up to 255 scores 0 where one is not a number.
    """
    count = len(scores)
    if count > 255:
        return np.asarray(scores.argmax(0))
    weights = np.arange(count, 0, -1, dtype=np.uint8).reshape(-1, *[1] * (scores.ndim - 1))
    highest = np.multiply((scores == scores.max(0)).view(np.uint8), weights).max(0)
    # the remainder: nothing equals what is not a number
    return np.asarray((count - highest.astype(np.int16)) % count)


def _first_highest(logits: Tensor) -> Tensor:
    """``logits.argmax(0)``; on a CPU by its parts, each of which is vectorised, in a tenth of the time.

    Of few threads by NumPy, on one of them: its comparison takes a quarter of torch's time.
    """
    import torch

    count = len(logits)
    if logits.device.type != "cpu" or count > 255:
        return logits.argmax(0)
    if torch.get_num_threads() <= _FEW_THREADS and logits.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(first_highest(logits.detach().numpy()))
    weights = torch.arange(count, 0, -1, dtype=torch.uint8).view(-1, *[1] * (logits.ndim - 1))
    highest = (logits == logits.amax(0)).view(torch.uint8).mul_(weights).amax(0)
    return (count - highest.to(torch.int16)) % count


def _read_labels(labels: Any, where: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(labels, Mapping):
        raise DataError(f"{where}: 'labels' must be an object from names to values, found {labels!r:.200}.")
    if len(labels) > _MOST:
        raise DataError(f"{where}: expected at most {_MOST} labels, found {len(labels)}; correct 'labels'.")
    read = {}
    for name, value in labels.items():
        values = _values(value, f"{where}: label '{name}'")
        once = tuple(dict.fromkeys(values))
        if len(once) == 1 < len(values):
            raise DataError(f"{where}: label '{name}' must hold each value once, found {list(values)}; correct it.")
        read[str(name)] = once
    return read


def _in_order(read: dict[str, tuple[int, ...]], regions: bool) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Background first, then as in nnU-Net: plain labels by value; regions, which have an order of their own, as in
    the file.
    """

    def place(entry: tuple[str, tuple[int, ...]]) -> tuple[bool, tuple[int, ...]]:
        _, values = entry
        return values != (0,), () if regions else values

    return tuple(sorted(read.items(), key=place))


def _values(value: Any, what: str) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values or not all(map(_is_integer, values)):
        raise DataError(f"{what} must be an integer or a list of integers, found {value!r:.200}.")
    return values


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
