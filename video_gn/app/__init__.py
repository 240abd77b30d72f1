"""A page and a REST route that label a video with a checkpoint, from one local process."""
