"""Digests of what short trainings leave behind, to show that a change of the code changed no
number.

    python scripts/digests.py write before.json     # on the commit before the change
    python scripts/digests.py check before.json     # on the commit after it, on the same machine

Each case is trained for 25 steps of its tiny preset on one thread, drawn and scored. Its digests
cover the trained weights, the pictures and the metrics. They hold on one kind of processor and one
version of torch only, which is why this is a script and not a test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = {
    "gardiff": ["model=gardiff"],
    "gardiff-release": ["model=gardiff", "model.mode=release"],
    "gardiff-legacy12": ["model=gardiff", "model.mode=legacy12"],
    "gardiff-decoupled": ["model=gardiff", "model.mode=decoupled"],
    "catvton": ["model=catvton"],
    "idm_vton": ["model=idm_vton"],
    "imagdressing": ["model=imagdressing"],
    "ladi_vton": ["model=ladi_vton"],
    "leffa": ["model=leffa"],
    "stableviton": ["model=stableviton"],
    "tryondiffusion": ["model=tryondiffusion"],
    "tryondiffusion-sr256": ["model=tryondiffusion", "model.stage=sr256"],
    "warp": ["model=warp"],
}
SETTINGS = [
    "train.steps=25",
    "train.batch_size=4",
    "train.picture_every=10",
    "train.checkpoint_every=10",
    "data.synthetic.train=32",
    "data.synthetic.test=8",
    "eval.batch_size=4",
]
NAMES = {
    "tryondiffusion-sr256": "tryondiffusion"
}  # an upper stage lies in the run folder of its cascade


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("file", type=Path, help="JSON file of digests")
    parser.add_argument(
        "--checkout", type=Path, default=REPOSITORY, help="run this copy of the repository instead"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        found = {case: digests(case, args.checkout, Path(folder)) for case in args.only}
    if args.action == "write":
        args.file.write_text(json.dumps(found, indent=1) + "\n")
        return
    expected = json.loads(args.file.read_text())
    different = []
    for case, parts in found.items():
        for part, digest in parts.items():
            if digest != expected.get(case, {}).get(part):
                different.append(f"{case} {part}")
    for name in different:
        print(f"different: {name}")
    print(f"{len(found)} cases, {len(different)} digests differ.")
    sys.exit(bool(different))


def digests(case: str, checkout: Path, folder: Path) -> dict[str, str]:
    """Train, draw and score one case below `folder`; SHA-256 digests by name."""
    name = NAMES.get(case, case)
    run = folder / "runs" / name
    if case != name and not run.exists():  # the stage whose pictures it enlarges
        vton(checkout, folder, "train", *CASES[name], *SETTINGS, f"name={name}")
    vton(checkout, folder, "train", *CASES[case], *SETTINGS, f"name={name}")
    if case != name:
        run = run / case.removeprefix(f"{name}-")
    vton(checkout, folder, "eval", "--run", str(run))

    pictures = hashlib.sha256()
    for path in sorted(run.glob("predictions/**/*.png")):
        pictures.update(path.relative_to(run).as_posix().encode() + path.read_bytes())
    rows = json.loads((run / "results.json").read_text())
    metrics = [[row["model"], row["order"], row["region"], row["metrics"]] for row in rows]
    found = {
        "weights": sha256((run / "checkpoints" / "weights.safetensors").read_bytes()),
        "pictures": pictures.hexdigest(),
        "metrics": sha256(json.dumps(metrics).encode()),
    }
    print(case, {part: digest[:12] for part, digest in found.items()}, flush=True)
    return found


def vton(checkout: Path, folder: Path, *arguments: str) -> None:
    """Run a command of the checkout in `folder`, on one thread."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vton", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
