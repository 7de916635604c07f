"""Training of the small parser: rendered pictures, varied anew each time, in one process.

Everything follows from the seed: on one processor, with one thread and one version of torch, the
same command writes the same bytes. What the file records of its pictures is the same everywhere.
A training that was stopped goes on where it last saved its state.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vton.data import labels
from vton.data.synthetic.writing import RENDERER_VERSION
from vton.files import file_digest, replacing
from vton.photos.parser.network import HEIGHT, STRIDE, WIDTH, SmallParser, save
from vton.photos.parser.rendered import Example, Rendered
from vton.photos.parser.varied import Examples, heat, pixels, varied
from vton.progress import Progress, track

SIGMA = 0.9  # of a joint's target, in cells of its map
WARM_UP = 0.03  # share of the horizon
SAVED_EVERY = 200  # steps between two savings of the state
COMPARED = 100  # of the first pictures the file records the digest


@dataclass(frozen=True)
class Plan:
    """What the shipped file was trained with."""

    seed: int = 19
    pictures: int = 5000
    steps: int = 1600
    horizon: int = 6000  # steps that the cosine of the learning rate is laid out for
    batch: int = 16
    lr: float = 2.5e-3
    weight_decay: float = 0.02
    parts_weight: float = 0.4
    joints_weight: float = 0.25


def train(path: Path, plan: Plan = Plan()) -> str:
    """Train a parser and write it. Returns the file's SHA-256."""
    data = Rendered(plan.seed, plan.pictures, (HEIGHT, WIDTH))
    rendering = track(range(plan.pictures), "Rendering", plan.pictures, "picture")
    examples = [data.example(index) for index in rendering]
    training = Training(plan, examples)
    state = path.with_name(f"{path.name}.state")
    training.resume(state)
    with Progress("Training", plan.steps, "step", training.step, training.note) as bar:
        while training.step < plan.steps:
            training.advance()
            bar.advance()
            if training.step % SAVED_EVERY == 0:
                training.save_state(state)
    facts = asdict(plan) | {
        "renderer": RENDERER_VERSION,
        "examples": digest_of(examples[:COMPARED]),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "losses": [round(value, 4) for value in training.losses.tolist()],
    }
    save(training.network.eval(), path, facts)
    state.unlink(missing_ok=True)
    return file_digest(path)


class Training:
    """A network on its way: everything that decides the next step."""

    def __init__(self, plan: Plan, examples: list[Example]):
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.examples = examples
        self.network = SmallParser().train().to(memory_format=torch.channels_last)
        decayed = [weight for weight in self.network.parameters() if weight.ndim > 1]
        others = [weight for weight in self.network.parameters() if weight.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            lr=plan.lr,
            weight_decay=plan.weight_decay,
            betas=(0.9, 0.98),
        )
        self.weights = label_weights(examples)
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.waiting: list[int] = []  # examples of this round that were not read yet
        self.step = 0
        self.losses = torch.zeros(3)  # running means of labels, parts and joints

    def advance(self) -> None:
        """One step of the optimizer."""
        plan = self.plan
        chosen = [self._next() for _ in range(plan.batch)]
        batch = varied(collate([self.examples[index] for index in chosen]), self.generator)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.lr * _share(self.step, plan)
        # Faster by a third where the processor multiplies in bfloat16.
        with torch.autocast("cpu", torch.bfloat16):
            parts = loss_parts(self.network, batch, self.weights)
        loss = parts[0] + plan.parts_weight * parts[1] + plan.joints_weight * parts[2]
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.losses = self.losses.lerp(parts.detach(), 0.02 if self.step else 1.0)
        self.step += 1

    def _next(self) -> int:
        if not self.waiting:
            self.waiting = torch.randperm(len(self.examples), generator=self.generator).tolist()
        return self.waiting.pop()

    def note(self) -> str:
        return "losses: labels {:.3f}, parts {:.3f}, joints {:.3f}".format(*self.losses.tolist())

    def save_state(self, path: Path) -> None:
        state = {
            "plan": asdict(self.plan),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "waiting": self.waiting,
            "step": self.step,
            "losses": self.losses,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> None:
        """Go on from a state of the same plan, if there is one."""
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["plan"] != asdict(self.plan):
            return
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.waiting, self.step, self.losses = state["waiting"], state["step"], state["losses"]


def digest_of(examples: list[Example]) -> str:
    """SHA-256 of pictures and annotations: tells whether two trainings read the same ones."""
    digest = hashlib.sha256()
    for example in examples:
        for values in (example.picture, example.parse, example.parts, example.joints):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def loss_parts(network: SmallParser, batch: Examples, weights: Tensor) -> Tensor:
    """(3,): of labels, of body parts and of joints."""
    picture = pixels(batch).contiguous(memory_format=torch.channels_last)
    label_logits, part_logits, places = network(picture)
    size = (HEIGHT // STRIDE, WIDTH // STRIDE)
    target = heat(batch.joints, size, SIGMA)
    return torch.stack(
        [
            F.cross_entropy(label_logits.float(), batch.parse, weights),
            F.cross_entropy(part_logits.float(), batch.parts[:, ::STRIDE, ::STRIDE]),
            -(target * places.float().log_softmax(2)).sum(2).mean(),
        ]
    )


def label_weights(examples: list[Example]) -> Tensor:
    """(22,): rare labels count more, by the square root of their share, four times at most."""
    counts = np.zeros(labels.COUNT)
    for example in examples:
        counts += np.bincount(example.parse.ravel(), minlength=labels.COUNT)
    share = counts / counts.sum()
    weights = np.sqrt(0.02 / np.maximum(share, 1e-4)).clip(0.5, 4)
    return torch.from_numpy(weights).float()


def collate(examples: list[Example]) -> Examples:
    """A batch of examples; a second person that a picture does not have has no valid joint."""
    persons = max(len(example.joints) for example in examples)
    joints = []
    for example in examples:
        missing = persons - len(example.joints)
        joints.append(np.pad(example.joints, ((0, missing), (0, 0), (0, 0))))
    pictures = torch.from_numpy(np.stack([example.picture for example in examples]))
    return Examples(
        pictures.permute(0, 3, 1, 2).float() / 255,
        torch.from_numpy(np.stack([example.parse for example in examples])).long(),
        torch.from_numpy(np.stack([example.parts for example in examples])).long(),
        torch.from_numpy(np.stack(joints)),
    )


def _share(step: int, plan: Plan) -> float:
    """Of the learning rate: a short rise, then half a cosine."""
    rise = max(1, round(WARM_UP * plan.horizon))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, plan.horizon - rise)))
