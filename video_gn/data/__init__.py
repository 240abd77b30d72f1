"""Lists of videos, clips of them, and the loaders that training and tests read."""
