"""Text files to rows: separators, quotes, headers, and errors that name the line."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_files import fails, rows, write

from video_gn.lists.read import read_manifest


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("slowfast.csv", "a/x.mp4 1\na/y.avi 0\n", [("a/x.mp4", "1"), ("a/y.avi", "0")]),
        ("mmaction.txt", "some/x y.mp4 1\nz.mp4 0", [("some/x y.mp4", "1"), ("z.mp4", "0")]),
        ("comma.csv", "x.mp4,jump high\na,b.mp4,run\n", [("x.mp4", "jump high"), ("a,b.mp4", "run")]),
        (
            "quoted.csv",
            '"x, 1.mp4","jump, high"\n"say ""hi"".mp4", run\n',
            [("x, 1.mp4", "jump, high"), ('say "hi".mp4', "run")],
        ),
        ("quoted.txt", '"x 1.mp4" 0\n', [("x 1.mp4", "0")]),
        ("tab.tsv", "x 1.mp4\tjump high\ny.MP4\trun\n", [("x 1.mp4", "jump high"), ("y.MP4", "run")]),
        ("semicolon.csv", "x, 1.mp4;1\ny.mkv;0\n", [("x, 1.mp4", "1"), ("y.mkv", "0")]),
        ("crlf.txt", "x.mp4 0\r\n\r\n   \r\n# a comment\r\n#\r\ny.mp4 0\r\n", [("x.mp4", "0"), ("y.mp4", "0")]),
        ("old_mac.txt", "x.mp4 0\ry.mp4 1\r", [("x.mp4", "0"), ("y.mp4", "1")]),
        ("bom.csv", "\ufeffpath,label\nx.mp4,run\n", [("x.mp4", "run")]),
        ("bom.txt", "\ufeffx.mp4 0\n", [("x.mp4", "0")]),
        ("odd_lines.txt", "x\x0by\u2028z.mp4 0\n", [("x\x0by\u2028z.mp4", "0")]),
        ("not_a_comment.txt", "#1/x.mp4 0\n", [("#1/x.mp4", "0")]),
        ("spaces.txt", "  x.mp4   0  \ny.mp4 0\n", [("x.mp4", "0"), ("y.mp4", "0")]),
        ("header.csv", "Path, Label\nx.mp4, run\n", [("x.mp4", "run")]),
        ("other_order.csv", "label,video\nrun,x.mp4\n", [("x.mp4", "run")]),
        ("header.tsv", "filename\tclass\nx.mp4\trun\n", [("x.mp4", "run")]),
        ("header.txt", "path label\nx y.mp4 run\n", [("x y.mp4", "run")]),
        ("quoted_header.txt", 'path label\n"x y.mp4" "run far"\n', [("x y.mp4", "run far")]),
        ("names_and_digits.txt", "x.mp4 run\ny.mp4 3\n", [("x.mp4", "run"), ("y.mp4", "3")]),
        ("only_paths.txt", "x y.mp4\nz, 1.mp4\n", [("x y.mp4", None), ("z, 1.mp4", None)]),
        ("only_paths_quoted.txt", '"x y.mp4"\n', [("x y.mp4", None)]),
        ("only_paths.csv", "path\nx.mp4\ny.mp4\n", [("x.mp4", None), ("y.mp4", None)]),
        ("no_labels.csv", "path,label\nx.mp4,\ny.mp4,\n", [("x.mp4", None), ("y.mp4", None)]),
        ("动作.txt", "动作/é.mp4 跑\n", [("动作/é.mp4", "跑")]),
    ],
)
def test_lists_by_hand(tmp_path, name, text, want):
    manifest = read_manifest(write(tmp_path / name, text))
    assert rows(manifest) == [(str(tmp_path / path), label) for path, label in want]
    named = {label for _, label in want} - {None}
    assert set(manifest.classes) == named or all(n.isdigit() for n in named)
    assert manifest.missing == len(want)  # none of these files was made


@pytest.mark.parametrize("separator", [" ", ",", "\t", ";"])
def test_separator_found_or_given(tmp_path, separator):
    path = write(tmp_path / "list.txt", f"a b.mp4{separator}1\nc.mp4{separator}0\n")
    assert read_manifest(path).records == read_manifest(path, separator=separator).records
    assert [r.label for r in read_manifest(path).records] == [1, 0]
    only_paths = write(tmp_path / "paths.txt", "a.mp4\nb.mp4\n")
    assert [r.label for r in read_manifest(only_paths, separator=separator).records] == [None, None]


def test_most_lines_choose_the_separator_and_the_other_lines_are_named(tmp_path):
    path = write(tmp_path / "list.txt", "a.mp4 1\nb.mp4,0\nc.mp4 0\n")
    fails(path, f"{path}:2: a line must be 'path label'", "got 'b.mp4,0'")


def test_first_bad_lines_are_named_and_the_rest_counted(tmp_path):
    path = write(tmp_path / "list.txt", "ok.mp4 1\n" + "".join(f"bad{i} 1\n" for i in range(9)))
    message = fails(path, f"{path}:2: ", f"{path}:6: ", "got 'bad0'", "and 4 more such lines")
    assert f"{path}:7" not in message
    assert len(message.splitlines()) == 6


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("empty.txt", "", ["at least one line, got none"]),
        ("blank.csv", "\n \n# only a comment\n", ["at least one line, got none"]),
        ("header_only.csv", "path,label\n", ["at least one line below its header"]),
        ("unknown_extension.txt", "x.mp4 0\ny.dat 0\n", [":2: ", "ends in .3g2 ", "got 'y.dat'"]),
        ("unknown_extension.csv", "path,label\nx.docx,0\n", [":2: path must end in one of", "got 'x.docx'"]),
        ("all_unknown.txt", "x.dat 0\n", [":1: ", "'path label'", "got 'x.dat'"]),
        ("nonsense.txt", "hello\n", [":1: ", "got 'hello'"]),
        ("label_with_space.txt", "x.mp4 riding a horse\n", [":1: ", "labels with spaces"]),
        ("raw_frames.txt", "videos/x 120 3\n", [":1: a line `folder num_frames label` must name a folder", "root"]),
        ("open_quote.csv", '"x.mp4,0\ny.mp4,0\n', [":1: the line cannot be read", "Close the quotes"]),
        ("open_quote_header.csv", 'path,label\n"x.mp4,0\n', [":2: the line cannot be read", "Close the quotes"]),
        ("no_label.csv", "x.mp4,0\ny.mp4,\n", [":2: a line must end in a label"]),
        ("no_label_tab.tsv", "x.mp4\t0\ny.mp4\t\n", [":2: a line must end in a label"]),
        ("empty_label.csv", "path,label\nx.mp4,a\ny.mp4,\n", [":3: label must be a class, got nothing"]),
        ("fields.csv", "path,label\nx.mp4,a,b\n", [":2: a line must have 2 fields like the header, got 3", "Quote"]),
        ("twice.csv", "path,label,label\nx.mp4,a,b\n", [":1: names of columns must be there and differ"]),
        ("nameless.csv", "path,,label\nx.mp4,,b\n", [":1: names of columns must be there and differ"]),
        ("start.csv", "path,start,end\nx.mp4,1,2\n", [":1: columns of segments must be called", "got 'start'"]),
        ("seconds.csv", "path,start_seconds\nx.mp4,soon\n", [":2: start_seconds and end_seconds must be numbers"]),
        ("backwards.csv", "path,start_seconds,end_seconds\nx.mp4,2,2\n", [":2: a segment must have 0 <= start"]),
        ("before.csv", "path,start_seconds\nx.mp4,-1\n", [":2: a segment must have 0 <= start"]),
        ("nan.csv", "path,start_seconds\nx.mp4,nan\n", [":2: a segment must have 0 <= start"]),
        ("inf.csv", "path,end_seconds\nx.mp4,inf\n", [":2: a segment must have 0 <= start"]),
        ("negative.txt", "x.mp4 -1\n", [":1: label must be", "got '-1'"]),
        ("huge.txt", "x.mp4 123456789\n", ["must be below 100,000 without classes, got 123456789"]),
        ("zero_byte.txt", "x.mp4 0\ny\0.mp4 0\n", [":2: the file must be text, got a zero byte"]),
        ("list.pkl", "[]", ["a list must end in one of", "got a file of another kind"]),
        ("video.mp4", "", ["a list must end in one of", "got a video"]),
        ("twins.txt", "x.mp4 0\ny.mp4 0\nx.mp4 0\n", [":3: a video must be listed once", "which line 1 has too"]),
        ("twins_otherwise.txt", "a/x.mp4 0\na//./x.mp4 1\n", [":2: a video must be listed once"]),
    ],
)  # fmt: skip
def test_bad_lists_name_file_and_line(tmp_path, name, text, parts):
    path = write(tmp_path / name, text)
    fails(path, str(path), *parts)


def test_other_encodings(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("x.mp4 0\nl'été.mp4 1\n".encode("latin-1"))
    fails(latin, f"{latin}:2: the text must be UTF-8, got the byte 0xe9", "Save the file as UTF-8")
    wide = write(tmp_path / "wide.txt", "x.mp4 0\n", "utf-16")
    fails(wide, f"{wide}:1: the text must be UTF-8")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda row: row[0],
    ),
    st.sampled_from([",", "\t", ";"]),
)
def test_any_quoted_csv_reads_back(tmp_path_factory, pairs, separator):
    """Whatever Python's csv writer quotes, with spaces off the fields' ends, is read as it was written."""
    directory = tmp_path_factory.mktemp("csv")
    pairs = [
        (f"d/{i}{name.strip().replace('/', '-')}.mp4", f"l{label.strip()}") for i, (name, label) in enumerate(pairs)
    ]
    if len({label.replace("_", " ") for _, label in pairs}) < len({label for _, label in pairs}):
        return  # two writings of one class
    with (directory / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
        writer.writerow(["path", "label"])
        writer.writerows(pairs)
    manifest = read_manifest(directory / "list.csv")
    assert rows(manifest) == [(f"{directory}/{path}", label) for path, label in pairs]
