"""Lists of videos: reading them, dividing them, and the names of their classes."""
