"""Clips for training and views for tests, and the loaders that read them."""
