"""Codecs: pictures (B, 3, H, W) in [-1, 1] to latents (B, C, h, w) and back.

`identity` keeps pixels, `kl` is diffusers' AutoencoderKL (pretrained, or small and trained first),
`linear` is a closed-form codec that needs neither download nor training: the principal components
of picture patches. All are frozen while the diffusion model trains, and gradients pass through
`decode`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from vton.config import CodecConfig, ConfigError
from vton.weights.pretrained import from_pretrained, load_state, read_safetensors, write_tensors

# How a small AutoencoderKL is fitted.
FIT_RATE = 2e-3  # AdamW's peak: high, for steps are few (150 of the tests' reach 15.2 dB, with 1e-3 13.9); not tuned
FIT_KL = 1e-6  # weight of the KL term, as latent diffusion has it (arXiv 2112.10752, Appendix G)
# share of the steps, the last, that measure the latents' spread: the rate is then near 0
FIT_TAIL = 0.1


class Codec(nn.Module):
    """The contract. `channels` and `factor` (pixels per latent cell along one side) tell a network
    its shapes.
    """

    channels: int
    factor: int
    # that `encode` multiplies its latents by; for models that want them without
    scaling: float = 1.0

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, channels, H / factor, W / factor), without randomness."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents -> (B, 3, H, W), about [-1, 1], not clamped. Differentiable."""

    @abstractmethod
    def save(self, folder: Path) -> None: ...

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latents of a picture of this size. Raises ConfigError if it does
        not divide.
        """
        if size[0] % self.factor or size[1] % self.factor:
            raise ConfigError(
                f"data.size={list(size)} must be divisible by {self.factor}, the codec's factor."
            )
        return size[0] // self.factor, size[1] // self.factor


def full_precision(like: Tensor):
    """Autocast off, where the device has it: Stable Diffusion's VAE overflows in half precision,
    and what a codec makes is the truth that networks learn and the picture that is scored.
    """
    known = torch.amp.is_autocast_available(like.device.type)
    return torch.autocast(like.device.type, enabled=False) if known else nullcontext()


class IdentityCodec(Codec):
    channels, factor = 3, 1

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, z: Tensor) -> Tensor:
        return z

    def save(self, folder: Path) -> None:
        """Nothing to save."""


class LinearCodec(Codec):
    """Orthonormal basis of p x p picture patches: the best linear code of its size, found in
    seconds, used in float32.

    The sum of squared errors of latents is scale^2 times that of the decoded pictures, so that a
    clean-sample loss is a picture loss but for a factor and the part the code drops. Latents are
    not whitened: networks learn them faster.
    """

    def __init__(self, patch: int, channels: int):
        super().__init__()
        if not 1 <= channels <= 3 * patch * patch:
            raise ConfigError(
                f"codec.channels={channels} must be in 1..{3 * patch * patch} for codec.patch={patch}."
            )
        self.channels, self.factor = channels, patch
        self.register_buffer(
            "basis", torch.zeros(channels, 3 * patch * patch)
        )  # rows are orthonormal
        self.register_buffer("mean", torch.zeros(3 * patch * patch))
        self.register_buffer(
            "scale", torch.ones(())
        )  # latents have unit variance over all channels together

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> LinearCodec:
        """Fit to batches of pictures (B, 3, H, W) in [-1, 1], summed in float64."""
        width = self.mean.numel()
        count, total, outer = (
            0,
            torch.zeros(width, dtype=torch.float64),
            torch.zeros(width, width, dtype=torch.float64),
        )
        for image in images:
            patches = (
                F.pixel_unshuffle(image.double(), self.factor)
                .flatten(2)
                .transpose(1, 2)
                .reshape(-1, width)
            )
            count += len(patches)
            total += patches.sum(0)
            outer += patches.T @ patches
        mean = total / count
        variances, vectors = torch.linalg.eigh(outer / count - torch.outer(mean, mean))  # ascending
        kept = vectors[:, -self.channels :].flip(1).T
        signs = kept.gather(
            1, kept.abs().argmax(1, keepdim=True)
        ).sign()  # eigenvectors are free up to sign: fix it
        self.basis.copy_(kept * signs)
        self.mean.copy_(mean)
        self.scale.copy_(variances[-self.channels :].mean().rsqrt())
        return self

    def encode(self, image: Tensor) -> Tensor:
        with full_precision(image):
            patches = F.pixel_unshuffle(image.float(), self.factor) - self.mean.view(-1, 1, 1)
            return F.conv2d(patches, (self.basis * self.scale)[:, :, None, None])

    def decode(self, z: Tensor) -> Tensor:
        with full_precision(z):
            patches = F.conv2d(z.float() / self.scale, self.basis.T[:, :, None, None], self.mean)
            return F.pixel_shuffle(patches, self.factor)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "codec.safetensors", self.state_dict())


class KLCodec(Codec):
    """AutoencoderKL behind the contract: posterior modes times the folder's scaling_factor, always
    in float32.
    """

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae
        self.channels = vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def scaling(self) -> float:
        return self.vae.config.scaling_factor

    def posterior(self, image: Tensor) -> DiagonalGaussianDistribution:
        """Of latents before `scaling`."""
        with full_precision(image):
            return self.vae.encode(image.float()).latent_dist

    def encode(self, image: Tensor) -> Tensor:
        return self.posterior(image).mode() * self.scaling

    def decode(self, z: Tensor) -> Tensor:
        with full_precision(z):
            return self.vae.decode(z.float() / self.scaling).sample

    def save(self, folder: Path) -> None:
        self.vae.save_pretrained(folder)


def build_codec(config: CodecConfig) -> Codec:
    """The codec with pretrained weights where the configuration names them, else freshly
    initialised.
    """
    if config.name == "identity":
        return IdentityCodec()
    if config.name == "linear":
        return LinearCodec(config.patch, config.channels)
    if not config.pretrained:
        return KLCodec(small_autoencoder(config))
    vae = from_pretrained(
        AutoencoderKL, config.pretrained, key="codec.pretrained", subfolder=config.subfolder
    )
    return KLCodec(vae)


def small_autoencoder(config: CodecConfig) -> AutoencoderKL:
    """AutoencoderKL of the configured shape, freshly initialised."""
    levels = len(config.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.widths),
        latent_channels=config.channels,
        norm_num_groups=config.groups,
        layers_per_block=config.layers,
    )


def load_codec(config: CodecConfig, folder: Path) -> Codec:
    """The codec that `save` wrote. Raises WeightsError naming the file if it is absent, broken or
    of another shape.
    """
    if config.name == "identity":
        return IdentityCodec()
    if config.name == "kl":
        return KLCodec(from_pretrained(AutoencoderKL, str(folder), key="codec"))
    codec = LinearCodec(config.patch, config.channels)
    path = folder / "codec.safetensors"
    load_state(codec, read_safetensors(path), path)
    return codec


def fit_codec(
    codec: Codec, config: CodecConfig, batches: Iterable[Tensor], device: str | torch.device = "cpu"
) -> Codec:
    """Make a codec without pretrained weights usable: closed form for `linear`, reconstruction
    training for `kl`.

    batches: pictures (B, 3, H, W) in [-1, 1] on the CPU; `kl` draws `fit_steps` of them and is
    trained on the device, `linear` uses all and needs none. The codec comes back on the CPU.
    """
    if isinstance(codec, LinearCodec):
        return codec.fit(batches)
    if isinstance(codec, KLCodec):
        _train_autoencoder(codec.vae.to(device), config, (image.to(device) for image in batches))
    return codec.cpu()


def _train_autoencoder(vae: AutoencoderKL, config: CodecConfig, batches: Iterable[Tensor]) -> None:
    """L1 and squared error plus a faint KL term, as latent diffusion uses; no adversary at this
    size.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=FIT_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, FIT_RATE, total_steps=config.fit_steps
    )
    vae.train()
    spreads = []
    for step, image in zip(range(config.fit_steps), batches, strict=False):  # batches are endless
        posterior = vae.encode(image).latent_dist
        output = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(output, image) + F.mse_loss(output, image) + FIT_KL * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= (1 - FIT_TAIL) * config.fit_steps:
            spreads.append(posterior.mean.detach().std().item())
    vae.eval()
    vae.register_to_config(
        scaling_factor=len(spreads) / sum(spreads)
    )  # unit variance, as Stable Diffusion's


def is_fitted(config: CodecConfig) -> bool:
    """Whether a run makes its codec itself: neither pixels nor pretrained weights."""
    return config.name != "identity" and not config.pretrained


def run_codec(config: CodecConfig, folder: Path) -> Codec:
    """A run's codec, ready to use; the folder is the run's, which is read where the run made it
    itself.

    Raises UserError subclasses naming what is absent or of another shape.
    """
    return load_codec(config, folder) if is_fitted(config) else build_codec(config)
