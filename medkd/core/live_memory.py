"""How much memory tensors take at their peak, counted tensor by tensor."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LivePeak(TorchDispatchMode):
    """Highest number of bytes of tensors that were made inside and alive at once.

    It works on any device, also on ``meta``, where nothing is computed. What libraries take for themselves during an
    operation (the work space of a convolution, a caching allocator's reserve) is not seen.

    Attributes:
        alive: bytes alive now.
        highest: the most that was alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.highest = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen and size:
            self._seen.add(key)
            self.alive += size
            self.highest = max(self.highest, self.alive)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size
