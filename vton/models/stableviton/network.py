"""StableVITON's mathematics (arXiv 2312.01725): CLIP token, spatial encoder, zero cross-attention.

A Stable Diffusion UNet with 13 input channels, x = [z_t, agnostic, keep mask, DensePose], and one
CLIP token c of the garment as context. A second encoder half, the spatial encoder, reads the same
x, t and c, and the garment's latents through a convolution that starts at zero:

    f_0, f_1, ... = encoder(conv_in(x) + conv_hint(garment), t, c)

The UNet's encoder has features s_0, s_1, ... of the same shapes, which its decoder reads as skip
connections. Before each decoder block of a level that has zero cross-attention, and before the skip
connection s_k is concatenated, the decoder's feature h reads f_k:

    h <- h + Z(T(h, f_k))

T is a transformer block (self-attention of h, cross-attention to f_k, feed-forward) plus its own
input, whose last layer starts at zero; Z is a 1 x 1 convolution that starts at zero. f_k has the
size of h, but not its width.

Legend: B batch, c latent channels, h w latent size, C D context and block widths, Q M query and
garment tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionModel

from vton.data.ranges import to_unit
from vton.diffusion.denoiser import Conditions, Denoiser, Features, Step
from vton.models.attention import project_out, read_garment, split_heads
from vton.models.encoders import ClipNormalisation
from vton.models.precision import without_autocast
from vton.models.unet import PositionCode
from vton.processes import to_device


class Centres(NamedTuple):
    """Where a block attends to."""

    of_cells: Tensor  # (B, h, w, 2) float32: mean row and column, in cells of the garment's grid
    tokens: int  # cells of that grid


Watched = dict[int, Centres]  # by the block's position
Watch = Callable[[Tensor, Tensor], None]

# ---- the garment as one token ----


class MapperBlock(nn.Module):
    """A pre-norm transformer block, of which a single token sees this much.

    The softmax over one token is 1, so attention returns its value.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict(
            {"c_qkv": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)}
        )
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 1, D)."""
        qkv = self.attn["c_qkv"](self.ln_1(x)).unflatten(-1, (self.heads, 3, -1))
        x = x + self.attn["c_proj"](qkv[..., 2, :].flatten(-2))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GarmentEmbedding(nn.Module):
    """Paint-by-Example's picture encoder: CLIP's summary of the whole garment, then a mapper."""

    def __init__(self, tower: CLIPVisionModel, layers: int, heads: int):
        super().__init__()
        self.tower = tower
        self.width = tower.config.hidden_size
        self.size = tower.config.image_size
        self.mapper = nn.ModuleList(MapperBlock(self.width, heads) for _ in range(layers))
        self.final_ln = nn.LayerNorm(self.width)
        self.normalise = ClipNormalisation()

    def pixels(self, image: Tensor) -> Tensor:
        """What the tower sees of pictures (B, 3, H, W) in [-1, 1]: (B, 3, size, size).

        Squashed by bilinear interpolation without antialiasing, as torchvision did when the
        released weights were trained.
        """
        square = F.interpolate(image, (self.size, self.size), mode="bilinear")
        return self.normalise(to_unit(square))

    def pooled(self, image: Tensor) -> Tensor:
        """(B, width): the class token after CLIP's last norm, before its projection."""
        pixels = self.pixels(image).to(self.final_ln.weight.dtype)
        return self.tower(pixels).pooler_output

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, width) of pictures (B, 3, H, W) in [-1, 1]."""
        x = self.pooled(image)[:, None]
        for block in self.mapper:
            x = block(x)
        return self.final_ln(x)


class ContextToken(nn.Module):
    """From the embedding to cross-attention's one token, and the vector that stands for none."""

    def __init__(self, width: int, context: int):
        super().__init__()
        self.proj_out = nn.Linear(width, context)
        # already of the context's width: it does not go through the projection
        self.learnable_vector = nn.Parameter(torch.randn(1, 1, context))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, 1, width) -> (B, 1, C)."""
        return self.proj_out(embedding)


# ---- the garment as features ----


class SpatialEncoder(nn.Module):
    """The encoder half of a UNet, which reads the garment's latents beside the UNet's own input.

    It has the UNet's middle block and lowest level too, although nothing reads them: released files
    hold their weights.
    """

    def __init__(self, unet: UNet2DConditionModel, hint_channels: int):
        super().__init__()
        self.conv_in = unet.conv_in
        self.time_proj = unet.time_proj
        self.time_embedding = unet.time_embedding
        self.down_blocks = unet.down_blocks
        self.mid_block = unet.mid_block
        self.conv_hint = zeroed(nn.Conv2d(hint_channels, unet.conv_in.out_channels, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor, levels: int | None = None
    ) -> list[Tensor]:
        """Features, the finest first, of the first `levels` levels; None: all and the middle's.

        x (B, 3c + 1, h, w), t (B,), context (B, 1, C), hint (B, c, h, w)
        """
        dtype = self.conv_in.weight.dtype
        first = self.conv_in(x.to(dtype)) + self.conv_hint(hint.to(dtype))
        return encode(self, first, time_embedding(self, t, dtype), context, levels)

    def read_by(self, levels: int) -> list[nn.Parameter]:
        """The parameters that features of the first `levels` levels depend on.

        One token leaves cross-attention nothing to choose: see `without_effect`. The last level's
        downsampler has a feature that only the level below reads.
        """
        unread = ["mid_block."] + [
            f"down_blocks.{level}." for level in range(levels, len(self.down_blocks))
        ]
        unread.append(f"down_blocks.{levels - 1}.downsamplers.")
        parameters = []
        for name, parameter in self.named_parameters():
            if not name.startswith(tuple(unread)) and not without_effect(name):
                parameters.append(parameter)
        return parameters


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all weights and biases set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def without_effect(name: str) -> bool:
    """Whether a UNet's parameter of this name has no influence where the context is one token.

    A softmax over one token is 1 whatever the query and the key are.
    """
    query_and_key = (".attn2.to_q.", ".attn2.to_k.", ".norm2.")
    return ".transformer_blocks." in name and any(part in name for part in query_and_key)


def time_embedding(network: nn.Module, t: Tensor, dtype: torch.dtype) -> Tensor:
    """The embedding of timesteps t (B,), as a UNet's blocks read it."""
    t = to_device(t, network.time_embedding.linear_1.weight.device)
    return network.time_embedding(network.time_proj(t).to(dtype))


def encode(
    network: nn.Module, first: Tensor, emb: Tensor, context: Tensor, levels: int | None = None
) -> list[Tensor]:
    """The features that a UNet's encoder half hands to its decoder, finest first.

    They are `first`, the output of its first convolution, and one of each block and downsampler.

    levels: only the features of this many levels; None: of all, and that of the middle block last
    """
    features, h = [first], first
    for block in network.down_blocks[:levels]:
        if getattr(block, "has_cross_attention", False):
            h, block_features = block(h, emb, encoder_hidden_states=context)
        else:
            h, block_features = block(h, emb)
        features += block_features
    if levels is None:
        features.append(network.mid_block(h, emb, encoder_hidden_states=context))
    elif network.down_blocks[levels - 1].downsamplers is not None:
        features.pop()
    return features


# ---- where the decoder reads them ----


class PersonAttention(AttnProcessor2_0):
    """Self-attention. watch is for the layer beside it: diffusers hands both the same."""

    def __call__(self, attn: Attention, hidden_states, *args, watch: Watch | None = None, **kwargs):
        return super().__call__(attn, hidden_states, *args, **kwargs)


class GarmentAttention:
    """Cross-attention to the garment's tokens; watch: is shown its queries and keys."""

    def __call__(
        self,
        attn: Attention,
        hidden_states,
        encoder_hidden_states,
        attention_mask=None,
        watch: Watch | None = None,
    ):
        """hidden_states (B, Q, D), encoder_hidden_states (B, M, D') -> (B, Q, D)."""
        q = split_heads(attn.to_q(hidden_states), attn.heads)
        k = split_heads(attn.to_k(encoder_hidden_states), attn.heads)
        v = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        if watch is not None:
            watch(q, k)
        out = read_garment(q, k, v)
        return project_out(attn, out)


def attended_centres(q: Tensor, k: Tensor, grid: tuple[int, int]) -> Tensor:
    """F_i = sum_j A_ij g_j, (B, Q, 2): mean row and column, in cells of the garment's grid.

    A = softmax(q k^T / sqrt d), the mean of heads, in float32 at least; q (B, N, Q, d), k
    (B, N, M, d); g_j is the place of garment token j, whose grid has M cells.
    """
    with without_autocast(q):
        q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        rows, columns = (torch.arange(side, device=q.device) for side in grid)
        places = torch.cartesian_prod(rows, columns).to(weights.dtype)
        return weights @ places


class ZeroCrossAttention(nn.Module):
    """h + Z(T(h, f)): see the top of this file."""

    def __init__(self, position: int, width: int, garment_width: int, heads: int, groups: int):
        super().__init__()
        self.transformer = Transformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=width,
            cross_attention_dim=garment_width,
            norm_num_groups=groups,
        )
        zeroed(self.transformer.proj_out)
        self.zero = zeroed(nn.Conv2d(width, width, 1))
        self.position = position
        self.code: PositionCode | None = None
        block = self.transformer.transformer_blocks[0]
        block.attn1.set_processor(PersonAttention())
        block.attn2.set_processor(GarmentAttention())

    def add_positions(self, amplitude: float, aspect: float) -> None:
        """Let both attention layers know places, and start by reading the same place.

        Queries are wider than garment tokens, so they get the garment's code and zeros behind it,
        and keys start as these columns of the queries' projection. See `add_position_codes` in
        vton/models/unet.py.
        """
        block = self.transformer.transformer_blocks[0]
        garment_width = block.attn2.to_k.weight.shape[1]
        self.code = PositionCode(garment_width, amplitude, aspect)
        block.pos_embed = PaddedCode(self.code)
        with torch.no_grad():
            block.attn1.to_k.weight.copy_(block.attn1.to_q.weight)
            block.attn2.to_k.weight.copy_(block.attn2.to_q.weight[:, :garment_width])
            for attention in (block.attn1, block.attn2):
                nn.init.orthogonal_(attention.to_v.weight)
                nn.init.orthogonal_(attention.to_out[0].weight)

    def forward(self, h: Tensor, feature: Tensor, watched: Watched | None = None) -> Tensor:
        """(B, D, h, w) from h of this shape and feature (B, D', h', w').

        watched: takes in where the block attends to.
        """
        return h + self.zero(self.read(h, feature, watched))

    def read(self, h: Tensor, feature: Tensor, watched: Watched | None = None) -> Tensor:
        """T(h, f)."""
        tokens = feature.flatten(2).transpose(1, 2)
        if self.code is not None:
            tokens = self.code(tokens)

        def watch(q: Tensor, k: Tensor) -> None:
            centres = attended_centres(q, k, tuple(feature.shape[-2:]))
            watched[self.position] = Centres(centres.unflatten(1, h.shape[-2:]), k.shape[2])

        arguments = {"watch": None if watched is None else watch}
        return self.transformer(h, tokens, cross_attention_kwargs=arguments, return_dict=False)[0]


class PaddedCode(nn.Module):
    """A position code on the first channels of wider tokens."""

    def __init__(self, code: PositionCode):
        super().__init__()
        self.code = code

    def forward(self, tokens: Tensor) -> Tensor:
        code = self.code.code(tokens.shape[1], tokens.device).to(tokens.dtype)
        return tokens + F.pad(code, (0, tokens.shape[2] - code.shape[1]))


class AddedFeature(nn.Module):
    """h + Z(f), as ControlNet adds what it knows: the ablation of zero cross-attention."""

    def __init__(self, width: int, garment_width: int):
        super().__init__()
        self.zero = zeroed(nn.Conv2d(garment_width, width, 1))

    def forward(self, h: Tensor, feature: Tensor, watched: Watched | None = None) -> Tensor:
        return h + self.zero(feature)


# ---- all of it ----


class StableViton(Denoiser):
    """Both networks behind the sampler's contract, from tensors to predictions.

    encoder: None where the CLIP token is all of the garment; garment_blocks: by position as text;
    levels: how many levels' features they read.
    encoder_gradients: whether gradients pass the UNet's encoder half.
    encoder_input: "garment" lets the spatial encoder see the hint alone.
    watched: positions of blocks whose centres a pass with gradients keeps in `centres`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        token: ContextToken,
        encoder: SpatialEncoder | None,
        garment_blocks: nn.ModuleDict,
        levels: int,
        encoder_gradients: bool = True,
        encoder_input: str = "all",
        watched: Sequence[int] = (),
    ):
        super().__init__()
        self.unet = unet
        self.token = token
        self.encoder = encoder
        self.garment_blocks = garment_blocks
        self.levels = levels
        self.encoder_gradients = encoder_gradients
        self.encoder_input = encoder_input
        self.watched = frozenset(watched)
        self.centres: Watched = {}

    def condition(
        self,
        *,
        embedding: Tensor,
        agnostic: Tensor,
        keep: Tensor,
        densepose: Tensor,
        garment: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Conditions:
        """What depends on neither z_t nor t.

        embedding (B, 1, width) of the garment; latents (B, c, h, w) of agnostic person, DensePose
        picture and garment; keep (B, 1, h, w): 1 = known, 0 = paint; start: latents that sampling
        starts from, noised.
        """
        conditions = {
            "context": self.token(embedding),
            "agnostic": agnostic,
            "keep": keep,
            "densepose": densepose,
            "garment": garment,
            "start": start,
        }
        return {name: tensor for name, tensor in conditions.items() if tensor is not None}

    def unconditional(self, conditions: Conditions) -> Conditions:
        """The learned vector in place of the CLIP token; the hint stays."""
        context = conditions["context"]
        return conditions | {"context": self.token.learnable_vector.to(context).expand_as(context)}

    def start(self, conditions: Conditions) -> Tensor | None:
        return conditions.get("start")

    def input(self, z_t: Tensor, conditions: Conditions) -> Tensor:
        """(B, 3c + 1, h, w): z_t, agnostic person, mask of what to keep, DensePose."""
        parts = [conditions[name] for name in ("agnostic", "keep", "densepose")]
        return torch.cat([z_t, *parts], 1)

    def garment_features(
        self, conditions: Conditions, t: Tensor, step: Step | None = None
    ) -> Features:
        """The spatial encoder's features, if it sees neither z_t nor the person; else none."""
        if self.encoder is None or self.encoder_input == "all":
            return {}
        hint = conditions["garment"]
        nothing = hint.new_zeros(len(hint), self.unet.config.in_channels, *hint.shape[2:])
        features = self.encoder(nothing, t, conditions["context"], hint, self.levels)
        return {str(k): feature for k, feature in enumerate(features)}

    def denoise(self, z_t: Tensor, t: Tensor, conditions: Conditions, features: Features) -> Tensor:
        x = self.input(z_t, conditions).to(self.unet.dtype)  # solvers keep latents in float32
        context = conditions["context"].to(self.unet.dtype)
        spatial_features: list[Tensor] = []
        if features:
            spatial_features = [features[str(k)] for k in range(len(features))]
        elif self.encoder is not None:
            spatial_features = self.encoder(x, t, context, conditions["garment"], self.levels)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder_gradients):
            emb = time_embedding(self.unet, t, self.unet.dtype)
            *skips, h = encode(self.unet, self.unet.conv_in(x), emb, context)
        self.centres = {}
        return self.decode(h, skips, spatial_features, emb, context)

    def decode(
        self,
        h: Tensor,
        skips: list[Tensor],
        spatial_features: list[Tensor],
        emb: Tensor,
        context: Tensor,
    ) -> Tensor:
        """The UNet's decoder, which reads the garment before each skip connection.

        h, skips: the output of the UNet's encoder half, and its skip connections, finest first;
        spatial_features: those of the spatial encoder, finest first; emb: the embedded timestep;
        context (B, 1, C). Returns the prediction (B, c, h, w).
        """
        skips = list(skips)
        levels = len(self.unet.up_blocks)
        blocks_per_level = len(self.unet.up_blocks[0].resnets)
        for up, block in enumerate(self.unet.up_blocks):
            for j, resnet in enumerate(block.resnets):
                k = len(skips) - 1
                position = (up - 1) * blocks_per_level + j
                if str(position) in self.garment_blocks:
                    watches = position in self.watched and torch.is_grad_enabled()
                    watched = self.centres if watches else None
                    h = self.garment_blocks[str(position)](h, spatial_features[k], watched)
                h = torch.cat([h, skips.pop()], 1)
                if block.gradient_checkpointing and torch.is_grad_enabled():
                    h = checkpoint(resnet, h, emb, use_reentrant=False)
                else:
                    h = resnet(h, emb)
                if getattr(block, "has_cross_attention", False):
                    h = block.attentions[j](h, context, return_dict=False)[0]
            if up < levels - 1:
                h = block.upsamplers[0](h, output_size=tuple(skips[-1].shape[-2:]))
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(h)))
