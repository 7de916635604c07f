"""Objective and sampler: they know the model contract, no network and no data."""
