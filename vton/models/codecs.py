"""Codecs: pictures (B, 3, H, W) in [-1, 1] to latents (B, C, h, w) and back.

    identity    keeps pixels
    linear      the principal components of picture patches; closed form, no download, no training
    kl          diffusers' AutoencoderKL, pretrained, or small and trained by the run first

All are frozen while the diffusion model trains, and gradients pass through `decode`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from vton.config import CodecConfig, ConfigError
from vton.errors import UserError
from vton.models.ldm import (
    SD_SCALING,
    SDXL_SCALING,
    autoencoder_names,
    autoencoder_to_diffusers,
    autoencoder_to_ldm,
    latent_scaling,
    read_autoencoder,
)
from vton.models.precision import without_autocast
from vton.progress import track
from vton.weights.pretrained import (
    check_state,
    from_pretrained,
    load_state,
    read_safetensors,
    write_tensors,
)

# How a small AutoencoderKL is fitted. AdamW's peak rate is high because steps are few: 150 of them,
# as in the tests, reach 15.2 dB, and 13.9 dB at 1e-3. It is not tuned.
FIT_RATE = 2e-3
FIT_KL = 1e-6  # weight of the KL term, as in latent diffusion (arXiv 2112.10752, Appendix G)
FIT_TAIL = 0.1  # share of the steps, at the end, in which the latents' spread is measured
# The most pixels that an AutoencoderKL takes at once: a picture of 1024x768, or 21 of 256x192.
SLICE_PIXELS = 2**20


class Codec(nn.Module):
    """The contract of all codecs."""

    channels: int  # of the latents
    factor: int  # pixels per latent cell along one side
    # `encode` gives (latents - shift) * scaling, for models that need them without it
    scaling: float = 1.0
    shift: float = 0.0

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, channels, H / factor, W / factor), without randomness."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents -> (B, 3, H, W), about [-1, 1], not clamped. Differentiable."""

    @property
    def statistics(self) -> tuple[float, ...]:
        """What decides the result of `encode` besides weights and pictures."""
        return (self.scaling, self.shift) if self.shift else (self.scaling,)

    def unscaled(self, z: Tensor) -> Tensor:
        """Latents as the network behind the codec has them, of those that `encode` gives."""
        z = z / self.scaling
        return z + self.shift if self.shift else z

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `load_codec` reads."""

    def checkpoint(self) -> None:
        """Save memory in the gradients of `decode`, by computing its activations twice."""

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latents of a picture of this size.

        Raises ConfigError if `factor` does not divide it.
        """
        height, width = size
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"data.size={list(size)} must be divisible by {self.factor}, the codec's factor."
            )
        return height // self.factor, width // self.factor


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) in [0, 1] at latent size (B, 1, h, w), 0 or 1: nearest pixel, from 0.5 on."""
    return (F.interpolate(mask, size, mode="nearest") >= 0.5).to(mask.dtype)


class IdentityCodec(Codec):
    channels, factor = 3, 1

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, z: Tensor) -> Tensor:
        return z

    def save(self, folder: Path) -> None:
        """Nothing to save."""


class LinearCodec(Codec):
    """Principal components of p x p picture patches: the best linear code of its size. In float32.

    Latents have unit variance over all channels together. They are not whitened, because networks
    learn them faster so. And the squared error of latents is then scale^2 times that of the decoded
    pictures: a clean-sample loss is a picture loss, up to a factor and what the code drops.
    """

    def __init__(self, patch: int, channels: int):
        super().__init__()
        width = 3 * patch * patch
        if not 1 <= channels <= width:
            raise ConfigError(
                f"codec.channels={channels} must be in 1..{width} for codec.patch={patch}."
            )
        self.channels = channels
        self.factor = patch
        self.register_buffer("basis", torch.zeros(channels, width))  # rows are orthonormal
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> LinearCodec:
        """Fit to batches of pictures (B, 3, H, W) in [-1, 1], summed in float64."""
        width = self.mean.numel()
        count = 0
        total = torch.zeros(width, dtype=torch.float64)
        outer = torch.zeros(width, width, dtype=torch.float64)
        for image in images:
            patches = F.pixel_unshuffle(image.double(), self.factor)
            patches = patches.flatten(2).transpose(1, 2).reshape(-1, width)
            count += len(patches)
            total += patches.sum(0)
            outer += patches.T @ patches
        mean = total / count
        covariance = outer / count - torch.outer(mean, mean)
        variances, vectors = torch.linalg.eigh(covariance)  # ascending
        basis = vectors[:, -self.channels :].flip(1).T
        # The sign of an eigenvector is arbitrary: its largest entry is made positive.
        largest = basis.abs().argmax(1, keepdim=True)
        self.basis.copy_(basis * basis.gather(1, largest).sign())
        self.mean.copy_(mean)
        self.scale.copy_(variances[-self.channels :].mean().rsqrt())
        return self

    def encode(self, image: Tensor) -> Tensor:
        with without_autocast(image):
            patches = F.pixel_unshuffle(image.float(), self.factor) - self.mean.view(-1, 1, 1)
            return F.conv2d(patches, (self.basis * self.scale)[:, :, None, None])

    def decode(self, z: Tensor) -> Tensor:
        with without_autocast(z):
            patches = F.conv2d(z.float() / self.scale, self.basis.T[:, :, None, None], self.mean)
            return F.pixel_shuffle(patches, self.factor)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "codec.safetensors", self.state_dict())


class KLCodec(Codec):
    """AutoencoderKL: posterior modes, less the folder's shift_factor, times its scaling_factor.

    It computes in the dtype of its weights, whatever autocast says, and returns float32. Large
    pictures go through a few at a time: decoding one of 1024x768 takes 2.2 GiB in float32.
    """

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae
        self.channels = vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def scaling(self) -> float:
        return self.vae.config.scaling_factor

    @property
    def shift(self) -> float:
        return self.vae.config.shift_factor or 0.0

    def posterior(self, image: Tensor) -> DiagonalGaussianDistribution:
        """The distribution of latents (B, channels, h, w), less `shift`, before `scaling`."""
        moments = []
        with without_autocast(image):
            for part in image.split(self.pictures_at_once(image.shape[-2:])):
                moments.append(self.vae.encode(part.to(self.vae.dtype)).latent_dist.parameters)
            posterior = DiagonalGaussianDistribution(torch.cat(moments).float())
        posterior.mean = posterior.mean - self.shift
        return posterior

    def encode(self, image: Tensor) -> Tensor:
        return self.posterior(image).mode() * self.scaling

    def decode(self, z: Tensor) -> Tensor:
        height, width = z.shape[-2] * self.factor, z.shape[-1] * self.factor
        pictures = []
        with without_autocast(z):
            for part in z.split(self.pictures_at_once((height, width))):
                latents = self.unscaled(part.float()).to(self.vae.dtype)
                pictures.append(self.vae.decode(latents).sample)
            return torch.cat(pictures).float()

    def checkpoint(self) -> None:
        self.vae.enable_gradient_checkpointing()

    def pictures_at_once(self, size: tuple[int, int]) -> int:
        """How many pictures of this height and width go through the VAE at once."""
        return max(1, SLICE_PIXELS // (size[0] * size[1]))

    def save(self, folder: Path) -> None:
        self.vae.save_pretrained(folder)


# ---- building and loading ----


def build_codec(config: CodecConfig, dtype: torch.dtype = torch.float32) -> Codec:
    """The codec, with pretrained weights where the configuration names them, else fresh.

    dtype: of a pretrained AutoencoderKL.
    """
    if config.name == "identity":
        return IdentityCodec()
    if config.name == "linear":
        return LinearCodec(config.patch, config.channels)
    if not config.pretrained:
        return KLCodec(small_autoencoder(config))
    if Path(config.pretrained).expanduser().is_file():
        return KLCodec(autoencoder_from_file(config))
    vae = from_pretrained(
        AutoencoderKL,
        config.pretrained,
        key="codec.pretrained",
        dtype=dtype,
        subfolder=config.subfolder,
    )
    if vae.config.latents_mean is not None or vae.config.latents_std is not None:
        raise UserError(
            f"codec.pretrained={config.pretrained}: its config.json has latents_mean and "
            "latents_std, which are not supported; use SDXL's autoencoder."
        )
    check_scaling(config, vae.config.scaling_factor, "its config.json")
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


def autoencoder_from_file(config: CodecConfig) -> AutoencoderKL:
    """AutoencoderKL of the configured shape with the weights of a checkpoint file in latent
    diffusion's names: all of the file, or its `first_stage_model`.

    Raises UserError naming the file if it has no autoencoder, or one of another shape.
    """
    path = Path(config.pretrained).expanduser()
    state = read_autoencoder(path)
    vae = small_autoencoder(config)
    names = autoencoder_names(len(config.widths), config.layers)
    their_names = autoencoder_to_ldm(vae.state_dict(), names)
    check_state(their_names, state, path, owner="the codec")
    load_state(vae, autoencoder_to_diffusers(state, names), path)
    vae.register_to_config(scaling_factor=file_scaling(config, path))
    return vae


def file_scaling(config: CodecConfig, path: Path) -> float:
    """The factor of the latents of a checkpoint file: what the file shows, else `codec.scaling`.

    Raises UserError if neither says it, or both differently.
    """
    shown = latent_scaling(path)
    if shown is not None:
        check_scaling(config, shown, "its text encoder or metadata")
        return shown
    if config.scaling is None:
        raise UserError(
            f"codec.pretrained={config.pretrained}: nothing in the file says by which factor its "
            f"latents are scaled; set codec.scaling={SD_SCALING} if it is Stable Diffusion 1's or "
            f"2's autoencoder, {SDXL_SCALING} if it is SDXL's."
        )
    return config.scaling


def check_scaling(config: CodecConfig, shown: float, where: str) -> None:
    """Raise UserError if `codec.scaling` is set and not what the weights come with."""
    if config.scaling not in (None, shown):
        raise UserError(
            f"codec.scaling={config.scaling:g}, but codec.pretrained={config.pretrained} has "
            f"{shown:g} by {where}; set codec.scaling=null."
        )


def load_codec(config: CodecConfig, folder: Path) -> Codec:
    """The codec that `save` wrote.

    Raises UserError naming the file if it is absent, broken or of another shape.
    """
    if config.name == "identity":
        return IdentityCodec()
    if config.name == "kl":
        return KLCodec(from_pretrained(AutoencoderKL, str(folder), key="codec"))
    codec = LinearCodec(config.patch, config.channels)
    path = folder / "codec.safetensors"
    load_state(codec, read_safetensors(path), path)
    return codec


def run_codec(config: CodecConfig, folder: Path, dtype: torch.dtype = torch.float32) -> Codec:
    """A run's codec, ready to use: built, or read from `folder` if the run has fitted it.

    dtype: of a pretrained AutoencoderKL. Raises UserError subclasses naming what is absent or of
    another shape.
    """
    return load_codec(config, folder) if is_fitted(config) else build_codec(config, dtype)


def is_fitted(config: CodecConfig) -> bool:
    """Whether a run fits its codec itself: it is neither pixels nor pretrained."""
    return config.name != "identity" and not config.pretrained


# ---- fitting ----


def fit_codec(
    codec: Codec, config: CodecConfig, batches: Iterable[Tensor], device: str | torch.device = "cpu"
) -> Codec:
    """Make a codec without pretrained weights usable; it comes back on the CPU.

    batches: pictures (B, 3, H, W) in [-1, 1] on the CPU. `linear` is fitted in closed form to all
    of them. `kl` is trained to reconstruct `config.fit_steps` of them, on the device.
    """
    if isinstance(codec, LinearCodec):
        return codec.fit(batches)
    if isinstance(codec, KLCodec):
        on_device = (image.to(device) for image in batches)
        train_autoencoder(codec.vae.to(device), config, on_device)
    return codec.cpu()


def train_autoencoder(vae: AutoencoderKL, config: CodecConfig, batches: Iterable[Tensor]) -> None:
    """Train on L1 and squared error and a small KL term, as in latent diffusion, without its
    adversary.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=FIT_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, FIT_RATE, total_steps=config.fit_steps
    )
    vae.train()
    spreads = []
    batches = islice(batches, config.fit_steps)  # they are endless
    for step, image in enumerate(track(batches, "Fitting the codec", config.fit_steps, "step")):
        posterior = vae.encode(image).latent_dist
        output = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(output, image) + F.mse_loss(output, image) + FIT_KL * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= min((1 - FIT_TAIL) * config.fit_steps, config.fit_steps - 1):
            spreads.append(posterior.mean.detach().std().item())
    vae.eval()
    # Latents of unit variance, as Stable Diffusion's.
    vae.register_to_config(scaling_factor=len(spreads) / sum(spreads))
