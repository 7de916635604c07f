"""`vton train --dry-run`: the resolved configuration and environment.

It imports torch only where trainer=auto has to look for GPUs.
"""

from __future__ import annotations

import json
from argparse import Namespace

from vton.config import load, to_yaml
from vton.runs.folder import environment


def run(args: Namespace) -> None:
    config = load(*args.overrides)
    print(to_yaml(config) + json.dumps(environment(), indent=2))
