"""Keeps the stack on which a process handles its signals, which OpenVINO replaces and may take away."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_IN_USE = 1  # SS_ONSTACK: a handler runs on it just now, so it cannot be replaced


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give the thread the alternate signal stack (``man sigaltstack``) back that it had before.

    OpenVINO's plugin for processors puts a stack of its own there and frees it when it ends. Where two of them do not
    end in reverse order, the second leaves the stack of the first, which is gone: the next signal that Python handles
    (Ctrl-C, or the end of a child process of a data loader) then ends the process by a segmentation fault. OpenVINO
    touches only a stack that is still its own, so what is given back at once stays.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if not before.flags & _IN_USE:
            libc.sigaltstack(ctypes.byref(before), None)
