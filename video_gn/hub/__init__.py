"""Model cards, and models of the Hugging Face Hub: saved, looked at, pushed."""

from __future__ import annotations

from video_gn.hub.card import build_card
from video_gn.hub.sharing import push, save

__all__ = ["build_card", "push", "save"]
