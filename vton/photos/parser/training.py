"""Training of the small parser: rendered pictures, varied anew each time, in one process.

Everything follows from the seed: on one machine and with one thread, the same command writes the
same bytes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vton.data import labels
from vton.data.synthetic.writing import RENDERER_VERSION
from vton.files import file_digest
from vton.photos.parser.network import HEIGHT, STRIDE, WIDTH, SmallParser, save
from vton.photos.parser.rendered import Example, Rendered
from vton.photos.parser.varied import Examples, heat, pixels, varied
from vton.progress import Progress, track

SIGMA = 0.9  # of a joint's target, in cells of its map
WARM_UP = 0.05  # share of the horizon


@dataclass(frozen=True)
class Plan:
    """What the shipped file was trained with."""

    seed: int = 19
    pictures: int = 2000
    steps: int = 604
    horizon: int = 900  # steps that the cosine of the learning rate is laid out for
    cooldown: int = 24  # last steps, over which it falls to nothing
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
    torch.manual_seed(plan.seed)
    network = SmallParser().train().to(memory_format=torch.channels_last)
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=plan.lr,
        weight_decay=plan.weight_decay,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, plan))
    weights = label_weights(examples)
    generator = torch.Generator().manual_seed(plan.seed)
    order = _endless(len(examples), generator)
    losses = torch.zeros(3)

    def note() -> str:
        return "losses: labels {:.3f}, parts {:.3f}, joints {:.3f}".format(*losses.tolist())

    with Progress("Training", plan.steps, "step", note=note) as bar:
        for step in range(plan.steps):
            batch = collate([examples[next(order)] for _ in range(plan.batch)])
            batch = varied(batch, generator)
            # Half the time where the processor multiplies in bfloat16.
            with torch.autocast("cpu", torch.bfloat16):
                parts = loss_parts(network, batch, weights)
            loss = parts[0] + plan.parts_weight * parts[1] + plan.joints_weight * parts[2]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses = losses.lerp(parts.detach(), 0.02 if step else 1.0)
            bar.advance()
    facts = asdict(plan) | {
        "renderer": RENDERER_VERSION,
        "torch": torch.__version__,
        "losses": [round(value, 4) for value in losses.tolist()],
    }
    save(network.eval(), path, facts)
    return file_digest(path)


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
    """Of the learning rate: a short rise, half a cosine, and a straight fall at the end."""
    rise = max(1, round(WARM_UP * plan.horizon))
    if step < rise:
        return (step + 1) / rise
    cosine = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, plan.horizon - rise)))
    return cosine * min(1.0, (plan.steps - step) / plan.cooldown)


def _endless(count: int, generator: torch.Generator):
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
