"""The evaluation: named protocols, metrics keyed by pair id, honest names, rows of results.json.

`Scorer` (scorer.py) measures predictions batch by batch, `compute_rows` (rows.py) makes rows of
what it has measured, and `Row` (results.py) is such a row. Nothing is imported here, so that
reading results needs no torch.
"""
