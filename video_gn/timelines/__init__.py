"""What happens when in a video: the network's clip slid over it, its scores, and segments of one label."""
