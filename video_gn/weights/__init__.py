"""Weights of every zoo: `load_into` puts them into a network, strictly, and says what it did."""

from video_gn.weights.formats import FORMATS, Preprocessing
from video_gn.weights.load import load_into
from video_gn.weights.report import LoadReport

__all__ = ["FORMATS", "LoadReport", "Preprocessing", "load_into"]
