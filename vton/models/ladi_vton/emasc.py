"""EMASC: skips from a codec's encoder to its decoder around the mask (Section 3.3).

    D_i += f_i(E_i) (1 - M_i)

E_i are features of the *masked* person, D_i inputs of the decoder's layers, M_i the mask at their
size: nothing is added where the picture is repainted. The features depend on the person alone, so a
picture needs them once.

Of an AutoencoderKL with widths c_0 .. c_n, feature 1 is the output of the encoder's first
convolution, feature 2 + i the input of down block i; feature 1 goes to the input of the decoder's
last convolution (behind norm and activation), feature 2 + i to up block n - i. A linear codec is
one layer in and one out: its only skip leads from the picture's patches to the decoded ones.
"""
# Shapes: B batch, H W picture, C channels of a feature

from __future__ import annotations

from typing import NamedTuple

from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from vton.models.codecs import Codec, KLCodec, LinearCodec
from vton.models.precision import without_autocast


class SkipChannels(NamedTuple):
    """Numbers of channels of all skips, from feature 1 on."""

    read: list[int]  # of the encoder's features
    added: list[int]  # of the inputs of the decoder's layers, to which skips are added


class EMASC(nn.Module):
    """One small network a skip; names are those of the released file.

    nonlinear: 3x3 convolution, SiLU, 3x3 convolution. linear: one 3x3 convolution, zero at first.
    """

    def __init__(self, channels: SkipChannels, kind: str = "nonlinear"):
        super().__init__()
        self.conv = nn.ModuleList()
        for read, added in zip(*channels, strict=True):
            last = nn.Conv2d(read, added, 3, padding=1)
            if kind == "linear":
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
                self.conv.append(last)
            else:
                first = nn.Conv2d(read, read, 3, padding=1)
                self.conv.append(nn.Sequential(first, nn.SiLU(), last))

    def forward(self, features: list[Tensor], mask: Tensor) -> list[Tensor]:
        """Skips of features, in their order and in this network's precision.

        mask: (B, 1, H, W), 1 = repaint.
        """
        dtype = next(self.parameters()).dtype  # codecs speak float32
        skips = []
        for conv, feature in zip(self.conv, features, strict=True):
            kept = 1 - F.interpolate(mask.to(dtype), feature.shape[-2:], mode="nearest")
            skips.append(conv(feature.to(dtype)) * kept)
        return skips


def has_skips(codec: Codec) -> bool:
    """Whether EMASC has something to lead around."""
    return isinstance(codec, KLCodec | LinearCodec)


def skip_channels(codec: Codec) -> SkipChannels:
    if isinstance(codec, LinearCodec):
        patch = 3 * codec.factor**2
        return SkipChannels([patch], [patch])
    widths = list(codec.vae.config.block_out_channels)
    return SkipChannels([widths[0], widths[0], *widths[:-1]], [*widths, widths[-1]])


def skip_features(codec: Codec, picture: Tensor) -> list[Tensor]:
    """Features (B, C, h, w) of pictures (B, 3, H, W) in [-1, 1], in the codec's precision."""
    with without_autocast(picture):
        if isinstance(codec, LinearCodec):
            return [F.pixel_unshuffle(picture.float(), codec.factor)]
        return autoencoder_features(codec.vae, picture.to(codec.vae.dtype))


def autoencoder_features(vae: AutoencoderKL, picture: Tensor) -> list[Tensor]:
    x = vae.encoder.conv_in(picture)
    features = [x, x]
    for block in vae.encoder.down_blocks[:-1]:
        x = block(x)
        features.append(x)
    return features


def decode_with_skips(codec: Codec, z: Tensor, skips: list[Tensor]) -> Tensor:
    """`codec.decode` of latents z with the skips added; without any it is that.

    Returns (B, 3, H, W), not clamped. Gradients pass through.
    """
    if not skips:
        return codec.decode(z)
    with without_autocast(z):
        if isinstance(codec, LinearCodec):
            patches = F.pixel_unshuffle(codec.decode(z), codec.factor)
            return F.pixel_shuffle(patches + skips[0].float(), codec.factor)
        dtype = codec.vae.dtype
        skips = [skip.to(dtype) for skip in skips]
        return decode_autoencoder(codec.vae, codec.unscaled(z.to(dtype)), skips).float()


def decode_autoencoder(vae: AutoencoderKL, z: Tensor, skips: list[Tensor]) -> Tensor:
    """diffusers' decoder step by step; z without the codec's scaling."""
    decoder = vae.decoder
    x = z if vae.post_quant_conv is None else vae.post_quant_conv(z)
    x = decoder.mid_block(decoder.conv_in(x))
    for block, skip in zip(decoder.up_blocks, reversed(skips[1:]), strict=True):
        x = block(x + skip)
    x = decoder.conv_act(decoder.conv_norm_out(x))
    return decoder.conv_out(x + skips[0])
