"""Labels the newest window of a live source until it ends or a signal arrives: a line of json for each window."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_gn.decoding.opening import timeout_seconds
from video_gn.errors import DecodeError, StoppedError
from video_gn.evaluation.results import top_labels
from video_gn.journal import Journal, encode
from video_gn.live.reading import MAX_DELAY_SECONDS, Reader
from video_gn.live.source import Source
from video_gn.live.window import Newest, Window
from video_gn.run.signals import StopFlag
from video_gn.shown import shown_text

if TYPE_CHECKING:
    from video_gn.evaluation.predictor import Predictor

log = logging.getLogger(__name__)

# Without VIDEO_GN_DECODE_TIMEOUT_SECONDS. A file may take a minute, a camera sends all the time; HLS sends a part of
# some 10 seconds at a time.
_LIMIT_SECONDS = 20.0
# Time that a window may take after a signal, as in labelling.
_GRACE_SECONDS = 3.0
_WARNED = ("stalled", "lost", "gap")


def watch(
    source: Source,
    predictor: Predictor,
    *,
    output: Path | None = None,
    every_seconds: float | None = None,
    top_k: int = 5,
    views_per_forward: int = 10,
    quiet: bool = False,
) -> int:
    """Label a live source, see README.md of this folder.

    Args:
        source: From `parse_source`.
        predictor: Network with its clips and crops.
        output: File of json lines to append to.
        every_seconds: Least distance between the starts of two windows; None takes a window's length, so that each
            frame is in one window.
        top_k: Number of labels.
        views_per_forward: Crops that go through the network at a time.
        quiet: Whether standard output gets no lines.

    Returns:
        Exit status: 0 after the end of a pipe; 3 if there was no window, or the source cannot be read; 128 + N after
        signal N.

    Raises:
        ConfigError: the time limit is no number.
        RunError: `output` cannot be written.
    """
    limit = timeout_seconds(unset=_LIMIT_SECONDS)
    newest = Newest(num_frames=predictor.clip.num_frames, stride=predictor.clip.stride, every_seconds=every_seconds)
    reader = Reader(source, newest, clip=predictor.clip, crops=predictor.crops, limit=limit)
    flag, num_windows, status = StopFlag(), 0, 0
    with _writing(output, quiet=quiet) as write:
        try:
            with flag.installed():
                reader.start()
                # Longer than the reader waits for anything: then it hangs in the system.
                while (item := newest.next(2 * limit + MAX_DELAY_SECONDS)) is not None:
                    if isinstance(item, Window):
                        with flag.waiting("window", grace_seconds=_GRACE_SECONDS):
                            scores_PY = predictor.scores(
                                item.frames_PTCHW, video=source.name, views_per_forward=views_per_forward
                            )
                        entry = _entry(item, top_labels(scores_PY.mean(0), predictor.classes, top_k))
                        num_windows += 1
                    else:
                        entry = _event(item, source)
                    with flag.held():
                        write(entry)
            reason = "the source ended" if num_windows else "the source ended before a window was full"
            status = 0 if num_windows else 3
        except StoppedError:
            reason, status = f"stopped by {signal.Signals(flag.number).name}", 128 + flag.number
        except DecodeError as error:
            reason, status = error.reason, 3
        except TimeoutError:
            reason, status = f"the system gave no answer for {2 * limit:g} seconds", 3
        finally:
            reader.stop.set()
        counts = {"windows": num_windows, **newest.close()}
        write({"event": "ended", "at": _iso(time.time()), "reason": reason, **counts})
    told = "".join(f"; {number} {name.replace('_', ' ')}" for name, number in counts.items() if counts["frames_read"])
    log.log(logging.ERROR if status == 3 else logging.INFO, "%s: %s%s", source.name, reason, told)
    return status


def _entry(window: Window, top: list[dict[str, Any]]) -> dict[str, Any]:
    """A window's line."""
    latency = time.monotonic() - window.received
    return {
        "time_seconds": round((window.start_seconds + window.end_seconds) / 2, 3),
        "start_seconds": round(window.start_seconds, 3),
        "end_seconds": round(window.end_seconds, 3),
        "received_at": _iso(time.time() - latency),
        "latency_seconds": round(latency, 3),
        **window.counts,
        "top": top,
    }


def _event(facts: dict[str, Any], source: Source) -> dict[str, Any]:
    """An event's line; it is logged too."""
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if name != "event")
    level = logging.WARNING if facts["event"] in _WARNED else logging.INFO
    log.log(level, "%s: %s (%s)", source.name, facts["event"].replace("_", " "), told)
    return {"event": facts["event"], "at": _iso(time.time()), **facts}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def _writing(output: Path | None, *, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a line to standard output and to a file, whole and at once."""
    with contextlib.ExitStack() as stack:
        journal: Journal | None = None
        if output is not None:
            journal = stack.enter_context(Journal(output, lock=output.with_name(f".{output.name}.lock")))
            deque(journal.resume(), maxlen=0)  # cuts off what a kill has left of a line

        def write(entry: dict[str, Any]) -> None:
            if journal is not None:
                journal.add(entry)
            if not quiet:
                text = encode(entry).decode("utf-8", "backslashreplace")
                sys.stdout.write(shown_text(text) if sys.stdout.isatty() else text)
                sys.stdout.flush()

        yield write
