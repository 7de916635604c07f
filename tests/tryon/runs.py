"""A run trained for two steps: its pictures are noise, its ways are not."""

from tests.running import trained


def tiny_run(folder, rendered, model="gardiff", *settings):
    return trained(
        model, folder, rendered, f"tiny-{model}",
        "train.steps=2", "sampler.steps=3", "train.picture_every=0", *settings,
    )  # fmt: skip
