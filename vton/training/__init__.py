"""Training: run folder, trainer assembly, EMA, callbacks, resume."""
