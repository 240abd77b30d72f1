"""Arrays and tensors come out whole, and what lies about its size is refused."""

import collections
import pickle
import struct

import numpy as np
import pytest
import torch
from pickles import Python2, in_torch, python2, tensor_code

from video_gn.errors import CheckpointError
from video_gn.weights.files import read_file

PLACE = r"file\.pkl: "


@pytest.fixture
def read(tmp_path):
    def read(data):
        path = tmp_path / "file.pkl"
        path.write_bytes(data)
        return read_file(path).content

    return read


def blobs():
    random = np.random.default_rng(0)
    return {
        "conv1_w": random.standard_normal((4, 3, 2, 5, 5)).astype("<f4"),
        "res2_0_branch2a_bn_s": np.arange(70_000, dtype="<f4"),  # large enough to be held once
        "res2_0_branch2a_bn_riv": random.standard_normal(6).astype(">f4"),
        "big_endian_large": np.arange(40_000, dtype=">f8"),
        "pred_w": np.asfortranarray(random.standard_normal((4, 7)).astype("<f2")),
        "pred_w_momentum": np.zeros((0, 3), dtype="<f8"),
        "mask": np.array([True, False]),
        "counts": np.arange(4, dtype="<u2"),
        "zero_d": np.array(3, dtype="<i8"),
        "model_iter": np.int64(7),
        "lr": np.float32(0.5),
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, np.generic):
            assert found[key] == value.item() and type(found[key]) is type(value.item()), key
        else:
            native = value.astype(value.dtype.newbyteorder("="))
            assert found[key].dtype == torch.from_numpy(native.copy()).dtype, key
            np.testing.assert_array_equal(found[key].numpy(), native, strict=True, err_msg=key)


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2(read, protocol):
    data = python2({"blobs": blobs(), "cfg": "text \xe9", "note": "n" * 70_000}, protocol)
    truth = pickle.loads(data, encoding="latin1")  # the writer is right: numpy itself reads it
    for key, value in blobs().items():
        assert truth["blobs"][key].shape == value.shape and truth["blobs"][key].dtype.kind == value.dtype.kind
        np.testing.assert_array_equal(truth["blobs"][key], value)
    found = read(data)
    assert_same(found["blobs"], blobs())
    assert found["cfg"] == "text \xe9" and found["note"] == "n" * 70_000


@pytest.mark.parametrize("protocol", range(6))
def test_saved_again_by_python_3(read, protocol):
    assert_same(read(pickle.dumps({"blobs": blobs()}, protocol))["blobs"], blobs())


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers(read, protocol):
    value = {
        "ordered": collections.OrderedDict(b=1, a=(2, 3.5, None)),
        "list": [True, "text", b"bytes", b"", b"x" * 70_000, bytearray(b"y"), bytearray(b"z" * 70_000), 10**30],
        "set": {1, 2},
        ("a", 1): {frozenset({3}): 0} if protocol < 0 else 0,
    }
    found = read(pickle.dumps(value, protocol))
    assert found == value and type(found["ordered"]) is dict


def test_one_object_stays_one(read):
    array = np.ones(3, "f4")
    found = read(pickle.dumps({"a": array, "b": array}))
    assert found["a"] is found["b"]


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("shape", [(10**9,), (2,), (0,), (1, 1, 2)])
def test_shape_and_data_disagree(read, protocol, shape):
    writer = Python2(protocol)
    writer.mapping({"conv1_w": lambda: writer.array(shape, "<f4", b"1234")})
    with pytest.raises(CheckpointError, match=PLACE + r"key 'conv1_w': an array of shape .* needs \d+ bytes, it has 4"):
        read(writer.code + b".")


def test_shape_and_data_disagree_in_a_list(read):
    data = pickle.dumps({"a": [np.ones(3, "f4")]}, 2).replace(b"K\x03\x85", b"K\x04\x85")
    with pytest.raises(CheckpointError, match=PLACE + r"near byte \d+: an array of shape \(4,\)"):
        read(data)


def test_shape_too_large_to_multiply(read):
    shape = b"(" + b"\x8a\x07" + (1 << 50).to_bytes(7, "little") + b"K\x04t"
    data = pickle.dumps({"a": np.ones((3, 4), "f4")}, 2).replace(b"K\x03K\x04\x86", shape)
    with pytest.raises(CheckpointError, match="needs 18014398509481984 bytes, it has 48"):
        read(data)


@pytest.mark.parametrize("new", [b"J\xff\xff\xff\xff", b"N", b"G@\x08\x00\x00\x00\x00\x00\x00"])
def test_shape_of_what_is_no_count(read, new):
    with pytest.raises(CheckpointError, match=PLACE + "key 'a': an array's shape must be of integers from 0 on"):
        read(pickle.dumps({"a": np.ones((3, 4), "f4")}, 2).replace(b"K\x03K\x04\x86", new + b"K\x04\x86"))


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.array(["a"]),
        np.array([b"a"]),
        np.ones(2, "c8"),
        np.ones(2, "M8[s]"),
        np.ones(2, np.longdouble),
        np.zeros(2, [("a", "f4")]),
    ],
    ids=lambda array: array.dtype.kind,
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_other_than_numbers(read, array, protocol):
    with pytest.raises(CheckpointError, match=PLACE + "(key 'a': an array of .*, which is no number|holds numpy)"):
        read(pickle.dumps({"a": array}, protocol))


def test_a_subclass_of_arrays(read):
    with pytest.raises(
        CheckpointError, match=PLACE + r"holds numpy(\.matrixlib\.defmatrix)?\.matrix, but a Caffe2 file"
    ):
        read(pickle.dumps({"a": np.matrix([1.0])}, 2))


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", "an array of no array's class"),
        (b"U\x01<", b"U\x01~", "a damaged dtype"),
        (b"U\x02f4", b"U\x02f9", "an array of f9, which is no number"),
        (b"(J\x01\x00\x00\x00(J\x02", b"(N(J\x02", "ok"),
        (b"NNNJ", b"NKNJ", "damaged"),
    ],
)
def test_damaged_arrays(read, old, new, match):
    data = python2({"a": np.ones(2, "<f4")}, 2)
    assert old in data
    if match == "ok":  # the version is not looked at
        assert read(data.replace(old, new))["a"].tolist() == [1, 1]
        return
    with pytest.raises(CheckpointError, match=match):
        read(data.replace(old, new))


def test_one_run_of_bytes_for_two_arrays(read):
    raw = b"T" + struct.pack("<i", 80_000) + bytes(80_000) + b"q\x00"
    writer = Python2(2)
    writer.num_memo = 1
    writer.code += raw + b"0"

    def get():
        writer.code += b"h\x00"

    writer.mapping({key: lambda: writer.array((20_000,), "<f4", get) for key in "ab"})
    with pytest.raises(CheckpointError, match="key 'b': an array without data"):
        read(writer.code + b".")


@pytest.mark.parametrize(
    ("size", "stride", "offset", "match"),
    [
        ((5,), (1,), 0, r"a tensor of shape \(5,\) needs 20 bytes, its storage has 16"),
        ((4,), (1,), 1, r"needs 20 bytes"),
        ((4,), (2,), 0, r"needs 28 bytes"),
        ((10**12,), (1,), 0, r"needs 4000000000000 bytes"),
        ((10**9,), (0,), 0, r"repeats 16 bytes"),
        ((4,), (-1,), 0, "integers from 0 on"),
        ((-4,), (1,), 0, "integers from 0 on"),
        ((4,), (1,), -1, "integers from 0 on"),
        ((1 << 70,), (1,), 0, "integers from 0 on"),
        ((2, 2), (1,), 0, "a stride for some dimensions alone"),
    ],
)
def test_tensors_stay_inside_their_storage(read, size, stride, offset, match):
    with pytest.raises(CheckpointError, match=PLACE + "key 'a': .*" + match):
        read(in_torch(lambda data: tensor_code(data, size, stride, offset)))


def test_tensors_inside_their_storage(read):
    assert read(in_torch(lambda data: tensor_code(data, (2, 2), (1, 2))))["a"].tolist() == [[0, 2], [1, 3]]
    assert read(in_torch(lambda data: tensor_code(data, (3, 2), (0, 1), 1)))["a"].tolist() == [[1, 2]] * 3
    assert read(in_torch(lambda data: tensor_code(data, (0, 9), (1, 1), 1)))["a"].shape == (0, 9)


def test_storages_stay_inside_their_record(read):
    with pytest.raises(CheckpointError, match=PLACE + "near byte .*storage 0 has 16 bytes, 20 are declared"):
        read(
            in_torch(
                lambda data: data.replace(b"cpuq\x06K\x04t", b"cpuq\x06K\x05t").replace(
                    b"K\x04tq\x07Q", b"K\x05tq\x07Q"
                )
            )
        )


def test_every_kind_of_tensor(tmp_path):
    values = {
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "f8": torch.ones(2).to(torch.float8_e4m3fn),
        "u16": torch.ones(3, dtype=torch.uint16),
        "conj": torch.tensor([1 + 2j]).conj(),
        "coo": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "channels": torch.quantize_per_channel(torch.ones(3, 2), torch.ones(3), torch.zeros(3), 0, torch.qint8),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "bool": torch.tensor([True]),
        "view": torch.arange(12.0).view(3, 4).t()[1:],
        "expanded": torch.ones(1).expand(5),
        "meta": torch.ones(2, device="meta"),
        "empty": torch.ones(0, 3),
    }
    torch.save(
        values | {"dtype": torch.float16, "device": torch.device("cuda:0"), "size": torch.Size([1])}, tmp_path / "a.pt"
    )
    found = read_file(tmp_path / "a.pt").content
    for key, value in values.items():
        assert found[key].shape == value.shape and found[key].dtype == value.dtype, key
        assert found[key].layout == value.layout and not found[key].requires_grad, key
        if key != "meta":
            dense = [v.dequantize() if v.is_quantized else v.to_dense() for v in (found[key], value)]
            assert torch.equal(dense[0].detach().to(torch.complex64), dense[1].to(torch.complex64)), key
    assert found["dtype"] is torch.float16 and found["device"] == torch.device("cuda:0") and found["size"] == (1,)


def test_sparse_indices_are_checked(tmp_path):
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        bad = torch.sparse_coo_tensor(torch.tensor([[9]]), torch.ones(1), (3,), check_invariants=False)
    torch.save({"a": bad}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="size is inconsistent with indices"):
        read_file(tmp_path / "a.pt")
