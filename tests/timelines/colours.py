"""Videos of plain colours, and a predictor that knows them."""

from fractions import Fraction

import av
import numpy as np
import torch

from video_gn.data.crops import TestCrops
from video_gn.data.dataset import ClipConfig
from video_gn.evaluation.predictor import Predictor

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


class ColourPredictor(Predictor):
    """Scores a window by how many of its frames are red, green or blue; notes how many views it is given at a time."""

    def __init__(self, *, num_frames=8, stride=2, target_fps=None, crops="center", num_clips=4):
        self.clip = ClipConfig(num_frames=num_frames, stride=stride, target_fps=target_fps)
        self.crops = TestCrops(crops, short_side_px=16, crop_px=16)
        self.num_clips, self.spacing = num_clips, "nonlocal"
        self.classes, self.device, self.checkpoint = list(COLOURS), torch.device("cpu"), None
        self.given = []

    def scores(self, frames_VTCHW, *, video="", views_per_forward=10):
        self.given.append(len(frames_VTCHW))
        best_VT = frames_VTCHW.float().mean((3, 4)).argmax(2)
        return torch.nn.functional.one_hot(best_VT, 3).float().mean(1).numpy()


def write_colours(path, parts, *, fps=25, pts_ms=None, audio_from_ms=None, size=(32, 24)):
    """Write a video of parts (colour, number of frames), each frame at its time in `pts_ms` if there are any.

    `audio_from_ms`: silence of 100 ms from then on, for a file whose video begins later than its sound.
    """
    names = [name for name, count in parts for _ in range(count)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        sound = container.add_stream("aac", rate=48_000, layout="mono") if audio_from_ms is not None else None
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps if pts_ms is None else 1000)
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, 48 * audio_from_ms
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        for number, name in enumerate(names):
            picture = np.empty((size[1], size[0], 3), dtype=np.uint8)
            picture[:] = COLOURS[name]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if pts_ms is None else pts_ms[number]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
