"""CatVTON (arXiv 2407.15886): one inpainting UNet over a canvas of person and garment.

    input       [z_t | mask, 0 | masked person, garment]    2c + 1 channels, two pictures large
    attention   over the whole canvas: so the person reads the garment
    block       h1 = h + attn1(LN1(h));  h2 = h1 + LN2(h1);  h3 = h2 + FF(LN3(h2))

h2 is what skipping leaves of cross-attention: its layer hands back its normed input, and the block
adds it as ever. The released checkpoints were trained with this term.

Legend: B batch, c latent channels, h w latents of one picture, N tokens of the canvas, M = N / 2 of
one picture, D width of a block. A canvas is (B, c, 2h, w) or (B, c, h, 2w).
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from vton.diffusion.denoiser import Conditions, Denoiser, Features, Known
from vton.diffusion.objective import Noised, Objective
from vton.models.attention import level_grid, project_out, read_garment, split_heads
from vton.models.unet import PositionCode, execution_order
from vton.processes import to_device

Axis = Literal["height", "width"]
DIMENSIONS = {"height": 2, "width": 3}  # of (B, c, h, w)

# ---- the canvas ----


def beside(person: Tensor, garment: Tensor, axis: Axis) -> Tensor:
    """Person and garment, (B, c, h, w) each, as one canvas."""
    return torch.cat([person, garment], DIMENSIONS[axis])


def halves(canvas: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """The person's and the garment's half of a canvas, as views."""
    person, garment = canvas.chunk(2, DIMENSIONS[axis])
    return person, garment


# ---- attention ----


class CanvasSelfAttention:
    """Ordinary self-attention over the canvas, in which the person's tokens read the garment's.

    positions: a code of each token's place within its own picture, for UNets that start from
        scratch; None = none, as published.
    emphasis: the code's factor for the garment. Keys start equal to queries, so above 1 the person
        starts by reading the garment at its own place, and at 1 reads itself just as much.
    """

    def __init__(self, axis: Axis, positions: PositionCode | None = None, emphasis: float = 1.0):
        self.axis = axis
        self.positions = positions
        self.emphasis = emphasis

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        canvas: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """hidden_states (B, N, D) -> (B, N, D); canvas: height and width of the latents."""
        grid = level_grid(hidden_states.shape[1], canvas)
        along = DIMENSIONS[self.axis] - 1  # in (B, rows, columns, D)
        if grid[along - 1] % 2:  # a line of tokens lies across the seam: halves are no pictures
            return self.attend(attn, hidden_states)
        person, garment = hidden_states.unflatten(1, grid).chunk(2, along)
        size = person.shape[1:3]
        person, garment = person.flatten(1, 2), garment.flatten(1, 2)
        if self.positions is not None:
            code = self.positions.code(person.shape[1], person.device).to(person.dtype)
            person, garment = person + code, garment + self.emphasis * code
        out = self.attend(attn, torch.cat([person, garment], 1), garment.shape[1])
        person, garment = (half.unflatten(1, size) for half in out.chunk(2, 1))
        return torch.cat([person, garment], along).flatten(1, 2)

    @staticmethod
    def attend(attn: Attention, x: Tensor, of_garment: int = 0) -> Tensor:
        """Self-attention of x (B, N, D), whose last `of_garment` tokens are the garment's."""
        q, k, v = (
            split_heads(linear(x), attn.heads) for linear in (attn.to_q, attn.to_k, attn.to_v)
        )
        if of_garment:
            person, garment = q.split([q.shape[2] - of_garment, of_garment], 2)
            read = read_garment(person, k, v, tokens=of_garment)
            out = torch.cat([read, F.scaled_dot_product_attention(garment, k, v)], 2)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return project_out(attn, out)


class SkippedCrossAttention:
    """In place of cross-attention: hands back its input, the normed stream."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        canvas: tuple[int, int] = (0, 0),
    ) -> Tensor:
        return hidden_states


class TextCrossAttention(AttnProcessor2_0):
    """Cross-attention to captions. canvas is for self-attention layers."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args, canvas: tuple = (0, 0), **kwargs
    ) -> Tensor:
        return super().__call__(attn, hidden_states, *args, **kwargs)


def read_canvas(
    unet: UNet2DConditionModel, axis: Axis, text: bool = False, emphasis: float = 1.0
) -> None:
    """Set up a stock UNet for canvases. text: its cross-attention reads captions.

    A position code of the UNet's becomes one of places within each picture, `emphasis` times as
    large for the garment.
    """
    for name in execution_order(unet):
        block = unet.get_submodule(name)
        block.attn1.set_processor(CanvasSelfAttention(axis, block.pos_embed, emphasis))
        block.attn2.set_processor(TextCrossAttention() if text else SkippedCrossAttention())
        block.pos_embed = None  # the block itself would also add it to what cross-attention skips


def is_read(name: str, text: bool) -> bool:
    """Whether the result depends on this parameter of the UNet."""
    return text or ".attn2." not in name


def is_trained(name: str, part: str, text: bool) -> bool:
    """Whether a parameter of the UNet belongs to the part that learns (`model.trained`)."""
    if part == "attention":
        return ".attn1." in name
    return is_read(name, text) and (part == "unet" or ".attentions." in name)


# ---- the denoiser ----


class CatVton(Denoiser):
    """The UNet behind the sampler's contract, from tensors to predictions.

    garment_free: the guidance branch sees no garment in z_t either (DeCo-VTON).
    anchored: at every step, sampling makes the garment's half from its clean latents and the noise
        that it started from (DeCo-VTON).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        axis: Axis = "height",
        garment_free: bool = False,
        anchored: bool = False,
    ):
        super().__init__()
        self.unet = unet
        self.axis = axis
        self.garment_free = garment_free
        self.anchored = anchored

    def condition(
        self,
        *,
        masked: Tensor,
        garment: Tensor,
        mask: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Conditions:
        """What depends on neither z_t nor t.

        Latents (B, c, h, w) of the masked person and the garment; mask (B, 1, h, w), 1 = paint;
        text (B, L, C). The mask-free variant has no mask, and for the masked person one in other
        clothes.
        """
        conditions = {"masked": beside(masked, garment, self.axis)}
        if mask is not None:
            conditions["mask"] = beside(mask, torch.zeros_like(mask), self.axis)
        if self.garment_free:
            conditions["dressed"] = masked.new_ones(len(masked))
        if text is not None:
            conditions["text"] = text
        return conditions

    def unconditional(self, conditions: Conditions) -> Conditions:
        """The garment's half of the condition is zero: no picture has these latents."""
        masked, garment = halves(conditions["masked"], self.axis)
        null = {"masked": beside(masked, torch.zeros_like(garment), self.axis)}
        if self.garment_free:
            null["dressed"] = torch.zeros_like(conditions["dressed"])
        return conditions | null

    def known(self, conditions: Conditions) -> Known | None:
        if not self.anchored:
            return None
        masked, garment = halves(conditions["masked"], self.axis)
        ones, zeros = torch.ones_like(masked[:, :1]), torch.zeros_like(masked[:, :1])
        return Known(
            mask=beside(ones, zeros, self.axis),
            latents=beside(torch.zeros_like(masked), garment, self.axis),
            from_start=True,
        )

    def canvas(self, z_t: Tensor, conditions: Conditions) -> Tensor:
        """What the UNet sees: (B, 2c + 1, ., .), or 2c channels without a mask."""
        if "dressed" in conditions:
            person, garment = halves(z_t, self.axis)
            dressed = conditions["dressed"].view(-1, 1, 1, 1)
            z_t = beside(person, garment * dressed, self.axis)
        mask = [conditions["mask"]] if "mask" in conditions else []
        return torch.cat([z_t, *mask, conditions["masked"]], 1)

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        x = self.canvas(z_t, conditions).to(self.unet.dtype)  # solvers keep latents in float32
        size = {"canvas": tuple(x.shape[-2:])}
        t = to_device(t, x.device)
        return self.unet(x, t, conditions.get("text"), cross_attention_kwargs=size).sample


# ---- training ----


def dream(
    noised: Noised, prediction: Tensor, objective: Objective, power: float, where: Tensor | None
) -> Noised:
    """DREAM (arXiv 2312.00210): part of the network's own error joins the noise.

        r = sqrt(1 - abar)^power (eps - eps');  z_t + sqrt(1 - abar) r;  eps + r

    prediction: the network's for noised.z_t, which says eps'; where: 1 where it acts, 0 elsewhere,
    broadcast to z_t; None = everywhere.
    """
    _, sigma = objective.signal_and_noise(noised.t, noised.z_t)
    r = sigma**power * (noised.eps - objective.noise(noised.z_t, noised.t, prediction))
    if where is not None:
        r = r * where
    eps = noised.eps + r
    target = objective.target(noised.x0, eps, noised.t)
    return noised._replace(z_t=noised.z_t + sigma * r, eps=eps, target=target)
