"""DINOv2, CLIP and VTON-IQA as small as their libraries build them, in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
)

from vton.metrics.vision import randomise
from vton.metrics.vton_iqa import VtonIqa
from vton.weights.metric_networks import VISION, VTON_IQA


def dinov2_config() -> Dinov2Config:
    return Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=98
    )


def clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=14,
        image_size=84,
        projection_dim=12,
    )


def write_networks(folder: Path) -> Path:
    """Folders of DINOv2 and CLIP among metric weights, as `eval.weights` names them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, network in (
            ("dinov2", Dinov2Model(dinov2_config())),
            ("clip", CLIPVisionModelWithProjection(clip_config())),
        ):
            randomise(network, seed=5)  # so that features tell pictures apart
            network.save_pretrained(folder / VISION[name])
    return folder


def dinov3_config() -> DINOv3ViTConfig:
    return DINOv3ViTConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=1,
        num_register_tokens=4,
        patch_size=16,
    )


def write_vton_iqa(folder: Path, older: bool = True) -> VtonIqa:
    """VTON-IQA's release with cross-attention in two of three blocks; returns the network.

    older: under the names that transformers gave DINOv3's blocks when it was published
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = VtonIqa(dinov3_config(), crossed=2, heads=4)
        for parameter in network.backbone.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.1)
    network.scorer.alpha.data.fill_(0.3)
    network.scorer.b.data.fill_(0.1)
    state = {}
    for name, tensor in network.state_dict().items():
        if older:
            name = name.replace("backbone.model.model.layer.", "backbone.model.layer.")
        state[name] = tensor.contiguous()
    place = folder / VTON_IQA
    place.mkdir(parents=True)
    save_file(state, place / "model.safetensors")
    described = {"model_name": "facebook/dinov3-vitl16-pretrain-lvd1689m", "n_mid_s_attn": 1}
    described |= {"n_mid_c_attn": 2, "heads": 4, "temperature_scale": 0.65}
    (place / "config.json").write_text(json.dumps(described))
    return network.eval()


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (128, 96), noise: float = 0.0):
    """uint8 (N, 3, H, W): a coarse pattern each, with grain."""
    made = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        coarse = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(float)
        grain = np.random.default_rng((9, index)).normal(size=pixels.shape) * noise
        made.append((pixels + grain).clip(0, 255).round().astype(np.uint8))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()
