"""Where the time of a training step goes, by torch.profiler: norms, convolutions, copies, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile

# Kind -> what the outermost event's name holds, forward and backward; the first that fits counts.
KINDS = {
    "norms": ("group_norm", "GroupNorm", "batch_norm", "BatchNorm"),
    "convolutions": ("convolution", "Convolution"),
    "copies": ("copy_", "Copy", "::to", "clone", "Clone", "contiguous"),
}


def profile_step(action: Callable[[], object], *, on_cuda: bool) -> dict[str, float]:
    """Shares of an action's time on its device, in [0, 1]; "milliseconds" is the sum, "copies_in_norms" a count.

    Copies are those outside of norms and convolutions: casts of weights and inputs, mostly.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    action()  # what is only done once does not count
    with profile(activities=activities, acc_events=True) as profiler:
        action()
    events = profiler.events() or []
    roots = [event for event in events if event.cpu_parent is None and str(event.device_type).endswith("CPU")]
    times = dict.fromkeys((*KINDS, "other"), 0.0)
    copies = 0
    for event in _outermost(roots):
        kind = _kind(event.name)
        # With all inside of it, or its own time.
        own = f"{'self_' if kind is None else ''}{'device' if on_cuda else 'cpu'}_time_total"
        times[kind or "other"] += float(getattr(event, own))
        copies += kind == "norms" and _num_copies(event)
    total = sum(times.values()) or 1.0
    shares = {kind: value / total for kind, value in times.items()}
    return {**shares, "milliseconds": total / 1000, "copies_in_norms": copies}


def _kind(name: str) -> str | None:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), None)


def _outermost(events: Iterable[Any]) -> Iterable[Any]:
    """Events of a kind, and those of none that hold them."""
    for event in events:
        yield event
        if _kind(event.name) is None:
            yield from _outermost(event.cpu_children)


def _num_copies(event: Any) -> int:
    return (event.name == "aten::copy_") + sum(_num_copies(child) for child in event.cpu_children)
