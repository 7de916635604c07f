"""Every architecture learns a handful of pairs by heart."""

import pytest

from tests.batches import random_batch, tiny_module
from tests.sweeps import soon_and_later


@pytest.mark.parametrize("model", soon_and_later())
def test_it_overfits_four_pairs(model):
    module = tiny_module(model, "train.lr=2e-3", "train.warmup_steps=1", "train.schedule=constant")
    optimizer = module.configure_optimizers()["optimizer"]
    batch, losses = random_batch(4), []
    for step in range(30):
        batch.position = [4 * step + i for i in range(4)]
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])
