"""`vton weights`: fetch and check the pretrained networks of metrics, and those of photographs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from vton.weights import photo_networks
from vton.weights.fetch import USUAL, fetch
from vton.weights.metric_networks import fetched_folder

PHOTO = "photo"  # the networks that the pose backend `blaze` reads photographs with


def run(args: Namespace) -> None:
    names = [name for name in args.names if name != PHOTO]
    if names or not args.names:
        folder = Path(args.to) if args.to else fetched_folder()
        for path, outcome in fetch(names or USUAL, folder):
            print(f"{path}: {outcome}", flush=True)
    if PHOTO in args.names:
        folder = Path(args.to) if args.to else photo_networks.fetched_folder()
        for path, outcome in photo_networks.fetch_photo(folder):
            print(f"{path}: {outcome}", flush=True)
