"""Weights by name: `timm:resnet50_gn.a1h_in1k`, `torchvision:resnet50`, `pytorchvideo:i3d_r50`, `hf:OWNER/NAME`.

The package of that name fetches them once. They are kept in a cache with their SHA-256, which is checked at every
use: later uses need neither network nor package, and a changed file is noticed.

Of a repository of the Hugging Face Hub, one file is fetched: safetensors, into that hub's own cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from video_gn.checks import nearest
from video_gn.errors import CheckpointError, ConfigError
from video_gn.files import hold, remove_temporary, whole_path, write_text

log = logging.getLogger(__name__)

# Names that a network of this package starts from, by what they may be asked for without the package.
_OFTEN_MEANT = {
    "resnet50": "torchvision:resnet50",
    "resnet101": "torchvision:resnet101",
    "resnet152": "torchvision:resnet152",
    "resnet50_gn": "timm:resnet50_gn.a1h_in1k",
    "i3d_r50": "pytorchvideo:i3d_r50",
}
# The weights in a repository of the Hugging Face Hub, or in a directory that `video-gn hub save` writes.
MODEL_FILE = "model.safetensors"
# A server that says nothing for so long is not waited for.
_PATIENCE_SECONDS = 15.0
# What a download, or the package that asks for it, raises where there is no network or no such name.
_DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, ImportError)


def cache_directory() -> Path:
    """Directory of named weights: $VIDEO_GN_CACHE, or video_gn in the user's cache directory."""
    if os.environ.get("VIDEO_GN_CACHE"):
        return Path(os.environ["VIDEO_GN_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "video_gn"
    except RuntimeError as error:  # no HOME, and a user that the system does not know
        raise CheckpointError(
            "weights by name are kept in a cache directory, got no HOME. Set VIDEO_GN_CACHE."
        ) from error


def find_weights(name: str | os.PathLike[str]) -> Path:
    """The file that a path or a name stands for.

    Args:
        name: Path; or PACKAGE:NAME, optionally with @SHA256 (its first 8 digits or more) that the file must have; or
            hf:OWNER/NAME of the Hugging Face Hub, optionally with @REVISION (branch, tag or commit).

    Returns:
        The path itself, or the file in the cache, whose suffix does not say its format.

    Raises:
        CheckpointError: for an unknown package or name, weights that cannot be fetched, or another hash. Without a
            network it comes within some seconds, and says which file to fetch elsewhere.
    """
    text = os.fspath(name)
    if text.startswith("hf:") and not Path(text).exists():
        return _from_hub(text)
    match = re.fullmatch(r"([A-Za-z_]\w+):([^@]+)(?:@([0-9A-Fa-f]+))?", text)
    if match is None or Path(text).exists():
        if not Path(text).exists() and Path(text).name == text:
            meant = [_OFTEN_MEANT[name] for name in nearest(Path(text).stem, _OFTEN_MEANT)]
            if meant:
                raise CheckpointError(f"{text}: there is no such file. Did you mean {' or '.join(meant)}?")
        return Path(text)
    package, model, wanted = match.groups()
    if package not in FETCHERS:
        raise CheckpointError(
            f"{text}: weights can be named from {', '.join(FETCHERS)} and hf, not {package!r}. For a file, give its "
            "path."
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
        with whole_path(target) as part, _timeout(_PATIENCE_SECONDS):
            FETCHERS[package](model, str(part))
            # The record first: a kill between the two leaves a record without a file, which is fetched again.
            write_text(record, f"{file_digest(part)}  {target.name}\n")
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{text}: needs the package {error.name!r}. Install it: pip install {package}") from error
    except _DOWNLOAD_ERRORS as error:
        reason = (str(getattr(error, "reason", error)).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{text}: {package} could not fetch these weights ({reason.rstrip('.')}). {_advice(package, model)}"
        ) from error


def _advice(package: str, model: str) -> str:
    """What to do about weights that could not be fetched."""
    address_of, names_of = _KNOWN[package]
    try:
        address = address_of(model)
    except _DOWNLOAD_ERRORS:
        near = " or ".join(f"{package}:{name}" for name in nearest(model.partition(".")[0], names_of()))
        return (
            f"{f'Did you mean {near}?' if near else 'Check the name.'} Without a network, fetch the file elsewhere and "
            "give its path."
        )
    return (
        f"Without a network, download {address} elsewhere, copy it here, and give its path instead of the name; "
        "--model.weights null trains from scratch."
    )


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Bound each wait for a server inside it: torch's downloads set no limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def unreachable(address: str) -> str | None:
    """Why the server of an address cannot be reached; None if it answers, whatever it says, or if that is unknown."""
    if any(proxy.startswith("socks") for proxy in urllib.request.getproxies().values()):
        return None  # urllib would not take this way
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return None  # other libraries may know other certificates
        return f"{urllib.request.Request(address).host} cannot be reached: {getattr(reason, 'strerror', 0) or reason}"
    return None


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


# ---- the Hugging Face Hub ------------------------------------------------------------------------

_REPOSITORY = r"(?a:\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?)"


def check_repository(repo: str) -> None:
    """Raise ConfigError unless a name is that of a repository."""
    if not re.fullmatch(_REPOSITORY, repo):
        raise ConfigError(f"the repository must be OWNER/NAME, got {repo!r}. Name one of your own.")


@contextlib.contextmanager
def naming_hub_errors(name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises inside it into a `CheckpointError` of one line with the repository's name."""
    try:
        from huggingface_hub import constants, errors
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{name}: needs the package {error.name!r}. Install it: pip install 'video-gn[hub]'"
        ) from error
    log_in = "log in (hf auth login), or set HF_TOKEN"
    # In this order: the first is a kind of the second.
    known: dict[type[Exception], str] = {
        errors.GatedRepoError: f"is gated. Ask for access on its page, then {log_in}.",
        errors.RepositoryNotFoundError: f"{constants.ENDPOINT} has no such repository, or it is private. Check the "
        f"name; for a private one {log_in}.",
        errors.RevisionNotFoundError: "has no such revision. Check what is after @.",
        errors.RemoteEntryNotFoundError: f"has no {MODEL_FILE}: it is no model of `video-gn hub push`. Name another.",
        errors.OfflineModeIsEnabled: "cannot be reached while HF_HUB_OFFLINE is set. Unset it.",
    }
    # Its HTTP library's own errors, whichever that is, and those of its second way to fetch files.
    others = (getattr(errors, name, OSError) for name in ("HTTPError", "XetDownloadError"))
    try:
        yield
    except (OSError, ValueError, RuntimeError, *others) as error:
        what = next((words for kind, words in known.items() if isinstance(error, kind)), None)
        if what is None:
            response = getattr(error, "response", None)
            if response is not None and response.status_code in (401, 403):
                what = (
                    f"{constants.ENDPOINT} does not allow it ({response.status_code}). To use another token, {log_in}."
                )
            else:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                what = f"{constants.ENDPOINT} failed ({reason.rstrip('.')}). Try again later."
        raise CheckpointError(f"{name}: {what}") from error


def _from_hub(text: str) -> Path:
    """The weights of a repository, in huggingface_hub's cache: of all its files this one alone is fetched."""
    match = re.fullmatch(rf"hf:({_REPOSITORY})(?:@((?!.*\.\.)[\w./-]+))?", text)
    if match is None:
        raise CheckpointError(f"{text}: a repository must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION. Check the name.")
    with naming_hub_errors(text):
        from huggingface_hub import constants, errors, hf_hub_download

        # Without a network it would ask six times, half a minute in all.
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
        try:
            path = Path(hf_hub_download(match[1], MODEL_FILE, revision=match[2], local_files_only=reason is not None))
        except errors.LocalEntryNotFoundError as error:
            if reason is None:
                raise (error.__cause__ or error) from None  # what the hub has answered
            raise CheckpointError(f"{text}: is not in the cache of huggingface_hub, and {reason}.") from error
        with path.open("rb") as file:
            if file.read(9)[8:] != b"{":  # it may be a pickle
                raise CheckpointError(
                    f"{text}: its {MODEL_FILE} is of another format, so it is not read. Name another."
                )
    if reason is not None:
        log.warning("%s: taken from the cache, since %s", text, reason)
    log.info("%s: %s", text, path)
    return path


# ---- the packages --------------------------------------------------------------------------------


def _timm(model: str, target: str) -> None:
    import timm
    from huggingface_hub import constants

    # Its hub asks six times for each of two files, a minute in all. Its own cache is read without a network too.
    reason = unreachable(_timm_address(model))
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        net = timm.create_model(model, pretrained=True)
    except _DOWNLOAD_ERRORS as error:
        raise error if reason is None else ConnectionError(reason) from error
    finally:
        constants.HF_HUB_OFFLINE = before
    about: Any = net.pretrained_cfg
    _save(net.state_dict(), target, mean=about["mean"], std=about["std"])


def _timm_address(model: str) -> str:
    import timm
    from huggingface_hub import constants

    about: Any = timm.models.get_pretrained_cfg(model, allow_unregistered=False)
    if not about.hf_hub_id:
        return str(about.url)
    return f"{constants.ENDPOINT}/{about.hf_hub_id}/resolve/main/{about.hf_hub_filename or 'model.safetensors'}"


def _timm_names() -> Iterable[str]:
    import timm

    return timm.list_models(pretrained=False)


def _torchvision(model: str, target: str) -> None:
    weights = _torchvision_weights(model)
    transforms: Any = weights.transforms()
    if not hasattr(transforms, "mean"):
        raise ValueError(f"{model} is no image classifier")
    _save(weights.get_state_dict(progress=True, check_hash=True), target, mean=transforms.mean, std=transforms.std)


def _torchvision_weights(model: str) -> Any:
    from torchvision.models import get_model_weights

    name, _, tag = model.partition(".")
    # The paper's baseline is trained by the classic recipe, which is V1's; V2's is another.
    return get_model_weights(name)[tag or "IMAGENET1K_V1"]


def _torchvision_names() -> Iterable[str]:
    from torchvision.models import list_models

    return list_models()


def _pytorchvideo(model: str, target: str) -> None:
    import torch

    torch.hub.download_url_to_file(_pytorchvideo_address(model), target)


def _pytorchvideo_address(model: str) -> str:
    addresses = _pytorchvideo_addresses()
    if model not in addresses:
        raise ValueError(f"it has {', '.join(addresses)}")
    return addresses[model]


def _pytorchvideo_addresses() -> dict[str, str]:
    from pytorchvideo.models.hub.resnet import checkpoint_paths

    addresses: dict[str, str] = checkpoint_paths
    return addresses


def _save(state: Mapping[str, Any], target: str, *, mean: Any, std: Any) -> None:
    from safetensors.torch import save_file

    metadata = {"preprocessing": json.dumps({"mean": list(mean), "std": list(std)})}
    save_file({k: v.contiguous() for k, v in state.items()}, target, metadata=metadata)


FETCHERS: dict[str, Callable[[str, str], None]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "pytorchvideo": _pytorchvideo,
}
# Package -> (address of a name's file, all names).
_KNOWN: dict[str, tuple[Callable[[str], str], Callable[[], Iterable[str]]]] = {
    "timm": (_timm_address, _timm_names),
    "torchvision": (lambda model: str(_torchvision_weights(model).url), _torchvision_names),
    "pytorchvideo": (_pytorchvideo_address, _pytorchvideo_addresses),
}
