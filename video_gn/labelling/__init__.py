"""Labels for many videos: lists, parts, lines of results that a stopped run goes on from, and their merge.

Importing this package, and the options of its command line, costs no import of torch.
"""
