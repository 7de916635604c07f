"""`vton info`: parameters, FLOPs and memory of the configured model, counted in vton/cost."""

from __future__ import annotations

import json
from argparse import Namespace

from vton.config import load, upper_stages
from vton.cost.counting import describe
from vton.cost.tables import print_costs


def run(args: Namespace) -> None:
    rows = describe(load(*args.overrides), args.gpus)
    upper = upper_stages(*args.overrides)
    if upper:
        rows["upper_stages"] = [describe(config, args.gpus) for config in upper]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print_costs(rows)
