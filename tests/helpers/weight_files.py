"""Weight files as each zoo writes them, from a state dict or from blobs."""

import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

# ---- torch files ----------------------------------------------------------------------------------


def slowfast_pyth(path: Path, state: dict) -> Path:
    """Source: SlowFast slowfast/utils/checkpoint.py, `save_checkpoint`; `cfg` is the YAML of its configuration."""
    name, weight = next(iter(state.items()))
    optimizer = {
        "state": {0: {"momentum_buffer": torch.full_like(weight, 7.0)}},
        "param_groups": [{"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "params": [0]}],
    }
    cfg = f"MODEL:\n  ARCH: i3d\n  MODEL_NAME: ResNet\nRESNET:\n  DEPTH: 50\n# {name}\n"
    torch.save({"epoch": 195, "model_state": OrderedDict(state), "optimizer_state": optimizer, "cfg": cfg}, path)
    return path


def pytorchvideo_pyth(path: Path, state: dict, *, prefix: str = "") -> Path:
    """Source: pytorchvideo models/hub/resnet.py (`checkpoint["model_state"]`); prefix "model." in SlowFast's runs."""
    torch.save({"model_state": OrderedDict((prefix + key, value) for key, value in state.items())}, path)
    return path


def mmaction_pth(path: Path, state: dict, **others) -> Path:
    """Source: mmengine runner/runner.py, `Runner.save_checkpoint`; a published file has these two entries alone."""
    meta = {
        "epoch": 100,
        "iter": 375600,
        "cfg": "model = dict(type='Recognizer3D')",
        "seed": 0,
        "experiment_name": "i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb",
        "time": "20220812_000000",
        "mmengine_version": "0.1.0",
        "dataset_meta": {},
    }
    torch.save({"meta": meta, "state_dict": OrderedDict(state), **others}, path)
    return path


BUILT: list[str] = []  # of each foreign object that somebody built again; loading must leave it empty


def _note(text: str) -> str:
    BUILT.append(text)
    return text


class _Hook:
    # Unlike the buffer below its maker stays importable: a loader that runs pickles would call it.
    def __reduce__(self):
        return _note, ("a pickle of the file was executed",)


def mmaction_training_pth(path: Path, state: dict, *, runs_code: bool = False) -> Path:
    """As a training run leaves it: the message hub holds history buffers, objects of a class that is not installed.

    Source: mmengine logging/message_hub.py (`state_dict`), logging/history_buffer.py.

    Args:
        path: of the file.
        state: the weights.
        runs_code: put in an object too whose pickle calls a function of this module, which notes it in `BUILT`.
    """
    module = types.ModuleType("throwaway_history_buffer")
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    buffer = module.HistoryBuffer()
    buffer._log_history, buffer._count_history = np.linspace(3, 1, 5), np.ones(5, dtype=np.int64)
    hub = {"log_scalars": OrderedDict({"train/loss": buffer}), "runtime_info": OrderedDict(iter=5), "resumed_keys": {}}
    if runs_code:
        hub["runtime_info"]["hook"] = _Hook()
    optimizer = {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    sys.modules[module.__name__] = module
    try:
        return mmaction_pth(path, state, message_hub=hub, optimizer=optimizer, param_schedulers=[{"last_step": 5}])
    finally:
        del sys.modules[module.__name__]


def flat_pth(path: Path, state: dict) -> Path:
    """Source: torchvision's files, `torch.save(model.state_dict(), path)`."""
    torch.save(OrderedDict(state), path)
    return path


def flat_safetensors(path: Path, state: dict, *, metadata: dict[str, str] | None = None) -> Path:
    """Source: timm's `model.safetensors` (metadata {"format": "pt"})."""
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path, metadata=metadata)
    return path


# ---- Caffe2 files: Python 2 pickles ---------------------------------------------------------------


class _Python2Pickle:
    """The opcodes of Python 2.7's cPickle for dicts of numpy arrays, texts and numbers.

    Python 3 cannot write these: its protocol 2 has no byte strings. A `str` key is written as Python 2's byte string,
    as `unicode` where it is in `unicode_keys`. Numbers of PUT follow cPickle's, from 1.
    """

    def __init__(self, protocol: int, unicode_keys: frozenset[str]) -> None:
        assert protocol in (0, 2)
        self.binary = protocol == 2
        self.unicode_keys = unicode_keys
        self.parts: list[bytes] = [b"\x80\x02"] if self.binary else []
        self.memo: dict[str, int] = {}
        self.num_puts = 0

    def op(self, binary: bytes, text: bytes) -> None:
        self.parts.append(binary if self.binary else text)

    def put(self, key: str | None = None) -> None:
        self.num_puts += 1
        number = self.num_puts
        if key is not None:
            self.memo[key] = number
        self.op(b"q%c" % number if number < 256 else b"r" + struct.pack("<I", number), b"p%d\n" % number)

    def again(self, key: str) -> bool:
        if key not in self.memo:
            return False
        number = self.memo[key]
        self.op(b"h%c" % number if number < 256 else b"j" + struct.pack("<I", number), b"g%d\n" % number)
        return True

    def bytes_(self, data: bytes) -> None:
        short = len(data) < 256
        head = b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))
        # repr of Python 3's bytes is Python 2's repr of a str, but for the b before it.
        self.op(head + data, b"S" + repr(data)[1:].encode("ascii") + b"\n")

    def number(self, value: int | float) -> None:
        if isinstance(value, float):
            self.op(b"G" + struct.pack(">d", value), b"F%s\n" % repr(value).encode())
            return
        binary = b"J" + struct.pack("<i", value)
        if 0 <= value < 256:
            binary = b"K" + bytes([value])
        elif 256 <= value < 65536:
            binary = b"M" + struct.pack("<H", value)
        self.op(binary, b"I%d\n" % value)

    def key(self, text: str) -> None:
        if text in self.unicode_keys:
            data = text.encode("ascii")
            self.op(b"X" + struct.pack("<I", len(data)) + data, b"V" + data + b"\n")
        else:
            self.bytes_(text.encode("ascii"))
        self.put()

    def numbers(self, values: tuple[int, ...]) -> None:
        """A tuple: short ones have opcodes of their own in protocol 2."""
        short = self.binary and len(values) in (1, 2, 3)
        if not values:
            self.op(b")", b"(t")
            return
        self.parts.append(b"" if short else b"(")
        for value in values:
            self.number(value)
        self.parts.append(b"\x84\x85\x86\x87"[len(values) : len(values) + 1] if short else b"t")

    def name(self, module: str, name: str) -> None:
        key = f"{module}.{name}"
        if not self.again(key):
            self.parts.append(f"c{module}\n{name}\n".encode("ascii"))
            self.put(key)

    def dtype(self, dtype: np.dtype) -> None:
        if self.again(dtype.str):
            return
        self.name("numpy", "dtype")
        self.op(b"", b"(")
        self.bytes_(dtype.str[1:].encode())
        self.put()
        self.number(0)
        self.number(1)
        self.op(b"\x87", b"t")
        self.put()
        self.parts.append(b"R")
        self.put(dtype.str)
        self.parts.append(b"(")
        self.number(3)
        self.bytes_(b"<")
        self.parts.append(b"NNN")
        for value in (-1, -1, 0):
            self.number(value)
        self.parts.append(b"t")
        self.put()
        self.parts.append(b"b")

    def array(self, array: np.ndarray) -> None:
        """numpy's reduction: _reconstruct(ndarray, (0,), "b"), then the state (1, shape, dtype, False, data)."""
        self.name("numpy.core.multiarray", "_reconstruct")
        self.op(b"", b"(")
        self.name("numpy", "ndarray")
        if not self.again("(0,)"):
            self.numbers((0,))
            self.put("(0,)")
        self.bytes_(b"b")
        self.op(b"\x87", b"t")
        self.parts.append(b"R")
        self.put()
        self.parts.append(b"(")
        self.number(1)
        self.numbers(array.shape)
        if array.shape:
            self.put()  # the empty tuple is never put
        self.dtype(array.dtype)
        self.op(b"\x89", b"I00\n")
        self.bytes_(np.ascontiguousarray(array).tobytes())
        self.put()
        self.parts.append(b"tb")

    def dict_(self, items: dict) -> None:
        self.op(b"}", b"(d")
        self.put()
        several = self.binary and len(items) > 1
        pairs = list(items.items())
        for start in range(0, len(pairs), 1000):  # cPickle's batches
            self.parts.append(b"(" if several else b"")
            for key, value in pairs[start : start + 1000]:
                self.key(key)
                self.value(value)
                self.op(b"" if several else b"s", b"s")
            self.parts.append(b"u" if several else b"")

    def value(self, value) -> None:
        if isinstance(value, dict):
            self.dict_(value)
        elif isinstance(value, np.ndarray):
            self.array(value)
        elif type(value) in (int, float):
            self.number(value)
        else:
            raise TypeError(f"value must be a dict, an array or a number, got {type(value).__name__}. Convert it.")


def python2_pickle(value: dict, *, protocol: int = 2, unicode_keys: frozenset[str] = frozenset()) -> bytes:
    """What Python 2.7's `cPickle.dumps(value, protocol)` writes; protocol 0 or 2."""
    writer = _Python2Pickle(protocol, unicode_keys)
    writer.value(value)
    return b"".join(writer.parts) + b"."


def caffe2_pkl(path: Path, blobs: dict, *, wrapped: bool = True, extras: bool = True, protocol: int = 2) -> Path:
    """A Caffe2 zoo's file.

    Args:
        path: of the file.
        blobs: the weights.
        wrapped: under "blobs", as training leaves it; else bare, as Non-local's conversions to affine do.
        extras: `*_momentum` of what is trained, `model_iter` and `lr` too.
        protocol: 2, as training; 0, as Non-local's conversions (`pickle.dump` with no protocol).

    Source: Non-local lib/utils/checkpoints.py (`save_model_params`: names of momenta, model_iter and lr are unicode
    there), process_data/convert_models/modify_caffe2_ftvideo.py.
    """
    items: dict = {}
    unicode_keys = set()
    if extras:
        momenta = {f"{key}_momentum": np.full_like(array, 9) for key, array in blobs.items() if key[-3:] != "_rm"}
        items = {"model_iter": 400001, "lr": np.array(1e-4, dtype=np.float32), **momenta}
        items = {key: value for key, value in items.items() if not key.endswith("_riv_momentum")}
        unicode_keys = set(items)
    items.update(blobs)
    contents = {"blobs": items} if wrapped else items
    path.write_bytes(python2_pickle(contents, protocol=protocol, unicode_keys=frozenset(unicode_keys)))
    return path
