"""Files of weights by their content: what each is, what is read of it, and damage of every kind."""

import copy
import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import traceback
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from video_gn.errors import CheckpointError
from video_gn.weights.files import read_file

STATE = {"conv1.weight": torch.arange(24.0).view(2, 3, 4), "bn.count": torch.tensor(3)}
CONTAINERS = ("torch", "torch (before 1.6)", "safetensors", "caffe2 pickle")


def write(container, path, state=STATE):
    if container == "safetensors":
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    elif container == "caffe2 pickle":
        path.write_bytes(pickle.dumps({k: v.numpy() for k, v in state.items()}, 2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "torch")
    return path


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("ending", ["pt", "pth", "pyth", "pkl", "ckpt", "safetensors", "model", "mp4"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_ending_says_nothing(tmp_path, container, ending):
    path = write(container, tmp_path / f"a.{ending}")
    for each in (path, str(path)):
        found = read_file(each)
        assert (found.path, found.container, found.foreign) == (str(path), container, ())
        assert found.content.keys() == STATE.keys()
        assert all(torch.equal(torch.as_tensor(found.content[key]), value) for key, value in STATE.items())
        assert found.metadata == ({"format": "pt"} if container == "safetensors" else {})


@pytest.mark.parametrize("container", CONTAINERS)
def test_cut_short(tmp_path, container):
    path = write(container, tmp_path / "a")
    data = path.read_bytes()
    for end in (len(data) - 1, len(data) // 2, 40, 20, 10):
        path.write_bytes(data[:end])
        refused(path, "cut short|damaged|not a checkpoint")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>Sign in</html>", "an HTML page.*Download it again"),
        (b"<html>", "an HTML page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer.*git lfs pull"),
        (gzip.compress(b"weights", mtime=0), r"compressed \(gzip\).*Unpack"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(50), r"a video \(MP4\)"),
        (b"\x1aE\xdf\xa3" + bytes(50), r"a video \(Matroska\)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5.*torch.save or safetensors"),
        (bytes(range(200, 256)), r"not a checkpoint: it begins with b'\\xc8"),
        (b'{"state": 1}', "not a checkpoint: it begins with"),
        (b"a", "not a checkpoint: it begins with b'a'"),
        (b"PK\x05\x06" + bytes(18), "a zip archive, but not one of torch.save"),
        (b"PK\x03\x04" + bytes(100), "a zip archive that is cut short or damaged"),
        (pickle.dumps([1, 2]), "a pickle of a list, not of a dict of weights"),
        ((1000).to_bytes(8, "little") + b'{"a', "safetensors file that is cut short in its header"),
        ((20).to_bytes(8, "little") + b'{"a": 3            }', "damaged, or not a checkpoint"),
    ],
)
def test_no_checkpoint(tmp_path, content, match):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    refused(path, match)


def test_no_file(tmp_path):
    refused(tmp_path / "a", "no such file")
    refused(tmp_path, "is a directory")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path):
    path = write("torch", tmp_path / "a")
    path.chmod(0)
    refused(path, "cannot be read.*permissions")


def test_no_permission_as_told(tmp_path, monkeypatch):
    path = write("torch", tmp_path / "a")

    def no_open(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", no_open)
    refused(path, r"cannot be read \(Permission denied\)")


def test_archives(tmp_path):
    inner = write("torch", tmp_path / "inner.pt")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(inner, "storages")
    refused(tmp_path / "a.tar", "a tar archive. Unpack it.*before 0.1.10")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(inner, "inner.pt")
    refused(tmp_path / "a.zip", "a zip archive, but not one of torch.save")
    with zipfile.ZipFile(inner) as source, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    refused(tmp_path / "b.pt", "packed again with compression. Use the original")


def test_a_tar_that_begins_like_torch(tmp_path):
    # torch tries its oldest format first, which unpacks files; a name can begin like the format of 0.2 to 1.5.
    magic = write("torch (before 1.6)", tmp_path / "old").read_bytes()[:15]
    info = tarfile.TarInfo("storages")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[: len(magic)] = magic
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a").write_bytes(bytes(header) + bytes(1024))
    refused(tmp_path / "a", "a tar archive")


def test_torchscript(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    refused(tmp_path / "a.pt", r"a TorchScript archive.*save its state_dict\(\)")


def test_storages_missing_in_an_old_file(tmp_path):
    path = write("torch (before 1.6)", tmp_path / "a", {"a": torch.ones(4)})
    data = path.read_bytes()
    keys = data.index(b"\x80\x02]")
    path.write_bytes(data[:keys] + pickle.dumps([], 2) + data[keys:])
    refused(path, "the values of some of its tensors are missing")


def test_only_torch_is_allowed_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    path = write("torch", tmp_path / "a")
    assert torch.equal(read_file(path).content["conv1.weight"], STATE["conv1.weight"])
    torch.save({"a": np.ones(2)}, path)
    refused(path, r"damaged, or not a checkpoint \(Weights only load failed\). Download or copy it again$")
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert "weights_only" not in "".join(traceback.format_exception(caught.value)).split("CheckpointError: ")[-1]
    assert caught.value.__suppress_context__, "torch's advice to run what is in the file"


def test_every_dtype_of_safetensors(tmp_path):
    values = {f"{dtype}.weight": torch.ones(2, 3).to(dtype) for dtype in safetensors.torch._TYPES.values()}
    safetensors.torch.save_file(values, tmp_path / "a")
    header = read_file(tmp_path / "a", header_only=True).content
    found = read_file(tmp_path / "a").content
    assert header.keys() == found.keys() == values.keys()
    for key, value in values.items():
        assert header[key].device.type == "meta"
        assert header[key].dtype == found[key].dtype == value.dtype and header[key].shape == value.shape
        assert torch.equal(found[key].to(torch.complex64), value.to(torch.complex64))


def test_a_dtype_that_torch_has_not(tmp_path):
    header = json.dumps({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + b"123")
    for header_only in (True, False):
        with pytest.raises(CheckpointError, match="'a' has a dtype that torch has not .*F6_E2M3.*Convert it"):
            read_file(tmp_path / "a", header_only=header_only)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what was read in /proc")
def test_a_header_alone_is_read(tmp_path):
    num_items = 1 << 30
    header = json.dumps({"large": {"dtype": "F32", "shape": [num_items], "data_offsets": [0, 4 * num_items]}}).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 4 * num_items)
    code = """
import sys
from pathlib import Path
from video_gn.weights.files import read_file
import safetensors.torch, torch
def done():  # bytes read, and the most memory ever held
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(Path("/proc/self/io").read_text().split()[1]), 1024 * int(held.split()[1])
before = done()
tensor = read_file(sys.argv[1], header_only=sys.argv[2] == "1").content["large"]
after = done()
print(tensor.device.type, tensor.numel(), *(b - a for a, b in zip(before, after)))
"""
    for header_only, device in (("1", "meta"), ("0", "cpu")):  # in full it is mapped, which reads no more
        command = [sys.executable, "-c", code, path, header_only]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert (shown[0], int(shown[1])) == (device, num_items)
        assert int(shown[2]) < 5e6 and int(shown[3]) < 1e8, shown  # of 4.3e9 bytes


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = write("torch", tmp_path / "a")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_file(path).content["conv1.weight"], STATE["conv1.weight"])


def test_records_that_overlap(tmp_path):
    whole = write("torch", tmp_path / "whole")
    names = zipfile.ZipFile(whole).namelist()
    for more in (names[0], names[-1].upper()):
        shutil.copy(whole, tmp_path / "a")
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a", "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(more, b"another")
        refused(tmp_path / "a", "damaged: a zip archive whose records overlap")
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:  # a thousand names for the same bytes
        archive.writestr("a/data.pkl", bytes(1_000_000))
        for number in range(1000):
            again = copy.copy(archive.infolist()[0])
            again.filename = f"a/data/{number}"
            archive.filelist.append(again)
        archive._didModify = True
    refused(tmp_path / "a", "damaged: a zip archive whose records overlap")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
    return folder, {container: write(container, folder / container, state).read_bytes() for container in CONTAINERS}


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def survives(folder, data):
    """Reading gives content or our error, and nothing else happens."""
    path = folder / "damaged"
    path.write_bytes(data)
    message, content = f"{path}: ", None
    try:
        content = read_file(path).content
    except CheckpointError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    for value in content.values() if isinstance(content, dict) else ():
        if isinstance(value, torch.Tensor) and value.device.type == "cpu":
            value.clone()  # within its memory
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("container", CONTAINERS)
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(edits=st.data())
def test_damage(small_files, container, edits):
    folder, files = small_files
    data = bytearray(files[container])
    # Most of a zip is padding: aim at the pickle as often as at the rest.
    start = max(data.find(b"\x80\x02}"), 0)
    end = start + 400 if edits.draw(st.booleans()) else len(data)
    for _ in range(edits.draw(st.integers(1, 3))):
        kind = edits.draw(st.sampled_from(["flip", "put", "drop", "cut"]))
        where = edits.draw(st.integers(start if end != len(data) else 0, min(end, len(data) - 1)))
        if kind == "flip":
            data[where] ^= 1 << edits.draw(st.integers(0, 7))
        elif kind == "put":
            data[where] = edits.draw(st.integers(0, 255))
        elif kind == "drop":
            del data[where : where + edits.draw(st.integers(1, 9))]
        else:
            del data[where:]
        if not data:
            break
        end = min(end, len(data))
        start = min(start, len(data) - 1)
    survives(folder, bytes(data))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(edits=st.data())
def test_damaged_programs(small_files, protocol, edits):
    folder, _ = small_files
    data = bytearray(pickle.dumps({"a": np.ones(2, "f4"), "b": Touch(folder / "mark")}, protocol))
    data[edits.draw(st.integers(0, len(data) - 1))] = edits.draw(st.integers(0, 255))
    if edits.draw(st.booleans()):
        survives(folder, bytes(data))
    else:
        good = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(small_files[1]["torch"])) as source, zipfile.ZipFile(good, "w") as target:
            for entry in source.namelist():
                target.writestr(entry, bytes(data) if entry.endswith("data.pkl") else source.read(entry))
        survives(folder, good.getvalue())


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    start=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"(", b"}", b"PK\x03\x04", b"\x10" + bytes(7) + b"{"]),
    rest=st.binary(),
)
def test_random_bytes(small_files, start, rest):
    survives(small_files[0], start + rest)
