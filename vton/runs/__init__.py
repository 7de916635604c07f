"""Runs: their folders and checkpoints, and how data, codec and module of a run are put together."""
