"""Labels many videos: lists, their parts, lines of results that a stopped run resumes from, and the merge."""
