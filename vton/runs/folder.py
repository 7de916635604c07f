"""The run folder `runs/<name>/`: what a run is made of and what it leaves behind.

config.yaml, environment.json           settings, commit and package versions
data.json                               where the training pairs lay, how many, their digest, and
                                        where masks, warps, captions and LoRA's base came from
codec/                                  the codec, if it was fitted for this run
checkpoints/                            last.ckpt, best.ckpt, weights.safetensors; with
                                        train.keep_last or train.keep_best above 1 also
                                        last_<step>.ckpt and best_<step>.ckpt; of sharded runs also
                                        last_<step>.pieces/, the tensors of a last.ckpt
training.json                           written when training is done: steps, samples in each over
                                        all processes, wall time over all restarts, peak memory,
                                        every train.steps that a cosine was drawn for
tensorboard/                            scalars and pictures of the training
predictions/<order>/<pair>.png          sampled pictures
results.json, pictures_<order>.png      the rows of an evaluation and its picture grids

The upper stages of a cascade are run folders in that of its first: `runs/<name>/<stage>/`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from glob import glob
from pathlib import Path

from filelock import FileLock, Timeout

from vton import registry
from vton.config import ExperimentConfig, flatten, load_file, to_yaml
from vton.errors import UserError
from vton.files import write_atomically
from vton.metrics.results import versions

# Settings that change nothing beyond the order of sums, and which step becomes best.ckpt.
NO_EFFECT = (
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
# Settings that may differ between a run's start and its continuation, because they don't change
# what a step learns. Batches and processes may be cut otherwise as long as the global batch stays,
# which train() compares with the checkpoint's. More steps are more of the same under a constant
# learning rate. Under a cosine they follow another curve from there on, which is allowed but said:
# on screen, in training.json and in every row (planned_steps).
RESUMABLE = (
    *NO_EFFECT,
    "trainer",
    "eval",
    "sampler",
    "data.limit_test",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.global_batch",
    "train.non_finite",
)


class RunFolder:
    """Paths of one run. Nothing is created before `start`."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.data = self.path / "data.json"
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
        """The run below `runs` whose checkpoint is newest, of a model if one is named.

        Raises UserError if there is none, ConfigError for an unknown model.
        """
        if model:
            registry.config_class(model)
        trained = []
        # The glob module enters folders that are links, to another disk for instance.
        for path in glob("**/config.yaml", root_dir=runs, recursive=True):
            run = RunFolder(Path(runs, path).parent)
            if run.has_checkpoint:
                trained.append(run)
        for run in sorted(trained, key=RunFolder.trained_at, reverse=True):
            if not model or run.load_config().model.name == model:
                return run
        wanted = f" of {model}" if model else ""
        raise UserError(
            f"No trained run{wanted} under {runs}/. "
            f"Start one: make train MODEL={model or 'gardiff'}."
        )

    def trained_at(self) -> float:
        """When the newest checkpoint was written, in seconds; there must be one."""
        checkpoints = [path for path in (self.last, self.weights) if path.exists()]
        return max(path.stat().st_mtime for path in checkpoints)

    def require_same(self, config: ExperimentConfig) -> None:
        """Raise UserError, naming the keys that differ, if the folder holds another experiment."""
        if not self.config.exists():
            return
        stored = load_file(self.config)
        differing = differences(stored, config)
        before, now = stored.train.precision, config.train.precision
        if differing == [f"train.precision: {before} -> {now}"]:  # on another machine, for instance
            raise UserError(
                f"{self.path} was trained in {before}, this command asks for {now}. Go on with "
                f"train.precision={before}, or name another run (name=...)."
            )
        if differing:
            raise UserError(
                f"{self.path} holds another experiment ({'; '.join(differing[:5])}). "
                "Give this one a name (name=...) or remove the folder."
            )

    def start(self, config: ExperimentConfig, settings: str = "") -> None:
        """Write configuration and environment. Raises UserError as `require_same`.

        settings: the text of config.yaml; by default the whole configuration
        """
        self.require_same(config)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, settings or to_yaml(config))
        write_atomically(self.environment, json.dumps(environment(), indent=2))

    def take_back(self) -> None:
        """Undo `start` where nothing was fitted or trained since."""
        if self.has_checkpoint or (self.codec / "done").exists():
            return
        for file in (self.data, self.environment, self.config):
            file.unlink(missing_ok=True)
        self._remove_if_empty(self.checkpoints)

    def remove_partial(self) -> None:
        """Remove what a killed training has left of a checkpoint that it was writing."""
        for partial in self.checkpoints.glob(".*"):
            if partial.is_file():
                partial.unlink()

    def compare_data(
        self, root: str, pair_ids: Sequence[str], learned_from: Mapping[str, str]
    ) -> str:
        """What is to be said about going on with these training pairs, "" for nothing.

        learned_from: what settings do not tell, by name: which masks, warps and captions, and which
            weights lie below LoRA's

        Raises UserError where they are not those that the run has learned from: places of the
        training stream, which a checkpoint counts, would mean other pairs.
        """
        if not self.data.exists() or not (self.has_checkpoint or (self.codec / "done").exists()):
            return ""
        n, digest, where, _ = self._remembered_data()
        if digest != digest_of_list(pair_ids):
            raise UserError(
                f"{self.path} was trained on another list of pairs: {n:,} of {where}, now "
                f"{len(pair_ids):,} of {root}. Restore that list, or name another run (name=...)."
            )
        self.require_same_sources(learned_from)
        if where != root:
            return f"{self.path} goes on with the pictures of {root}; it began with {where}."
        return ""

    def require_same_sources(self, now: Mapping[str, str]) -> None:
        """Raise UserError if any of these is not what the run has learned from.

        now: as learned_from of `compare_data`, or some of it
        """
        if not self.data.exists():
            return
        *_, before = self._remembered_data()
        changed = []
        for name, source in now.items():
            if before.get(name, source) != source:  # older runs remember none
                changed.append(f"{name} was {before[name]}, now {source}")
        if changed:
            raise UserError(
                f"{self.path} has learned from other files: {'; '.join(changed)}. Restore them, or "
                "name another run (name=...)."
            )

    def _remembered_data(self) -> tuple[int, str, str, dict[str, str]]:
        """Pairs, digest, root and sources of data.json. Raises UserError for a broken file."""
        try:
            known = json.loads(self.data.read_text(encoding="utf-8"))
            sources = dict(known.get("learned_from", {}))
            return known["pairs"], known["sha256"], known["root"], sources
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self.data} is not readable ({error}). Remove it; it is written again."
            ) from None

    def remember_data(
        self, root: str, pair_ids: Sequence[str], learned_from: Mapping[str, str]
    ) -> None:
        """Write data.json."""
        known = {
            "root": root,
            "pairs": len(pair_ids),
            "sha256": digest_of_list(pair_ids),
            "learned_from": dict(learned_from),
        }
        write_atomically(self.data, json.dumps(known, indent=1))

    def _remove_if_empty(self, folder: Path) -> None:
        with suppress(OSError):
            folder.rmdir()

    @contextmanager
    def training_lock(self) -> Iterator[None]:
        """Keep other trainings out of the folder, and what prepares one. Raises UserError where
        one is under way.

        The lock is the operating system's, on .train.lock, and ends with this process, however that
        ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock(
            ".train.lock",
            f"Another process is training in {self.path}, or prepares to. "
            "Let it finish or end it, or name another run (name=...).",
        ):
            try:
                yield
            finally:
                if not self.config.exists():  # nothing was started
                    (self.path / ".train.lock").unlink(missing_ok=True)
                    self._remove_if_empty(self.path)

    def evaluation_lock(self) -> AbstractContextManager:
        """Keep other evaluations out of the folder: their pictures would mix with this one's.

        Raises UserError where one is under way.
        """
        return self._lock(
            ".eval.lock",
            f"Another process is evaluating {self.path}. Let it finish or end it.",
        )

    def _lock(self, name: str, refusal: str) -> AbstractContextManager:
        try:
            return FileLock(self.path / name).acquire(timeout=0)
        except Timeout:
            raise UserError(refusal) from None

    def finish(self, training: dict) -> None:
        """Write training.json: the last thing that training does."""
        write_atomically(self.training, json.dumps(training, indent=1))

    def trained(self) -> dict:
        """training.json: steps, global_batch, seconds, peak_memory_gib, planned_steps.

        {} before training is done, and for imports. Raises UserError for a broken file.
        """
        if not (self.weights.exists() and self.training.exists()):
            return {}
        try:
            return dict(json.loads(self.training.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self.training} is not readable ({error}). "
                "Remove it; the same `make train` writes it again."
            ) from None

    def load_config(self, *overrides: str) -> ExperimentConfig:
        """The run's settings with overrides on top, as `load_file` takes them."""
        if not self.config.exists():
            raise UserError(
                f"{self.path} is not a run folder (no config.yaml). "
                f"Known runs: {neighbours(self.path)}."
            )
        return load_file(self.config, *overrides)


def digest_of_list(names: Sequence[str]) -> str:
    """SHA-256 of names in their order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def neighbours(path: Path) -> str:
    """The run folders beside `path`."""
    names = sorted(str(config.parent) for config in path.parent.glob("*/config.yaml"))
    return ", ".join(names) or "none"


def differences(
    old: ExperimentConfig, new: ExperimentConfig, allowed: Sequence[str] = RESUMABLE
) -> list[str]:
    """`key: old -> new` of every setting that differs, unless it or its section is allowed to."""
    before, after = flatten(asdict(old)), flatten(asdict(new))
    differing = []
    for key in sorted(before.keys() | after.keys()):
        if is_part_of(key, allowed):
            continue
        if before.get(key) != after.get(key):
            differing.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    return differing


def is_part_of(key: str, names: Sequence[str]) -> bool:
    """Whether a setting is one of these, or lies in a section among them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def environment() -> dict:
    """Commit and versions that a number depends on."""
    return {
        "commit": git_commit(),
        "machine": platform.machine(),
        "versions": versions(),
    }


def git_commit() -> str:
    """HEAD of this code's checkout, with '-dirty' when files differ; 'unknown' without one."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", Path(__file__).resolve().parent, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
