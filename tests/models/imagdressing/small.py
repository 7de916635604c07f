"""Small networks with random weights, and conditions for them."""

from __future__ import annotations

import copy

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from vton.config import ObjectiveConfig, SamplerConfig
from vton.diffusion import noise
from vton.diffusion.denoiser import Known
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import drawing, sample
from vton.models.codecs import latent_mask
from vton.models.imagdressing.control import Control, inpaint_picture
from vton.models.imagdressing.faceid import FaceID, FaceLayer, FaceProjector
from vton.models.imagdressing.network import Dresser, Face, GarmentAdapter
from vton.models.resampler import Perceiver, Resampler
from vton.models.unet import attention_names

CONTEXT, CLIP, ID, TOKENS = 32, 20, 12, 4
SHAPE = dict(
    block_out_channels=(8, 16),
    layers_per_block=1,
    cross_attention_dim=CONTEXT,
    attention_head_dim=2,
    norm_num_groups=4,
)
DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
LATENT, PICTURE = (8, 6), (32, 24)  # the ControlNet halves its pictures twice


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn anew, so that nothing is zero or a copy."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            parameter.add_(float(parameter.ndim == 1) * 0.5)
    return network.eval()


def unet(seed: int) -> UNet2DConditionModel:
    return randomised(UNet2DConditionModel(down_block_types=DOWN, up_block_types=UP, **SHAPE), seed)


def controlnet(seed: int) -> ControlNetModel:
    widths = {"conditioning_embedding_out_channels": (4, 4, 8)}
    return randomised(ControlNetModel(down_block_types=DOWN, **SHAPE, **widths), seed)


def faceid(base: UNet2DConditionModel, **settings) -> FaceID:
    perceiver = Perceiver(CONTEXT, 1, 1, 64, CLIP, CONTEXT)
    layers = [FaceLayer(base.get_submodule(name), rank=3) for name in attention_names(base)]
    projector = FaceProjector(ID, 24, TOKENS, CONTEXT, perceiver)
    return randomised(FaceID(projector, layers, **settings), 9)


def dresser(*plugins: str, **settings) -> Dresser:
    """plugins: any of pose, inpaint, face."""
    base = unet(1)
    controls = {
        "pose": Control(controlnet(5), scale=0.7, end=0.6),
        "inpaint": Control(controlnet(6)),
    }
    return Dresser(
        base,
        unet(2),
        randomised(Resampler(24, 1, 2, 8, 5, CLIP, CONTEXT), 3),
        randomised(GarmentAdapter(base), 4),
        {name: control for name, control in controls.items() if name in plugins},
        faceid(base, **settings) if "face" in plugins else None,
    )


def inputs(rows: list[int], *plugins: str, height: int = 10) -> dict:
    """Arguments of Dresser.condition in which row i depends on rows[i] alone."""

    def draw(what: str, *shape: int) -> torch.Tensor:
        return noise.normal(shape, [noise.generator(what, row) for row in rows], torch.empty(0))

    arguments = {
        "text": draw("text", 7, CONTEXT),
        "negative_text": noise.normal((7, CONTEXT), [noise.generator("negative")], torch.empty(0)),
        "garment_latents": draw("garment", 4, height, 8),
        "clip": draw("clip", 6, CLIP),
        "control": {},
    }
    picture, mask = draw("picture", 3, *PICTURE).sigmoid(), (draw("mask", 1, *PICTURE) > 0).float()
    if "pose" in plugins:
        arguments["control"]["pose"] = picture.flip(1)
    if "inpaint" in plugins:
        arguments["control"]["inpaint"] = inpaint_picture(picture, mask)
        arguments["known"] = Known(latent_mask(mask, LATENT), draw("known", 4, *LATENT))
    if "face" in plugins:
        arguments["face"] = Face(draw("id", ID), draw("crop", 6, CLIP), torch.zeros(1, 6, CLIP))
    return arguments


def drawn(
    model: Dresser, conditions: dict, rows: list[int], guidance: float, steps: int = 3
) -> torch.Tensor:
    """Latents of the shared loop, row i with the noise of rows[i]."""
    generators = [noise.generator("start", row) for row in rows]
    draw = drawing((4, *LATENT), generators, torch.device("cpu"))
    config = SamplerConfig(steps=steps, guidance=guidance)
    return sample(model, conditions, draw, config, Objective(ObjectiveConfig()))


def stock(model: nn.Module) -> nn.Module:
    """A UNet with diffusers' own attention processors."""
    model = copy.deepcopy(model)
    model.set_attn_processor(AttnProcessor2_0())
    return model
