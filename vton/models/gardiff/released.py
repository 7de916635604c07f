"""What GarDiff's repository holds besides the paper: two inference scripts and the classes of an
adapter.

    release    UNet([x_t, z_comp], t, [begin, CLIP, VAE_1..c]); December 2024
    legacy12   UNet([x_t, x_a, x_w], t, [begin, CLIP, VAE_1..c]), blended sampling; July 2024
    decoupled  UNet([x_t, z_comp], t, text) with an IP-Adapter; classes that no script calls

z_comp are the latents of the person with the warped garment laid into the mask. Legend: B batch, c
latent channels, h w latent size, D width of cross-attention's tokens.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from vton.config import ConfigError
from vton.data.ranges import to_unit
from vton.diffusion.denoiser import Conditions, Denoiser, Features, Known
from vton.models.encoders import ClipImageEncoder
from vton.models.gardiff.network import (
    GarmentFocusedProcessor,
    latent_tokens,
    set_adapter,
)
from vton.processes import to_device


class ReleasedUNet(Denoiser):
    """mode=release: a stock UNet, text-to-image cross-attention over [begin, CLIP, one token per
    latent channel].

    Nothing projects the tokens, so that the picture's size and D depend on each other: (h / 2) (w /
    2) = D. With `learned_begin` the begin token is a parameter, else it is handed to `condition`.
    """

    inputs = ("z_comp",)  # behind x_t

    def __init__(self, unet: UNet2DConditionModel, learned_begin: bool = False):
        super().__init__()
        self.unet = unet
        self.begin = (
            nn.Parameter(torch.randn(1, 1, unet.config.cross_attention_dim))
            if learned_begin
            else None
        )

    def tokens(self, begin: Tensor | None, clip: Tensor, garment: Tensor) -> Tensor:
        """(B, 2 + c, D). begin (1 or B, 1, D), None = the learned one; clip (B, 1, D), projected
        summary of the in-shop garment; garment (B, c, h, w), scaled latents of the warped one.
        """
        begin = self.begin if begin is None else begin
        return torch.cat(
            [begin.expand(len(clip), -1, -1), clip, latent_tokens(garment, "channels")], dim=1
        )

    def condition(
        self, *, begin: Tensor | None, clip: Tensor, garment: Tensor, z_comp: Tensor
    ) -> Conditions:
        """Arguments as in `tokens`; z_comp (B, c, h, w): scaled latents of the composite."""
        return {"tokens": self.tokens(begin, clip, garment), "z_comp": z_comp}

    def unconditional(self, conditions: Conditions) -> Conditions:
        """Garment tokens zero; our choice, as the script runs without guidance. The composite
        stays.
        """
        begin = conditions["tokens"][:, :1]
        zeros = torch.zeros_like(conditions["tokens"][:, 1:])
        return conditions | {"tokens": torch.cat([begin, zeros], dim=1)}

    def stacked(self, z_t: Tensor, conditions: Conditions) -> Tensor:
        """The UNet's input, in its dtype: x_t and the latents that condition it, channel by
        channel.
        """
        return torch.cat([z_t, *(conditions[name] for name in self.inputs)], dim=1).to(
            self.unet.dtype
        )

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        return self(self.stacked(z_t, conditions), t, conditions["tokens"].to(self.unet.dtype))

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, to_device(t, x.device), tokens).sample


class LegacyUNet(ReleasedUNet):
    """mode=legacy12: agnostic person and warped garment as *unscaled* latents, and sampling that is
    led by the warp.

    After each of the first `blend_steps` steps the sample is replaced by the warped garment's clean
    latents where that lies.
    """

    inputs = ("x_a", "x_w")

    def __init__(
        self, unet: UNet2DConditionModel, learned_begin: bool = False, blend_steps: int = 18
    ):
        super().__init__(unet, learned_begin)
        self.blend_steps = blend_steps

    def condition(
        self,
        *,
        begin: Tensor | None,
        clip: Tensor,
        garment: Tensor,
        x_a: Tensor,
        x_w: Tensor,
        mask: Tensor,
        blended: Tensor | None = None,
    ) -> Conditions:
        """Arguments as in `tokens`; x_a, x_w (B, c, h, w): unscaled latents; mask (B, 1, H, W) in
        {0, 1}, of the warped garment; blended (B, c, h, w): its scaled latents if they are not
        `garment` (another draw of the posterior).
        """
        return {
            "tokens": self.tokens(begin, clip, garment),
            "x_a": x_a,
            "x_w": x_w,
            "mask": F.interpolate(mask, x_w.shape[-2:], mode="nearest"),
            "blended": garment if blended is None else blended,
        }

    def unconditional(self, conditions: Conditions) -> Conditions:
        """The warped garment's latents zero; tokens and agnostic person stay."""
        return conditions | {"x_w": torch.zeros_like(conditions["x_w"])}

    def known(self, conditions: Conditions) -> Known | None:
        return Known(
            1 - conditions["mask"], conditions["blended"], noised=False, steps=self.blend_steps
        )


class ProjectionHead(nn.Module):
    """CLIP's summary of a picture as tokens: Linear, n tokens of width D, LayerNorm. Names as in
    IP-Adapter files.
    """

    def __init__(self, clip_width: int, context: int, tokens: int):
        super().__init__()
        self.context = context
        self.proj = nn.Linear(clip_width, tokens * context)
        self.norm = nn.LayerNorm(context)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, clip_width) -> (B, n, D)."""
        return self.norm(self.proj(embedding).unflatten(-1, (-1, self.context)))


class DecoupledUNet(Denoiser):
    """mode=decoupled: to_out(softmax(q k^T) v + scale softmax(q k_a^T) v_a), text and n garment
    tokens.
    """

    def __init__(
        self, unet: UNet2DConditionModel, clip_width: int, tokens: int = 4, scale: float = 1.0
    ):
        super().__init__()
        self.unet = unet
        self.tokens = tokens
        self.image_proj = ProjectionHead(clip_width, unet.config.cross_attention_dim, tokens)
        set_adapter(unet, scale=scale)

    def set_scale(self, scale: float) -> None:
        for module in self.unet.modules():
            if isinstance(module, GarmentFocusedProcessor):
                module.scale = scale

    def condition(
        self, *, text: Tensor, negative_text: Tensor, clip: Tensor, z_comp: Tensor
    ) -> Conditions:
        """text (B, L, D); negative_text (1, L, D), of guidance's other branch; clip (B,
        clip_width), CLIP's summary; z_comp (B, c, h, w), scaled latents of the composite.
        """
        negative_text = negative_text.expand(len(text), -1, -1)
        return {
            "text": text,
            "negative_text": negative_text,
            "garment": self.image_proj(clip),
            "z_comp": z_comp,
        }

    def unconditional(self, conditions: Conditions) -> Conditions:
        """The head's tokens of an all-zero embedding (not zero tokens) and the negative text."""
        zeros = conditions["garment"].new_zeros(1, self.image_proj.proj.in_features)
        garment = self.image_proj(zeros).expand_as(conditions["garment"])
        return conditions | {"text": conditions["negative_text"], "garment": garment}

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        c = conditions
        x = torch.cat([z_t, c["z_comp"]], dim=1).to(self.unet.dtype)
        tokens = torch.cat([c["text"], c["garment"]], dim=1).to(self.unet.dtype)
        return self(x, t, tokens)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """tokens (B, L + n, D): text, then the head's."""
        return self.unet(
            x,
            to_device(t, x.device),
            tokens,
            cross_attention_kwargs={"adapter_length": self.tokens},
        ).sample


# ---- around the networks ----


def check_token_width(size: tuple[int, int], context: int) -> None:
    """Raise ConfigError unless latents (h, w) make tokens as wide as cross-attention reads."""
    width = (size[0] // 2) * (size[1] // 2)
    if width != context:
        raise ConfigError(
            f"model.unet.context={context}: model.mode=release and legacy12 read each latent "
            f"channel as one token of (h / 2)(w / 2) = {width} values; choose data.size so that "
            "they are equal (512x384 for 768), or set "
            f"model.unet.context={width} for a network from scratch."
        )


def composite(person: Tensor, warped: Tensor, mask: Tensor) -> Tensor:
    """The warped garment laid into the mask; pictures (B, 3, H, W), mask (B, 1, H, W), 1 = paint
    here.

    What is around the garment in `warped` lands inside the mask too: training and sampling need the
    same colour.
    """
    return person * (1 - mask) + warped * mask


def clip_pixels(encoder: ClipImageEncoder, image: Tensor, rescale: str = "single") -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as CLIP sees them in the scripts: squashed, cut to bytes,
    normalised.

    rescale="release" divides by 255 once too often, which leaves an almost black picture: the
    December script does it, and its weights may have been trained so.
    """
    square = F.interpolate(
        to_unit(image), (encoder.size, encoder.size), mode="bilinear", antialias=True
    ).clamp(0, 1)
    square = (square * 255).floor() / 255
    if rescale == "release":
        square = square / 255
    return encoder.normalise(square)


def feathered(mask: Tensor) -> Tensor:
    """Weights in 0..255 of the generated picture: clip(256 - 8 d, 0, 255), d the chessboard
    distance to the mask.

    mask (B, 1, H, W) in {0, 1}; the same as 32 rounds of 3x3 maximum minus 8, which is how they are
    made here.
    """
    weight = mask * 256.0
    for _ in range(32):
        weight = torch.maximum(weight, F.max_pool2d(weight, 3, stride=1, padding=1) - 8)
    return weight.clamp(0, 255)


def paste_back(generated: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """Generated bytes inside the feathered mask, original ones outside, cut to bytes; all float, in
    0..255.

    generated, original (B, 3, H, W); mask (B, 1, H, W) in {0, 1}.
    """
    weight = feathered(mask) / 255
    return (generated * weight + original * (1 - weight)).clamp(0, 255).floor()
