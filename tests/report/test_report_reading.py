import pytest

from video_gn.report.reading import rank_in_top5, read_predictions


def test_predictions_are_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "video,label,pred,score,top5,num_views\n"
        "a.mp4,x,x,0.75,x|y|z,10\n"
        "b.mp4,,z,0.5,z|x|y,10\n"
        '"c, d.mp4",x,y,0.25,y|z|x,30\n'
        "e.mp4,w,y,0.5,y|z|x,30\n"
    )
    found = read_predictions(path)
    assert found.videos == ["a.mp4", "b.mp4", "c, d.mp4", "e.mp4"]
    assert found.classes == ["w", "x", "y", "z"]
    assert found.labels.tolist() == [1, -1, 1, 0]
    assert found.preds.tolist() == [1, 3, 2, 2]
    assert found.scores.tolist() == [0.75, 0.5, 0.25, 0.5]
    assert found.ranks.tolist() == [1, 0, 3, 0]
    assert (found.num_labelled, found.num_correct) == (3, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,b,c", "line 2: a row must have 6 fields, got 3"),
        ("a,b,c,high,c|b,1", "line 2: could not convert string to float: 'high'"),
    ],
)
def test_bad_rows_of_predictions(tmp_path, row, message):
    path = tmp_path / "p.csv"
    path.write_text(f"video,label,pred,score,top5,num_views\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


def test_rank_in_top5():
    assert rank_in_top5("", "a", "a|b") == 0
    assert rank_in_top5("a", "a", "a|b") == 1
    assert rank_in_top5("c", "a", "a|b|c|d|e") == 3
    assert rank_in_top5("f", "a", "a|b|c|d|e") == 0
    assert rank_in_top5("b", "a", "a|bb|cb") == 0
    # Names with the separator inside are found; where one stands before, the place is too high at worst.
    assert rank_in_top5("a|b", "c", "c|a|b|d") == 2
    assert rank_in_top5("d", "c", "c|a|b|d|e|f") == 4
