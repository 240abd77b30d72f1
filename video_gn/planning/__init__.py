"""Predicts what a training will need: memory, cores, bandwidth, hours and disk."""
