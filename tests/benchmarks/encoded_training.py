"""Training samples per second of tiny GarDiff with `vton data cache` and without, in one process.

    python -m tests.benchmarks.encoded_training            # as the tiny preset is
    python -m tests.benchmarks.encoded_training --frozen   # as in the paper

The tiny preset has a linear codec and trains CLIP along; in the paper AutoencoderKL and CLIP are
frozen. Augmentation is off in both, for what it changes cannot be computed ahead. Steps with and
without alternate on the same batches and weights: forward, backward, AdamW. Beside them stands
where a step's time goes: the loader, which works in this process, the encoders' readings, and the
rest: the UNet, the appearance loss's decoding, backward and optimizer. Parts are in CPU seconds of
the process, which other processes on the core do not lengthen; `wall` is the clock's. `--frozen`
leaves the codec as
initialised: its cost is that of a trained one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vton.config import load
from vton.models.codecs import KLCodec, small_autoencoder
from vton.runs.assemble import data_module, prepare_run
from vton.runs.encodings import encode, use_encodings

PLAIN = (
    "data.augment.flip=0",
    "data.augment.colour=0",
    "data.synthetic.train=48",
    "data.synthetic.test=4",
    "data.synthetic.workers=1",
    "data.check=false",
    "codec.fit_images=96",
)
FROZEN = (
    "codec.name=kl",
    "codec.widths=[32,64,64]",
    "codec.channels=4",
    "codec.layers=1",
    "model.clip.trained=false",
)


def measured(module, optimizer, stream) -> dict[str, float]:
    """CPU seconds of one training step and of its parts, and the clock's seconds."""
    spent = {"readings": 0.0}
    inside = module.reading

    def reading(*arguments):
        start = time.process_time()
        result = inside(*arguments)
        spent["readings"] += time.process_time() - start
        return result

    wall, start = time.perf_counter(), time.process_time()
    batch = next(stream)
    spent["loader"] = time.process_time() - start
    module.reading = reading
    module.training_step(batch, 0).backward()
    del module.reading
    optimizer.step()
    optimizer.zero_grad()
    spent["step"] = time.process_time() - start
    rest = spent["step"] - spent["loader"] - spent["readings"]
    return spent | {"rest": rest, "wall": time.perf_counter() - wall}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--frozen", action="store_true", help="a KL codec and a frozen CLIP")
    parser.add_argument("--steps", type=int, default=9, help="of each kind")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        places = (
            f"runs={scratch}/runs",
            f"data.root={scratch}/data",
            f"data.encoded={Path(scratch) / 'encoded'}",
        )
        config = load(
            "model=gardiff", *PLAIN, *(FROZEN if args.frozen else ()), *places, *args.overrides
        )
        if args.frozen:
            config.codec.pretrained = scratch
            KLCodec(small_autoencoder(config.codec)).save(Path(scratch) / config.codec.subfolder)
        _, live, module = prepare_run(config)
        stored = data_module(config)
        start = time.perf_counter()
        encode(module, live)
        writing = time.perf_counter() - start
        use_encodings(module, stored)
        for data in (live, stored):  # decoded records are in memory, as after a first epoch
            for _ in data.listed_dataloader():
                pass
        optimizer = module.configure_optimizers()["optimizer"]
        streams = {"live": iter(live.train_dataloader()), "stored": iter(stored.train_dataloader())}
        steps: dict[str, list[dict[str, float]]] = {kind: [] for kind in streams}
        for _ in range(args.steps + 1):  # in turns
            for kind, stream in streams.items():
                steps[kind].append(measured(module, optimizer, stream))
    seconds = {kind: medians(own[1:]) for kind, own in steps.items()}  # the first warms up
    rates: dict[str, dict[str, float]] = {}
    ratios = {}
    for clock in ("step", "wall"):
        rates[clock] = {}
        for kind, parts in seconds.items():
            rates[clock][kind] = round(config.train.batch_size / parts[clock], 2)
        ratios[clock] = round(rates[clock]["stored"] / rates[clock]["live"], 2)
    report = {
        "samples_per_second": rates,
        "ratio": ratios,
        "seconds": seconds,
        "writing": round(writing, 2),
    }
    print(json.dumps(report))


def medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median seconds of each part of a step."""
    return {part: round(statistics.median(step[part] for step in steps), 4) for part in steps[0]}


if __name__ == "__main__":
    main()
