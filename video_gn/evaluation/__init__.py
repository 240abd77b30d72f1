"""Scores of views, accuracies, and the files of a test or prediction."""
