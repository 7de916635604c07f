"""ControlNets as plug-ins (arXiv 2302.05543): pose, and the surroundings of the painted region.

The second makes try-on. A ControlNet reads noisy latents, text and its picture; never garment or
identity. Its residuals join the dressing UNet's skip connections and middle block, on both guidance
branches; several ControlNets add theirs.
"""

from __future__ import annotations

import copy

from diffusers import ControlNetModel
from torch import Tensor, nn

from vton.diffusion.denoiser import Step
from vton.models.precision import in_dtype_of

PAINT = -1.0  # what the inpainting ControlNet sees inside the mask, in pictures of [0, 1]


class Control(nn.Module):
    """A stock ControlNet, its conditioning scale, and the part of the schedule in which it acts.

    The picture's embedding is split off, because it depends on neither z_t nor t. Parameters are
    shared with `net`, which stays as it is. `scale`, `start` and `end` may be changed at any time.
    """

    def __init__(
        self, net: ControlNetModel, scale: float = 1.0, start: float = 0.0, end: float = 1.0
    ):
        super().__init__()
        self.embedding = net.controlnet_cond_embedding
        self.net = copy.copy(net)
        self.net._modules = net._modules | {"controlnet_cond_embedding": nn.Identity()}
        self.scale = scale
        self.start = start
        self.end = end

    @property
    def factor(self) -> int:
        """Pixels of the control picture per latent cell, along one side."""
        return 2 ** (len(self.net.config.conditioning_embedding_out_channels) - 1)

    def acts(self, step: Step | None) -> bool:
        """Whether all of this step is inside [start, end]; always in training (step None)."""
        if step is None:
            return True
        begins, ends = step.index / step.count, (step.index + 1) / step.count
        return begins >= self.start and ends <= self.end

    def embed(self, picture: Tensor) -> Tensor:
        """(B, 3, factor h, factor w) in [0, 1], or -1 where painted -> (B, C, h, w)."""
        return self.embedding(in_dtype_of(self.embedding, picture))

    def forward(
        self, z_t: Tensor, t: Tensor, text: Tensor, embedded: Tensor, scale: Tensor | float
    ) -> list[Tensor]:
        """Scaled residuals of every skip connection, then of the middle block."""
        down, middle = self.net(z_t, t, text, embedded, conditioning_scale=scale, return_dict=False)
        return [*down, middle]


def inpaint_picture(image: Tensor, mask: Tensor) -> Tensor:
    """The inpainting ControlNet's picture: in [0, 1], and -1 in all channels where mask > 0.5."""
    return image.masked_fill(mask > 0.5, PAINT)
