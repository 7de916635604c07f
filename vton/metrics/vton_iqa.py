"""VTON-IQA: how good people think a try-on picture is, from person, garment and picture alone.

Hirakawa et al., ECCV 2026, arXiv 2603.13057. Person, garment and try-on picture pass through one
DINOv3; the picture does so twice, once beside the person and once beside the garment. In the last
blocks the two of a couple read each other by cross-attention, between self-attention and MLP. With
p, c the class tokens of person and garment and v_p, v_c those of the picture beside them,

    score = tanh(a (alpha cos(p, v_p) + (1 - alpha) cos(c, v_c)) + b)

It is in [-1, 1], higher is better. The published files are `config.json` and `model.safetensors`
of the authors' release; names of parameters here are theirs. The size of DINOv3 is read off its
tensors, so that its own gated repository is not needed. The authors compute in bfloat16, this in
float32: scores differ in the third digit.
"""
# Shapes: B batch, L tokens (class, registers, patches), D width

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from vton.errors import UserError
from vton.models.perceptual import IMAGENET_MEAN, IMAGENET_STD, per_channel
from vton.weights.pretrained import load_state, read_json, read_safetensors

WEIGHTS = "model.safetensors"
HEAD_WIDTH = 64  # of every published DINOv3
SIDE_BEFORE = 512  # px; pictures are brought to this square first
SIDE = 224  # px; what DINOv3's processor makes of that
COUPLES = ("p2v", "v2p", "c2v", "v2c")  # who is read by whom: person, picture, garment
BLOCK = "backbone.model.model.layer."
OLDER_BLOCK = "backbone.model.layer."  # in transformers before 5


class CrossAttention(nn.Module):
    """x + attention of x to y, both normalised."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_q = nn.LayerNorm(width)
        self.ln_kv = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x_BLD: Tensor, y_BMD: Tensor) -> Tensor:
        y = self.ln_kv(y_BMD)
        return x_BLD + self.attn(self.ln_q(x_BLD), y, y, need_weights=False)[0]


class Backbone(nn.Module):
    """DINOv3 with cross-attention in its last `crossed` blocks."""

    def __init__(self, config: DINOv3ViTConfig, crossed: int, heads: int):
        super().__init__()
        self.model = DINOv3ViTModel(config)
        layers = config.num_hidden_layers
        for couple in COUPLES:
            blocks = {}
            for place in range(layers - crossed, layers):
                blocks[str(place)] = CrossAttention(config.hidden_size, heads)
            self.add_module(f"mid_{couple}_blocks", nn.ModuleDict(blocks))

    def forward(self, person: Tensor, garment: Tensor, picture: Tensor) -> list[Tensor]:
        """Class tokens (B, D) of person, garment, and the picture beside each of them."""
        embed = self.model.embeddings
        p, c, v = embed(person), embed(garment), embed(picture)
        v_p, v_c = v, v
        position = self.model.rope_embeddings(person)
        for place, block in enumerate(self.model.model.layer):
            p, c, v_p, v_c = (self_attention(block, x, position) for x in (p, c, v_p, v_c))
            if str(place) in self.mid_p2v_blocks:
                p = self.mid_v2p_blocks[str(place)](p, v_p)
                v_p = self.mid_p2v_blocks[str(place)](v_p, p)
                c = self.mid_v2c_blocks[str(place)](c, v_c)
                v_c = self.mid_c2v_blocks[str(place)](v_c, c)
            p, c, v_p, v_c = (feed_forward(block, x) for x in (p, c, v_p, v_c))
        return [self.model.norm(x)[:, 0] for x in (p, c, v_p, v_c)]


def self_attention(block: nn.Module, x: Tensor, position: tuple[Tensor, Tensor]) -> Tensor:
    """The first half of a DINOv3 block."""
    attended, _ = block.attention(block.norm1(x), position_embeddings=position)
    return x + block.layer_scale1(attended)


def feed_forward(block: nn.Module, x: Tensor) -> Tensor:
    """The second half."""
    return x + block.layer_scale2(block.mlp(block.norm2(x)))


class Head(nn.Module):
    """The weights of the two likenesses, and of what people make of them."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.a = nn.Parameter(torch.tensor(3.0))
        self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, p: Tensor, c: Tensor, v_p: Tensor, v_c: Tensor) -> Tensor:
        of_person = F.cosine_similarity(p, v_p, dim=-1)
        of_garment = F.cosine_similarity(c, v_c, dim=-1)
        return torch.tanh(
            self.a * (self.alpha * of_person + (1 - self.alpha) * of_garment) + self.b
        )


class VtonIqa(nn.Module):
    """Scores (B,) of person, garment and picture, each uint8 (3, h, w) of any size."""

    def __init__(self, config: DINOv3ViTConfig, crossed: int, heads: int):
        super().__init__()
        self.backbone = Backbone(config, crossed, heads)
        self.scorer = Head()
        # The temperature of preferences between two pictures; no score depends on it.
        self.register_buffer("log_t", torch.zeros(()))
        self.register_buffer("mean", per_channel(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", per_channel(IMAGENET_STD), persistent=False)

    def pixels(self, picture: Tensor) -> Tensor:
        """uint8 (3, h, w) as the network reads it, (1, 3, 224, 224)."""
        square = padded(picture)
        square = transforms.resize(square, [SIDE_BEFORE] * 2, InterpolationMode.BICUBIC)
        square = square.to(self.mean.device).float()[None] / 255
        small = transforms.resize(square, [SIDE] * 2, InterpolationMode.BILINEAR, antialias=True)
        return (small - self.mean) / self.std

    @torch.inference_mode()
    def forward(self, person: Tensor, garment: Tensor, picture: Tensor) -> Tensor:
        """The score (1,) of one try-on picture, which is brought to the person's size first."""
        if picture.shape != person.shape:
            picture = transforms.resize(picture, list(person.shape[1:]), InterpolationMode.BICUBIC)
        return self.scorer(*self.backbone(*map(self.pixels, (person, garment, picture))))


def padded(picture: Tensor) -> Tensor:
    """(3, h, w) in the middle of a square, its border pixels repeated outwards."""
    height, width = picture.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    margins = [left, top, side - width - left, side - height - top]
    return transforms.pad(picture, margins, padding_mode="edge")


def load(folder: Path, device: torch.device) -> VtonIqa:
    """The published network. Raises UserError naming a file that is not it."""
    described = read_json(folder / "config.json")
    path = folder / WEIGHTS
    state = {}
    for name, tensor in read_safetensors(path).items():
        if name.startswith(OLDER_BLOCK):
            name = BLOCK + name.removeprefix(OLDER_BLOCK)
        if not name.endswith("inv_freq"):  # computed
            state[name] = tensor.float()
    try:
        config = backbone_config(state)
        crossed, heads = int(described["n_mid_c_attn"]), int(described["heads"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not VTON-IQA's weights and settings ({error}).") from None
    with torch.random.fork_rng(devices=[]):
        network = VtonIqa(config, crossed, heads)
    load_state(network, state, path)
    return network.to(device).eval().requires_grad_(False)


def backbone_config(state: dict[str, Tensor]) -> DINOv3ViTConfig:
    """What DINOv3's tensors say of its size. Raises KeyError for one that is absent."""
    patches = state["backbone.model.embeddings.patch_embeddings.weight"]
    width = patches.shape[0]
    layers = 0
    while f"{BLOCK}{layers}.norm1.weight" in state:
        layers += 1
    first = f"{BLOCK}0."
    return DINOv3ViTConfig(
        hidden_size=width,
        patch_size=patches.shape[-1],
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=state[f"{first}mlp.up_proj.weight"].shape[0],
        num_register_tokens=state["backbone.model.embeddings.register_tokens"].shape[1],
        use_gated_mlp=f"{first}mlp.gate_proj.weight" in state,
        query_bias=f"{first}attention.q_proj.bias" in state,
        key_bias=f"{first}attention.k_proj.bias" in state,
        value_bias=f"{first}attention.v_proj.bias" in state,
        proj_bias=f"{first}attention.o_proj.bias" in state,
        mlp_bias=f"{first}mlp.up_proj.bias" in state,
    )
