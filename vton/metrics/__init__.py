"""The evaluation: named protocols, metrics keyed by pair id, honest names, rows of results.json.

`Scorer` (scorer.py) measures folders of PNG pictures against a test split; `Row` (results.py) is
what it reports. Nothing is imported here, so that reading results needs no torch.
"""
