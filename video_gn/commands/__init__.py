"""The commands of `video-gn`, a file each: its parser and what it does."""
