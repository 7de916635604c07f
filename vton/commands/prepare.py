"""`vton prepare`: turn photographs into a data folder, or train the small parser."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import get_args

from vton.config import ConfigError, MaskRule, nearest
from vton.errors import UserError
from vton.photos.backends import Networks
from vton.photos.errors import shown
from vton.photos.person import SIZE
from vton.photos.plan import plan
from vton.photos.prepare import Outcome, prepare
from vton.photos.reading import SUFFIXES


def run(args: Namespace) -> int:
    if args.train:
        train_parser(Path(args.train))
        return 0
    if not args.photos or not args.out:
        raise UserError("vton prepare needs a folder of photos and --out FOLDER.")
    size = picture_size(args.size)
    planned = plan(
        Path(args.photos),
        pairs=Path(args.pairs) if args.pairs else None,
        captions=Path(args.captions) if args.captions else None,
        category=args.category,
        layout=args.layout,
        size=size,
        choice=args.person,
        rule=mask_rule(args.mask_rule),
    )
    networks = chosen_networks(args)
    if planned.unread:
        names = ", ".join(shown(path.name) for path in planned.unread[:3])
        more = f" and {len(planned.unread) - 3} more" if len(planned.unread) > 3 else ""
        endings = ", ".join(SUFFIXES)
        print(
            f"note: not read: {names}{more}. Pictures must end in {endings}, and lie in persons/, "
            "garments/, or garments/CATEGORY/.",
            file=sys.stderr,
        )
    outcome = prepare(planned, networks, Path(args.out), args.keep_going)
    report(outcome, planned.settings.layout)
    return int(bool(outcome.failed))


def chosen_networks(args: Namespace) -> Networks:
    """The backends of the command line; prints their licences once."""
    networks = Networks.named(
        parser=args.parser,
        pose=args.pose,
        densepose=args.densepose,
        garment_mask=args.garment_mask,
    )
    for line in networks.licences:
        print(f"licence of {line}", file=sys.stderr)
    return networks


def mask_rule(name: str) -> MaskRule:
    """Raises ConfigError for a rule that does not exist."""
    rules = get_args(MaskRule)
    if name not in rules:
        raise ConfigError(f"--mask-rule {name} does not exist. {nearest(name, rules)}")
    return name


def picture_size(text: str) -> tuple[int, int]:
    """Height and width of "HxW". Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if not match:
        raise ConfigError(f"--size {text}: expected HEIGHTxWIDTH, such as {SIZE[0]}x{SIZE[1]}.")
    height, width = int(match[1]), int(match[2])
    if not (64 <= height <= 4096 and abs(width / height - 0.75) < 0.01):
        raise ConfigError(
            f"--size {text}: pictures of these layouts are 4:3, from 64x48 to 4096x3072."
        )
    return height, width


def report(outcome: Outcome, layout: str) -> None:
    """Print warnings and failures, what was written, and how to use it."""
    for source, warnings in outcome.warnings.items():
        for warning in warnings:
            print(f"warning: {shown(source)}: {warning}.")
    for message in outcome.failed.values():
        print(f"failed: {message}")
    kept = f", {outcome.kept} of which were ready before" if outcome.kept else ""
    photos = outcome.done + outcome.kept
    print(f"{outcome.folder}: {outcome.pairs} pairs of {photos} photos{kept}.")
    print(f"Use it: data={layout} data.root={outcome.folder}")


def train_parser(path: Path) -> None:
    import torch

    from vton.photos.parser.training import train

    torch.set_num_threads(1)  # sums of several threads may differ from run to run
    digest = train(path)
    print(f"{path}: SHA-256 {digest}")
