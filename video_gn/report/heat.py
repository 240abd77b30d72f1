"""Pictures of where the network looks in a few of a test's videos: it is run on them again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from video_gn.errors import DecodeError
from video_gn.report.analysis import Predictions
from video_gn.report.reading import IN_TEST, Run, value_of
from video_gn.report.strips import Strip, as_strip
from video_gn.report.text import percent
from video_gn.shown import shown

if TYPE_CHECKING:
    from video_gn.evaluation.predictor import Predictor

log = logging.getLogger(__name__)

# px of a picture: shown 600 px wide, its letters can be read. In the page some 75 kB, of noise 300 kB.
_WIDTH = 900
# A larger difference to the test's score is not that of the arithmetic.
_SAME = 0.02


def load_explained(run: Run) -> Predictor:
    """The tested network, or the run's best one if that is not there, with the test's clips and crops.

    CheckpointError or RunError if there is none, or it cannot be read, ConfigError if it cannot be explained.
    """
    from video_gn.evaluation.predictor import Predictor
    from video_gn.explaining import explained_net

    tested = run.test.get("checkpoint")
    crops = value_of(run.later.get(IN_TEST) or run.config, "data.views.crops")
    predictor = Predictor.from_checkpoint(
        tested if isinstance(tested, str) and Path(tested).is_file() else run.directory,
        num_clips=int(run.number("num_clips") or 0) or None,
        crops=crops if isinstance(crops, str) else None,
    )
    explained_net(predictor)
    return predictor


def explain_videos(predictor: Predictor, predictions: Predictions, places: Sequence[int]) -> dict[int, Strip]:
    """A picture for each of the places in predictions.csv: heat for the predicted class, and which seconds it needs."""
    from video_gn.explaining import draw_strip, explain

    found: dict[int, Strip] = {}
    for number, place in enumerate(places):
        video, score = predictions.videos[place], float(predictions.scores[place])
        log.info("explaining %d of %d: %s", number + 1, len(places), shown(video))
        try:
            explanation = explain(predictor, video, predictions.classes[predictions.preds[place]])
            picture = draw_strip(explanation).convert("RGB")
        except DecodeError as error:
            found[place] = Strip(problem=error.reason)
            continue
        note = ""
        if abs(explanation.score - score) > _SAME:
            note = f"it now has {percent(explanation.score)}: another checkpoint, or other clips"
        size = _WIDTH, round(picture.height * _WIDTH / picture.width)
        found[place] = as_strip(picture.resize(size))._replace(problem=note)
    return found
