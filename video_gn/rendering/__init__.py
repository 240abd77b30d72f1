"""Draws on videos and makes pictures of timelines."""
