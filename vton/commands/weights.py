"""`vton weights`: fetch and check the pretrained networks of metrics."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from vton.weights.fetch import USUAL, fetch
from vton.weights.metric_networks import fetched_folder


def run(args: Namespace) -> None:
    folder = Path(args.to) if args.to else fetched_folder()
    for path, outcome in fetch(args.names or USUAL, folder):
        print(f"{path}: {outcome}", flush=True)
