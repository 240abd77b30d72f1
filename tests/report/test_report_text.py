import math

from markupsafe import Markup

from video_gn.report.text import esc, file_size, percent, shorten, whole
from video_gn.shown import count


def test_escaping_and_words():
    assert esc('<a href="x">&\'') == "&lt;a href=&#34;x&#34;&gt;&amp;&#39;"
    assert esc(Markup("<b>")) == "<b>"
    assert esc("a\tb\n\x00\x9f\udce9\ud800\ufffe") == "a\tb\n\\x00\\x9f\\xe9\\ud800\\ufffe"
    assert percent(0.7349) == "73.5%"
    assert percent(None) == percent(math.nan) == "–"
    assert whole(19761) == "19,761"
    assert [file_size(size) for size in (0, 999, 4100, 2_000_000)] == ["0 B", "999 B", "4.1 kB", "2.0 MB"]
    assert count(1, "video") == "1 video"
    assert count(19761, "video") == "19,761 videos"
    assert count(2, "class", "classes") == "2 classes"
    assert shorten("abcdef", 1000, 11) == "abcdef"
    assert shorten("abcdef" * 9, 40, 11) == "abcde…"
    assert shorten("走路跑步跳跃", 40, 11) == "走路跑…"
