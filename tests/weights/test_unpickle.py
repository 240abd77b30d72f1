"""Pickles of weights: what would run does not run, and what is foreign is inert."""

import argparse
import builtins
import collections
import functools
import os
import pathlib
import pickle
import struct
import sys
import types

import numpy as np
import pytest
import torch
from pickles import Calls, in_torch

from video_gn.errors import CheckpointError
from video_gn.weights._recipes import MAX_DEPTH, Foreign
from video_gn.weights.files import read_file

PLACE = r"file\.pkl: "


@pytest.fixture
def read(tmp_path):
    def read(data):
        path = tmp_path / "file.pkl"
        path.write_bytes(data)
        return read_file(path).content

    return read


@pytest.mark.parametrize(
    "value", [argparse.Namespace(a=1), pathlib.PurePosixPath("x"), functools.partial(Foreign, "a"), 1j, torch.ones(2)]
)
def test_caffe2_admits_nothing_else(read, value):
    with pytest.raises(CheckpointError, match=PLACE + "holds .*, but a Caffe2 file of weights has arrays"):
        read(pickle.dumps({"a": value}))


PROGRAMS = {
    "posix.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "builtins.exec": lambda mark: Calls(builtins.exec, f"open({str(mark)!r}, 'w')"),
    "builtins.eval": lambda mark: Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
    "_?io.open": lambda mark: Calls(builtins.open, str(mark), "w"),
    "subprocess.Popen": lambda mark: Calls(__import__("subprocess").Popen, ["touch", str(mark)]),
    "shutil.copy": lambda mark: Calls(__import__("shutil").copy, __file__, str(mark)),
    "runpy.run_path": lambda mark: Calls(__import__("runpy").run_path, str(mark)),
    "importlib.import_module": lambda mark: Calls(__import__("importlib").import_module, "os"),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("wrap", ["bare", "nested"])
@pytest.mark.parametrize("container", ["pickle 0", "pickle 2", "pickle 4", "zip 2", "zip 4", "legacy"])
def test_programs_do_not_run(tmp_path, program, wrap, container):
    mark, path = tmp_path / "mark", tmp_path / "file.pkl"
    value = PROGRAMS[program](mark)
    if wrap == "nested":
        good = torch.ones(2) if not container.startswith("pickle") else np.ones(2, "f4")
        value = {"state_dict": {"conv1_w": good}, "extra": [{"deep": (1, value)}]}
    if container.startswith("pickle"):
        path.write_bytes(pickle.dumps(value, int(container[-1])))
    elif container == "legacy":
        torch.save(value, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(value, path, pickle_protocol=int(container[-1]))
    with pytest.raises(
        CheckpointError,
        match=PLACE + f"holds a call of {program}: that is a program, not weights; nothing was executed",
    ):
        read_file(path)
    assert not mark.exists()


def name(module, name):
    return b"\x80\x04\x8c%c%b\x8c%c%b\x93" % (len(module), module, len(name), name)


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch mark'\ntR.",
        b"(ios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch mark'\no.",  # OBJ
        b"\x80\x02c__builtin__\nexecfile\n.",
        b"\x80\x02c__builtin__\neval\nq\x00(h\x00t.",
        b"\x80\x02ccommands\ngetoutput\n.",
        b"\x80\x02cnt\nsystem\n.",
        b"\x80\x02c__builtin__\n__import__\n.",
        name(b"sys", b"modules") + b".",
        name(b"pathlib", b"os.system") + b".",
        name(b"torch", b"os.system") + b".",
        name(b"collections", b"OrderedDict.__init__.__globals__") + b".",
        name(b"socket", b"create_connection") + b".",
        name(b"pty", b"spawn") + b".",
        name(b"operator", b"attrgetter") + b".",
        name(b"types", b"FunctionType") + b".",
        name(b"builtins", b"setattr") + b".",
    ],
)
@pytest.mark.parametrize("container", ["pickle", "torch"])
def test_programs_by_every_opcode(read, program, container):
    with pytest.raises(CheckpointError, match=PLACE + "holds a call of .*that is a program"):
        read(program if container == "pickle" else in_torch(program))


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (b"\x80\x02\x82\x01.", "refers to something outside"),
        (b"\x80\x02\x83\x01\x00.", "refers to something outside"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "refers to something outside"),
        (b"\x80\x05\x97.", "refers to something outside"),
        (b"\x80\x05C\x01a\x98.", "refers to something outside"),
        (b"\x80\x02}P1\n.", "refers to something outside"),
        (b"\x80\x02(U\x06moduleccollections\nOrderedDict\nU\x01aU\x01btQ.", "refers to something outside"),
        (b"\x80\x02K\x01Q.", "refers to something outside"),
        (b"\x80\x02ccollections\nOrderedDict\n}U\x03fooK\x01sb.", "sets the state of a Known"),
        (b"\x80\x02]}U\x03fooK\x01sb.", "sets the state of a list"),
        (b"\x80\x02}K\x01a.", "adds to a dict"),
        (b"\x80\x02]K\x01K\x01s.", "adds to a list"),
        (b"\x80\x02K\x01)R.", "calls what cannot be called, int"),
        (b"\x80\x02K\x01)\x81.", "calls what cannot be called, int"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x81.", "calls what cannot be called"),
        (b"\x80\x04ccollections\nOrderedDict\n)}X\x01\x00\x00\x00aK\x01s\x92.", "calls what cannot be called"),
        (b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "bytes of no bytes"),
        (b"\x80\x02c__builtin__\nlist\nU\x01a\x85R.", "a container of no items"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "a dict of no pairs"),
        (b"\x80\x02T\xff\xff\xff\xff.", "negative length"),
        (b"\x80\x02T\xff\xff\xff\x7f.", "ends too early"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "ends too early"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "ends too early"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "ends too early"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "ends too early"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "utf-8"),
        (b"\x80\x02h\x05.", "Memo value not found"),
        (b"\x80\x02.", "damaged, or not a checkpoint"),
        (b"\x80\x02\xff.", "damaged, or not a checkpoint"),
        (b"\x80\x02t.", "damaged, or not a checkpoint"),
        (b"\x80\x02K\x01]s.", "damaged, or not a checkpoint"),
        (b"\x80\x02}]K\x01s.", "a key of type list"),
        (b"\x80\x02(K\x01d.", "a key and no value"),
        (b"\x80\x02]q\x00h\x00a.", "it contains itself"),
        (b"\x80\x02c\x00\na b\n.", "cannot be a name"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "made in another way|an array"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\nK\x01\x85R.", "a number of no dtype"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R.", "an array without data"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85RK\x01b.", "a damaged array"),
        (b"c" + b"x" * 100, "damaged, or not a checkpoint"),
    ],
)
@pytest.mark.parametrize("container", ["pickle", "torch"])
def test_hostile_instructions(read, code, match, container):
    with pytest.raises(CheckpointError, match=PLACE + "(?s:.*)" + f"({match})"):
        read(code if container == "pickle" else in_torch(code))


@pytest.mark.parametrize("container", ["pickle", "torch"])
@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02" + b")" + b"\x85" * 300_000 + b".",
        b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        b"\x80\x02" + b"(" * 300_000 + b"t" * 300_000 + b".",
    ],
)
def test_depth(read, code, container):
    with pytest.raises(CheckpointError, match=f"nested deeper than {MAX_DEPTH}"):
        read(code if container == "pickle" else in_torch(code))


@pytest.mark.parametrize("container", ["pickle", "torch"])
@pytest.mark.parametrize("end", [b"K\x01s", b"\x90"], ids=["key", "element"])
def test_depth_of_a_key(read, end, container):
    # Hashing it would recurse in C until the process dies.
    deep = b")" + b"\x85" * 500_000
    code = b"\x80\x04}" + deep + end + b"." if end != b"\x90" else b"\x80\x04\x8f(" + deep + end + b"."
    with pytest.raises(CheckpointError, match="a key of type tuple"):
        read(code if container == "pickle" else in_torch(code))


def test_sharing_is_not_copying(read):
    # 2 ** 60 lists as a tree, 60 as they are.
    assert len(read(b"\x80\x02}U\x01a" + b"]" + b"2\x86" * 60 + b"s.")["a"]) == 2


@pytest.mark.parametrize("make", [b"c_codecs\nencode\n", b"c__builtin__\nbytearray\n"])
def test_copies_are_counted(read, make):
    text = b"X" + struct.pack("<I", 60_000) + b"a" * 60_000 + b"q\x00"
    call = make + b"h\x00X\x06\x00\x00\x00latin1\x86R"
    with pytest.raises(CheckpointError, match="more memory than its size explains"):
        read(b"\x80\x02" + text + b"](" + call * 1000 + b"e.")


@pytest.fixture
def foreign_modules():
    """Modules that exist while a file is written, and no longer when it is read."""
    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer", "omegaconf", "fvcore_like"]
    for each in names:
        sys.modules[each] = types.ModuleType(each)
    source = """
import numpy as np
class HistoryBuffer:
    def __init__(self):
        self._max_length = 1000
        self._log_history = np.arange(3.0)
        self._count_history = np.ones(3, dtype=np.int64)
        self._statistics_methods = {"min": HistoryBuffer.min, "mean": self.mean}
    def min(self): raise RuntimeError("called")
    def mean(self): raise RuntimeError("called")
    def __setstate__(self, state): raise RuntimeError("built")
class DictConfig:
    def __init__(self): self._parent = self; self.kind = float
class CfgNode(dict):
    def __reduce__(self): return CfgNode, (), {"frozen": True}, None, iter([("a", 1)])
class Loops(list):
    pass
"""
    exec(source, vars(sys.modules["mmengine.logging.history_buffer"]))
    for each, module in (("DictConfig", "omegaconf"), ("CfgNode", "fvcore_like"), ("Loops", "fvcore_like")):
        kind = getattr(sys.modules["mmengine.logging.history_buffer"], each)
        kind.__module__ = module
        setattr(sys.modules[module], each, kind)
    yield sys.modules
    for each in names:
        sys.modules.pop(each, None)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("new_format", [True, False])
def test_foreign_objects_become_inert(tmp_path, foreign_modules, protocol, new_format):
    history = foreign_modules["mmengine.logging.history_buffer"]
    state = collections.OrderedDict(weight=torch.randn(4, 3), count=torch.tensor(7), tied=None)
    state["tied"] = state["weight"]
    state._metadata = {"": {"version": 1}}
    looped = foreign_modules["fvcore_like"].Loops([1, 2])
    checkpoint = {
        "state_dict": state,
        "message_hub": {"log_scalars": {"loss": history.HistoryBuffer()}},
        "cfg": foreign_modules["omegaconf"].DictConfig(),
        "node": foreign_modules["fvcore_like"].CfgNode(),
        "loops": looped,
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("a/b")),
        "best": np.float64(0.5),
        "curve": np.arange(3),
        "words": np.array(["a"]),
        "defaults": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1, 2], maxlen=3),
        "counts": collections.Counter("aab"),
    }
    path = tmp_path / "file.pth"
    torch.save(checkpoint, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new_format)
    for each in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer", "omegaconf", "fvcore_like"):
        foreign_modules.pop(each)
    found = read_file(path)
    content = found.content
    assert torch.equal(content["state_dict"]["weight"], state["weight"]) and content["state_dict"]["count"] == 7
    assert content["state_dict"]["tied"].data_ptr() == content["state_dict"]["weight"].data_ptr()
    buffer = content["message_hub"]["log_scalars"]["loss"]
    assert isinstance(buffer, Foreign) and repr(buffer) == "<foreign mmengine.logging.history_buffer.HistoryBuffer>"
    assert {type(content[key]) for key in ("cfg", "node", "loops", "args", "words")} == {Foreign}
    assert content["best"] == 0.5 and content["curve"].tolist() == [0, 1, 2]
    assert content["defaults"] == {"a": [1]} and content["queue"] == [1, 2] and content["counts"] == {"a": 2, "b": 1}
    assert {"mmengine.logging.history_buffer.HistoryBuffer", "omegaconf.DictConfig", "fvcore_like.CfgNode"} <= set(
        found.foreign
    )
    assert "argparse.Namespace" in found.foreign and list(found.foreign) == sorted(set(found.foreign))
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize(
    "function", [b"ctorch.hub\nload\n", b"ctorch\nload\n", b"cnumpy.testing\nrundocs\n", b"cpip\nmain\n"]
)
def test_functions_of_other_libraries_are_not_called(read, function):
    found = read(in_torch(b"\x80\x02" + function + b"U\x01a\x85R."))
    assert isinstance(found, Foreign) and "load rundocs main".count(found.name.split(".")[-1]) == 1
