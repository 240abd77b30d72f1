"""Class names from the package and from files."""

import json

import pytest
from torchvision.models._meta import _KINETICS400_CATEGORIES

from video_gn.errors import CheckpointError
from video_gn.lists.class_names import kinetics400, read_labels


def test_kinetics_names_are_torchvisions():
    assert list(kinetics400()) == _KINETICS400_CATEGORIES


@pytest.mark.parametrize(
    "text",
    ["a\nb b\nc\n", "\ufeffa\r\nb b\r\nc", '["a", "b b", "c"]', json.dumps({'"b b"': 1, "c": 2, "a": 0})],
)
def test_labels_of_a_file(tmp_path, text):
    (tmp_path / "l").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "l") == ("a", "b b", "c")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a\n\nb\n", r"l:2: is empty"),
        ("a\nb\na\n", "the label 'a' stands at numbers 0 and 2"),
        ("", "holds no labels"),
        ("[1, 2]", "must be a list of names"),
        ('{"a": 0, "b": 2}', "from 0 without gaps"),
        ("[1, ", "is no JSON"),
        (b"\xff\xfe\x00", "cannot be read as a list of labels"),
        (None, "cannot be read as a list of labels"),
    ],
)
def test_what_is_no_list_of_labels(tmp_path, text, match):
    if text is not None:
        (tmp_path / "l").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=match):
        read_labels(tmp_path / "l")
