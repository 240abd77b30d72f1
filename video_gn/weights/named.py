"""Weights by name: `timm:resnet50_gn.a1h_in1k`, `torchvision:resnet50`, `pytorchvideo:i3d_r50`.

The package of that name fetches them once. They are kept in a cache with their SHA-256, which is checked at every
use: later uses need neither network nor package, and a changed file is noticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from video_gn.errors import CheckpointError
from video_gn.files import hold, remove_temporary, whole_path, write_text

log = logging.getLogger(__name__)

# What a download, or the package that asks for it, raises where there is no network or no such name.
_DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, ImportError)


def cache_directory() -> Path:
    """Directory of named weights: $VIDEO_GN_CACHE, or video_gn in the user's cache directory."""
    if os.environ.get("VIDEO_GN_CACHE"):
        return Path(os.environ["VIDEO_GN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "video_gn"


def find_weights(name: str | os.PathLike[str]) -> Path:
    """The file that a path or a name stands for.

    Args:
        name: Path; or PACKAGE:NAME, optionally with @SHA256 (its first 8 digits or more) that the file must have.

    Returns:
        The path itself, or the file in the cache, whose suffix does not say its format.

    Raises:
        CheckpointError: for an unknown package or name, weights that cannot be fetched, or another hash.
    """
    text = os.fspath(name)
    match = re.fullmatch(r"([A-Za-z_]\w+):([^@]+)(?:@([0-9A-Fa-f]+))?", text)
    if match is None or Path(text).exists():
        return Path(text)
    package, model, wanted = match.groups()
    if package not in FETCHERS:
        raise CheckpointError(
            f"{text}: weights can be named from {', '.join(FETCHERS)}, not {package!r}. For a file, give its path."
        )
    if wanted is not None and not 8 <= len(wanted) <= 64:
        raise CheckpointError(f"{text}: the SHA-256 after @ must have 8 to 64 digits, got {len(wanted)}")
    target = cache_directory() / f"{package}-{re.sub(r'[^A-Za-z0-9._-]', '--', model)}"
    record = target.with_name(f"{target.name}.sha256")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The processes of a launch all ask at once: one fetches, the others wait for it.
        with hold(target.with_name(f".{target.name}.lock"), wait_seconds=math.inf):
            if not (target.is_file() and record.is_file()):
                _fetch(text, package, model, target, record)
            _check(text, target, record, None if wanted is None else wanted.lower())
    except OSError as error:
        raise CheckpointError(
            f"{target.parent}: cannot keep weights ({error}). Set VIDEO_GN_CACHE elsewhere."
        ) from error
    return target


def _fetch(text: str, package: str, model: str, target: Path, record: Path) -> None:
    log.info("%s: fetching into %s", text, target)
    remove_temporary(target.parent, name=target.name)  # of a killed process: the lock is ours
    try:
        with whole_path(target) as part:
            FETCHERS[package](model, str(part))
            # The record first: a kill between the two leaves a record without a file, which is fetched again.
            write_text(record, f"{file_digest(part)}  {target.name}\n")
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{text}: needs the package {error.name!r}. Install it: pip install {package}") from error
    except _DOWNLOAD_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{text}: {package} could not fetch these weights ({reason}). Check the name; without a network, "
            "fetch the file elsewhere and give its path."
        ) from error


def _check(text: str, target: Path, record: Path, wanted: str | None) -> None:
    digest = file_digest(target)
    recorded = record.read_text(encoding="utf-8").split()[:1]
    if recorded != [digest]:
        raise CheckpointError(
            f"{text}: {target} has changed since it was fetched (SHA-256 {digest[:16]}..., recorded "
            f"{''.join(recorded)[:16] or 'nothing'}...). Delete it to fetch it again."
        )
    if wanted is not None and not digest.startswith(wanted):
        raise CheckpointError(f"{text}: the file in the cache has SHA-256 {digest}, not {wanted}. Check the name.")
    log.info("%s: %s, SHA-256 %s", text, target, digest[:16])


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _timm(model: str, target: str) -> None:
    import timm

    net = timm.create_model(model, pretrained=True)
    about: Any = net.pretrained_cfg
    _save(net.state_dict(), target, mean=about["mean"], std=about["std"])


def _torchvision(model: str, target: str) -> None:
    from torchvision.models import get_model_weights

    name, _, tag = model.partition(".")
    # The paper's baseline is trained by the classic recipe, which is V1's; V2's is another.
    weights = get_model_weights(name)[tag or "IMAGENET1K_V1"]
    transforms: Any = weights.transforms()
    if not hasattr(transforms, "mean"):
        raise ValueError(f"{name} is no image classifier")
    _save(weights.get_state_dict(progress=True, check_hash=True), target, mean=transforms.mean, std=transforms.std)


def _pytorchvideo(model: str, target: str) -> None:
    import torch
    from pytorchvideo.models.hub.resnet import checkpoint_paths

    if model not in checkpoint_paths:
        raise ValueError(f"it has {', '.join(checkpoint_paths)}")
    torch.hub.download_url_to_file(checkpoint_paths[model], target)


def _save(state: Mapping[str, Any], target: str, *, mean: Any, std: Any) -> None:
    from safetensors.torch import save_file

    metadata = {"preprocessing": json.dumps({"mean": list(mean), "std": list(std)})}
    save_file({k: v.contiguous() for k, v in state.items()}, target, metadata=metadata)


FETCHERS: dict[str, Callable[[str, str], None]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "pytorchvideo": _pytorchvideo,
}
