"""A trained warp from its run folder: as the data's source of warped garments, and as a baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vton import registry
from vton.data.derived.warp import rewarped, warp_source
from vton.data.record import mask, picture
from vton.data.sample import Category, TryOnBatch
from vton.data.transforms import normalise
from vton.files import file_digest
from vton.metrics.pictures import to_uint8
from vton.models.codecs import build_codec
from vton.runs.folder import RunError, RunFolder
from vton.weights.pretrained import load_state, read_safetensors


class RunWarp:
    """A WarpSource (vton.data.derived.warp). It works on the CPU, on one pair at a time, in
    whichever process asks.

    Raises RunError where `path` is not a finished run of a warp at `size` (height, width),
    WeightsError for broken weights.
    """

    def __init__(self, path: str | Path, size: tuple[int, int]):
        run = RunFolder(Path(path).expanduser())
        config = run.load_config()
        if config.model.kind != "warp":
            raise RunError(
                f"{path} is a run of {config.model.name}, not of a warp. Train one: make train MODEL=warp."
            )
        if not run.weights.exists():
            raise RunError(f"{run.weights} does not exist: {path} has not finished training.")
        if tuple(config.data.size) != tuple(size):
            trained, asked = ("x".join(map(str, pair)) for pair in (config.data.size, size))
            raise RunError(
                f"{path} was trained at {trained}, the data is {asked}; train a warp with this data.size."
            )
        config.model.perceptual.weight = 0.0  # its network is of use in training only
        module = registry.module_class(config.model.name)(config, build_codec(config.codec))
        load_state(module, read_safetensors(run.weights), run.weights)
        self.module = module.eval().requires_grad_(False)
        self.before = warp_source("geometric") if config.model.start == "geometric" else None
        self.name = f"learned:{path}, sha256 {file_digest(run.weights)[:16]}"

    def __str__(self) -> str:
        return self.name

    def put_on(self, batch: TryOnBatch) -> TryOnBatch:
        """The batch with this warp in the place of its own."""
        return self.module.put_on(rewarped(batch, self.before) if self.before else batch)

    def __call__(
        self,
        garment: np.ndarray,
        garment_mask: np.ndarray,
        joints: np.ndarray,
        agnostic: np.ndarray,
        agnostic_mask: np.ndarray,
        category: Category,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As WarpSource describes; garment and person are of one size."""
        if self.before:
            garment, garment_mask = self.before(
                garment, garment_mask, joints, agnostic, agnostic_mask, category
            )
        height, width = agnostic_mask.shape
        silhouette, hole = mask(garment_mask).float(), mask(agnostic_mask).float()
        keypoints = torch.from_numpy(joints / np.float32([width, height, 1]))
        person = normalise(picture(agnostic)) * (1 - hole)
        parts = (normalise(picture(garment)), silhouette, person, hole, keypoints)
        with torch.inference_mode():
            warped, covered = self.module.network(*(part[None] for part in parts))
        return to_uint8(warped[0]).permute(1, 2, 0).numpy(), covered[0, 0].numpy() > 0
