"""The run folder `runs/<name>/`: what a run is made of and what it leaves behind.

config.yaml  environment.json  codec/  checkpoints/{last.ckpt, best.ckpt, weights.safetensors}
training.json  tensorboard/  predictions/<order>/<pair>.png  results.json

training.json is written when training is done: its steps, its wall time over all restarts, its peak
memory, and every train.steps that a cosine was drawn for. With train.keep_last or train.keep_best
above 1 there are also checkpoints/{last,best}_<step>.ckpt. The upper stages of a cascade are run
folders in that of its first: `runs/<name>/<stage>/`.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from vton import registry
from vton.config import ExperimentConfig, flatten, load_file, to_yaml
from vton.errors import UserError
from vton.files import write_atomically
from vton.metrics.results import versions

# What changes no number at all.
UNSEEN = (
    "runs",
    "name",
    "compare",
    "trainer.threads",
    "data.workers",
    "data.pin_memory",
    "data.check",
    "data.cache",
    "data.root",
    "data.shards_kept",
    "data.encoded",
    "data.synthetic.workers",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_best",
    "train.picture_every",
    "train.pictures",
    "train.val_pairs",
    "eval.batch_size",
    "eval.pictures",
)
# What may differ between a run's start and its continuation, because it doesn't change what a step
# learns. Batches and processes may be cut otherwise as long as the global batch stays, which
# train() compares with the checkpoint's. More steps are more of the same under a constant learning
# rate; under a cosine they draw another curve from there on, which is worth having and said: on
# screen, in training.json and in every row (planned_steps).
FREE = (
    *UNSEEN,
    "trainer",
    "eval",
    "sampler",
    "data.limit_test",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.non_finite",
)


class RunError(UserError):
    """A run folder that is absent, incomplete or belongs to another experiment."""


class RunFolder:
    """Paths of one run. Nothing is created before `start`."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.codec = self.path / "codec"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.weights = self.checkpoints / "weights.safetensors"
        self.training = self.path / "training.json"
        self.tensorboard = self.path / "tensorboard"
        self.predictions = self.path / "predictions"
        self.results = self.path / "results.json"

    def grid(self, order: str) -> Path:
        """The picture grid of one order, named like its folder of predictions."""
        return self.path / f"pictures_{order}.png"

    def numbered(self, kind: str, step: int) -> Path:
        """A further checkpoint of a kind ("last" or "best"), by its step."""
        return self.checkpoints / f"{kind}_{step:08d}.ckpt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, of an unfinished training too."""
        return self.last.exists() or self.weights.exists()

    @classmethod
    def of(cls, config: ExperimentConfig) -> RunFolder:
        return cls(Path(config.runs) / config.name / config.model.upper_stage)

    @classmethod
    def newest(cls, runs: str | Path, model: str | None = None) -> RunFolder:
        """The run whose checkpoint is newest, of a model where one is named. Raises RunError when
        there is none, ConfigError for an unknown model.
        """
        if model:
            registry.config_class(model)
        found = [RunFolder(path.parent) for path in Path(runs).glob("**/config.yaml")]
        trained = [run for run in found if run.has_checkpoint]
        trained.sort(
            key=lambda run: max(p.stat().st_mtime for p in (run.last, run.weights) if p.exists())
        )
        for run in reversed(trained):
            if not model or run.load_config().model.name == model:
                return run
        wanted = f" of {model}" if model else ""
        raise RunError(
            f"No trained run{wanted} under {runs}/. Start one: make train MODEL={model or 'gardiff'}."
        )

    def start(self, config: ExperimentConfig) -> None:
        """Write configuration and environment, or check that the folder's run is the same
        experiment.

        Raises RunError naming the keys that differ.
        """
        if self.config.exists():
            differing = differences(load_file(self.config), config)
            if differing:
                raise RunError(
                    f"{self.path} holds another experiment ({'; '.join(differing[:5])}). "
                    "Give this one a name (name=...) or remove the folder."
                )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, to_yaml(config))
        write_atomically(self.path / "environment.json", json.dumps(environment(), indent=2))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other trainings out of the folder. Raises RunError where one is under way.

        The lock is the operating system's, on .train.lock, and ends with this process, however that
        ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.path / ".train.lock").acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"Another process is training in {self.path}. Let it finish or end it, or name another run (name=...)."
            ) from None
        with lock:
            yield

    def finish(self, training: dict) -> None:
        """Write training.json: the last thing that training does."""
        write_atomically(self.training, json.dumps(training, indent=1))

    def trained(self) -> dict:
        """training.json: steps, seconds, peak_memory_gib, planned_steps; {} before training is
        done, and for imports.

        Raises RunError for a broken file.
        """
        if not (self.weights.exists() and self.training.exists()):
            return {}
        try:
            return dict(json.loads(self.training.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunError(
                f"{self.training} is not readable ({error}). Remove it; the same `make train` writes it again."
            ) from None

    def load_config(self, *overrides: str) -> ExperimentConfig:
        if not self.config.exists():
            raise RunError(
                f"{self.path} is not a run folder (no config.yaml). Known runs: {known_runs(self.path)}."
            )
        return load_file(self.config, *overrides)


def differences(
    old: ExperimentConfig, new: ExperimentConfig, free: Sequence[str] = FREE
) -> list[str]:
    """`key: old -> new` of every setting that is not free; by default those that decide what is
    learned.
    """
    before, after = flatten(asdict(old)), flatten(asdict(new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(key == f or key.startswith(f + ".") for f in free)
    ]


def environment() -> dict:
    """Commit and versions that a number depends on."""
    return {
        "commit": git_commit(),
        "machine": platform.machine(),
        "versions": versions(),
    }


def git_commit() -> str:
    """HEAD of the checkout this code runs from, with '-dirty' when files differ; 'unknown' outside
    a checkout.
    """
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def known_runs(near: Path) -> str:
    names = sorted(str(path.parent) for path in near.parent.glob("*/config.yaml"))
    return ", ".join(names) or "none"
