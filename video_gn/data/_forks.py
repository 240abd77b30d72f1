"""Forked processes that have really begun.

Before 3.11.10, Python takes a lock in the child that a thread of its parent may have held when it was forked, such as
one of gloo's that is done with a tensor; the child then waits for ever inside of `os.fork`, and its loader with it.
Source: CPython's issue 112275.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext, ForkContext, ForkProcess
from typing import Any

from video_gn.errors import RunError

log = logging.getLogger(__name__)

# A child needs milliseconds, on a machine with too much to do a second.
_PATIENCE_SECONDS = 10.0
_TRIES = 5
# The first versions without that lock: 3.12 never had it.
_MENDED = (3, 11, 10)


class BegunProcess(ForkProcess):
    """A process that is forked anew where it does not begin."""

    _begun = -1

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        for _ in range(_TRIES):
            ready, process_obj._begun = os.pipe()
            try:
                try:
                    popen = ForkProcess._Popen(process_obj)
                finally:
                    os.close(process_obj._begun)
                if wait([ready], timeout=_PATIENCE_SECONDS):
                    return popen
            finally:
                os.close(ready)
            log.warning("a loading process did not begin in %g s; another one is started", _PATIENCE_SECONDS)
            popen.kill()
            popen.wait()
        raise RunError(
            f"no loading process has begun in {_TRIES} tries of {_PATIENCE_SECONDS:g} s. Is the machine that busy? "
            "Take fewer data.loader.num_workers, or Python 3.12 or newer."
        )

    def run(self) -> None:
        """Say that it has begun; then what it was started for."""
        os.write(self._begun, b"\0")
        os.close(self._begun)
        super().run()


class _BegunContext(ForkContext):
    Process = BegunProcess


def fork_context() -> BaseContext | None:
    """How to fork on this Python; None where there is no forking."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return None
    return multiprocessing.get_context("fork") if sys.version_info >= _MENDED else _BegunContext()
