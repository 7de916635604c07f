"""A trained warp from its run folder, as the data's source of warped garments and as a baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vton import registry
from vton.data.derived.warp import rewarped, warp_source
from vton.data.ranges import normalise
from vton.data.record import mask, picture
from vton.data.sample import Category, TryOnBatch
from vton.errors import UserError
from vton.files import file_digest
from vton.metrics.pictures import to_uint8
from vton.models.codecs import build_codec
from vton.runs.folder import RunFolder
from vton.weights.pretrained import load_state, read_safetensors


class RunWarp:
    """A WarpSource (vton.data.derived.warp). It works on the CPU, on one pair at a time, in
    whichever process asks.

    Raises UserError where `path` is not a finished run of a warp at `size` (height, width),
    UserError for broken weights.
    """

    def __init__(self, path: str | Path, size: tuple[int, int]):
        run = RunFolder(Path(path).expanduser())
        config = run.load_config()
        if config.model.kind != "warp":
            raise UserError(
                f"{path} is a run of {config.model.name}, not of a warp. "
                "Train one: make train MODEL=warp."
            )
        if not run.weights.exists():
            raise UserError(f"{run.weights} does not exist: {path} has not finished training.")
        trained_at = "{}x{}".format(*config.data.size)
        wanted = "{}x{}".format(*size)
        if trained_at != wanted:
            raise UserError(
                f"{path} was trained at {trained_at}, the data is {wanted}; "
                "train a warp with this data.size."
            )
        config.model.perceptual.weight = 0.0  # its network is of use in training only
        module = registry.module_class(config.model.name)(config, build_codec(config.codec))
        load_state(module, read_safetensors(run.weights), run.weights)
        self.module = module.eval().requires_grad_(False)
        # What the learned warp starts from, where that is not the garment itself.
        self.start = warp_source("geometric") if config.model.start == "geometric" else None
        self.name = f"learned:{path}, sha256 {file_digest(run.weights)[:16]}"

    def __str__(self) -> str:
        return self.name

    def put_on(self, batch: TryOnBatch) -> TryOnBatch:
        """The batch with this warp's garment in place of its own warped garment."""
        if self.start:
            batch = rewarped(batch, self.start)
        return self.module.put_on(batch)

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
        if self.start:
            garment, garment_mask = self.start(
                garment, garment_mask, joints, agnostic, agnostic_mask, category
            )
        height, width = agnostic_mask.shape
        silhouette = mask(garment_mask).float()
        painted = mask(agnostic_mask).float()
        person = normalise(picture(agnostic)) * (1 - painted)
        keypoints = torch.from_numpy(joints / np.float32([width, height, 1]))
        parts = (normalise(picture(garment)), silhouette, person, painted, keypoints)
        with torch.inference_mode():
            warped, covered = self.module.network(*(part[None] for part in parts))
        warped_picture = to_uint8(warped[0]).permute(1, 2, 0).numpy()
        return warped_picture, covered[0, 0].numpy() > 0
