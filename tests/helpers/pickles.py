"""Pickles as other programs write them, and as nobody should."""

import io
import pickle
import struct
import zipfile

import numpy as np
import torch


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


class Python2:
    """Writes what Python 2 and the numpy of its time wrote, opcode by opcode, in protocol 0 or 2."""

    def __init__(self, protocol):
        self.protocol = protocol
        self.code = b"" if protocol == 0 else b"\x80\x02"
        self.num_memo = 0

    def put(self):
        if self.protocol == 0:
            self.code += b"p%d\n" % self.num_memo
        else:
            self.code += b"q%c" % self.num_memo if self.num_memo < 256 else b"r" + struct.pack("<I", self.num_memo)
        self.num_memo += 1

    def string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        if self.protocol == 0:
            text = "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in raw)
            self.code += f"S'{text}'\n".encode()
        else:
            self.code += b"U%c" % len(raw) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw
        self.put()

    def integer(self, value):
        self.code += b"I%d\n" % value if self.protocol == 0 else b"J" + struct.pack("<i", value)

    def name(self, module, name):
        self.code += f"c{module}\n{name}\n".encode()
        self.put()

    def tuple_of(self, *parts):
        self.code += b"("
        for part in parts:
            self.value(part)
        self.code += b"t"
        self.put()

    def value(self, value):
        if callable(value):
            value()
        elif value is None:
            self.code += b"N"
        elif isinstance(value, str | bytes):
            self.string(value)
        elif isinstance(value, int):
            self.integer(value)
        elif isinstance(value, float):
            self.code += b"F%r\n" % value if self.protocol == 0 else b"G" + struct.pack(">d", value)
        elif isinstance(value, tuple):
            self.tuple_of(*value)
        elif isinstance(value, np.ndarray):
            self.array(value.shape, value.dtype, value.tobytes("A"), fortran=value.flags.fnc)
        elif isinstance(value, np.generic):
            self.name("numpy.core.multiarray", "scalar")
            self.tuple_of(lambda: self.dtype(value.dtype), value.tobytes())
            self.code += b"R"
        else:
            self.mapping(value)

    def mapping(self, items):
        self.code += b"(d" if self.protocol == 0 else b"}"
        self.put()
        for key, value in items.items():
            self.value(key)
            self.value(value)
            self.code += b"s"

    def dtype(self, dtype):
        self.name("numpy", "dtype")
        self.tuple_of(dtype.str[1:], 0, 1)
        self.code += b"R"
        self.tuple_of(3, dtype.str[0], None, None, None, -1, -1, 0)
        self.code += b"b"

    def array(self, shape, dtype, raw, *, fortran=False):
        self.name("numpy.core.multiarray", "_reconstruct")
        self.tuple_of(lambda: self.name("numpy", "ndarray"), (0,), "b")
        self.code += b"R"
        self.tuple_of(1, shape, lambda: self.dtype(np.dtype(dtype)), int(fortran), raw)
        self.code += b"b"


def python2(value, protocol):
    writer = Python2(protocol)
    writer.value(value)
    return writer.code + b"."


def in_torch(code):
    """A file of torch's whose pickle is this."""
    good, evil = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(evil, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = code(data) if callable(code) else code
            target.writestr(entry.filename, data)
    return evil.getvalue()


def tensor_code(data, size, stride, offset=0):
    """The pickle of one tensor of four floats with another shape, by the parts of torch's own."""

    def numbers(values):
        return b"(" + b"".join(pickle.dumps(v, 2)[2:-1] for v in values) + b"t"

    # offset 0, size (4,), stride (1,) as torch.save writes them
    old = b"QK\x00K\x04\x85"
    start = data.index(old)
    end = data.index(b"K\x01\x85", start) + 3
    return data[:start] + b"Q" + pickle.dumps(offset, 2)[2:-1] + numbers(size) + numbers(stride) + data[end:]
