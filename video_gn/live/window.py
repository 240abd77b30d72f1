"""The newest window of a stream, between the thread that reads frames and the one that scores them.

A clip has T frames, S of the network's frames apart. The stream's clock is divided into steps of S / rate seconds, and
the first frame of each step is kept, cropped; the T newest ones are the newest window.

    S = 2:   frames    0   1   2   3   4   5   6          a step begins half a frame early, so that
             steps    [0     ) [1     ) [2     ) [3       times that are rounded fall into their own

A step without a frame shows the frame before, as a player would. Nothing is queued: a step that leaves without having
been in a window is counted.

Shape letters: P crops, T frames, H, W, C channels.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from video_gn.timelines.windows import longest_step


@dataclass
class _Step:
    index: int
    crops_PHWC: torch.Tensor  # uint8
    received: float
    num_frames: int = 1
    is_taken: bool = False


@dataclass(frozen=True)
class Window:
    """T frames.

    Args:
        frames_PTCHW: uint8 crops.
        start_seconds: Start on the stream's clock.
        end_seconds: End, T S / rate later.
        received: When its last frame came, by time.monotonic.
        counts: As `Newest.counts`, at that moment.
    """

    frames_PTCHW: torch.Tensor
    start_seconds: float
    end_seconds: float
    received: float
    counts: dict[str, int]


class Newest:
    """Takes frames and events from the reading thread, and gives events and the newest window to another.

    Args:
        num_frames: T.
        stride: S.
        every_seconds: Least distance between the starts of two windows; None takes a window's length.
    """

    def __init__(self, *, num_frames: int, stride: int, every_seconds: float | None = None) -> None:
        self.frames_read = self.frames_skipped = self.frames_damaged = 0
        self._num_frames, self._stride, self._every = num_frames, stride, every_seconds
        self._changed = threading.Condition()
        self._events: deque[dict[str, Any]] = deque()
        self._steps: deque[_Step] = deque()
        self._origin = self._last_seconds = 0.0  # time of step 0, and of the last frame
        self._step_seconds = self._longest_step = math.inf
        self._last_start: int | None = None  # step with which the last window began
        self._is_cut = False  # no frame follows soon: what is left is a window, whatever its distance to the last one
        self._end: BaseException | None = None

    # ---- of the reading thread

    def start(self, rate: float, target_fps: float | None = None) -> None:
        """Begin with the frames of a stream of a rate; `target_fps` is what the stride counts in, else that rate is."""
        self._step_seconds = self._stride / (target_fps or rate)
        self._longest_step = longest_step(self._num_frames * self._step_seconds, 1 / rate)
        self._begin()

    def _begin(self) -> None:
        with self._changed:
            self._drop(len(self._steps))
            self._last_start, self._is_cut = None, False

    def add(self, seconds: float, received: float, crop: Callable[[], torch.Tensor]) -> None:
        """Add the stream's next frame: its time on the stream's clock, and its crops (P, H, W, C) if they are needed.

        `crop` is called only for the first frame of a step.
        """
        self.frames_read += 1
        if self._steps and not 0 <= seconds - self._last_seconds <= self._longest_step:
            self.tell("gap", from_seconds=round(self._last_seconds, 3), to_seconds=round(seconds, 3))
            self._begin()
        self._last_seconds = seconds
        if not self._steps:
            self._origin = seconds
        index = math.floor((seconds - self._origin) / self._step_seconds + 0.5 / self._stride)
        if self._steps and index <= self._steps[-1].index:
            self._steps[-1].num_frames += 1
            return
        crops_PHWC = crop()
        with self._changed:
            if self._steps and self._steps[-1].crops_PHWC.shape != crops_PHWC.shape:
                self._drop(len(self._steps))
            if self._steps:
                last = self._steps[-1]
                for missing in range(max(last.index + 1, index - self._num_frames), index):
                    self._steps.append(_Step(missing, last.crops_PHWC, last.received, num_frames=0))
            self._steps.append(_Step(index, crops_PHWC, received))
            self._drop(len(self._steps) - self._num_frames)
            self._changed.notify()

    def _drop(self, number: int) -> None:
        for _ in range(number):
            step = self._steps.popleft()
            self.frames_skipped += 0 if step.is_taken else step.num_frames

    def tell(self, event: str, *, is_cut: bool = False, **facts: Any) -> None:
        """Add an event; `is_cut` says that the stream has ended or stalled, and that its last frames are a window."""
        with self._changed:
            self._events.append({"event": event, **facts})
            self._is_cut = self._is_cut or is_cut
            self._changed.notify()

    def finish(self, error: BaseException | None = None) -> None:
        """No frame follows; `error` is raised by `next` after all else."""
        with self._changed:
            self._is_cut, self._end = True, error or StopIteration()
            self._changed.notify()

    # ---- of the other

    def counts(self) -> dict[str, int]:
        """Frames so far: all; those that left without having been in a window; damaged or not decoded."""
        return {name: getattr(self, name) for name in ("frames_read", "frames_skipped", "frames_damaged")}

    def close(self) -> dict[str, int]:
        """The counts at the end: what waits for a window is in none."""
        with self._changed:
            self._drop(len(self._steps))
            return self.counts()

    def next(self, limit: float) -> dict[str, Any] | Window | None:
        """Wait for the next event or window; None after the end.

        Raises:
            TimeoutError: the reading thread gave no sign of life for so many seconds.
        """
        with self._changed:
            while True:
                if self._events:
                    return self._events.popleft()
                if (window := self._take()) is not None:
                    return window
                if isinstance(self._end, StopIteration):
                    return None
                if self._end is not None:
                    raise self._end
                if not self._changed.wait(limit):
                    raise TimeoutError

    def _take(self) -> Window | None:
        if len(self._steps) < self._num_frames or self._steps[-1].is_taken:
            return None
        first, last = self._steps[0], self._steps[-1]
        every = self._num_frames if self._every is None else self._every / self._step_seconds
        # Half a frame of rounding, as for the steps.
        is_early = self._last_start is not None and first.index - self._last_start < every - 0.5 / self._stride
        if is_early and not self._is_cut:
            return None
        self._last_start = first.index
        for step in self._steps:
            step.is_taken = True
        start = self._origin + first.index * self._step_seconds
        return Window(
            torch.stack([step.crops_PHWC for step in self._steps], 1).permute(0, 1, 4, 2, 3),
            start_seconds=start,
            end_seconds=start + self._num_frames * self._step_seconds,
            received=last.received,
            counts=self.counts(),
        )
