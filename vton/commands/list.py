"""`vton list`: the names that can be chosen, without importing torch."""

from __future__ import annotations

import json
from argparse import Namespace

from vton import registry
from vton.config import choices


def run(args: Namespace) -> None:
    groups = {
        "models": registry.names(),
        "warps": registry.names("warp"),
        "preset": choices("preset"),
        "data": choices("data"),
        "trainer": choices("trainer"),
        "ablation": choices("ablation"),
    }
    if args.json:
        print(json.dumps(groups, indent=2))
        return
    for group, names in groups.items():
        print(f"{group + ':':10}{' '.join(names)}")
