"""`vton info`: parameters, FLOPs and memory of the configured model, counted in vton/cost."""

from __future__ import annotations

import json
from argparse import Namespace

from vton.commands.choice import say_trainer
from vton.config import load, upper_stages
from vton.cost.counting import describe
from vton.cost.tables import print_costs


def run(args: Namespace) -> None:
    config = load(*args.overrides)
    say_trainer(args.overrides)
    chosen = {"trainer": config.trainer.name, "precision": config.train.precision}
    rows = chosen | describe(config, args.gpus)
    upper = upper_stages(*args.overrides)
    if upper:
        rows["upper_stages"] = [describe(config, args.gpus) for config in upper]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"trainer={chosen['trainer']}, train.precision={chosen['precision']}")
        print_costs(rows)
