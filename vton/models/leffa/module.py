"""Leffa (Zhou et al., CVPR 2025, arXiv 2412.08486) behind the contract.

The generative UNet reads [z_t, mask, masked person, DensePose]; the garment reaches it through the
reference UNet alone. Here a batch becomes the tensors that vton/models/leffa/network.py works on.
The flow loss of the paper is a setting of every architecture: model.flow_loss.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from vton.config import ExperimentConfig
from vton.data.sample import DataError, TryOnBatch
from vton.diffusion.denoiser import Conditions, Denoiser
from vton.diffusion.solvers import sampling_times
from vton.models.base import Reading, TryOnModule
from vton.models.codecs import latent_mask
from vton.models.distinct import distinct_garments
from vton.models.leffa.building import build_generative, build_reference
from vton.models.leffa.checkpoint import read_networks
from vton.models.leffa.config import LeffaConfig
from vton.models.leffa.network import Leffa
from vton.models.rows import select_rows
from vton.models.unet import execution_order, read_by_taps
from vton.registry import register
from vton.weights.pretrained import copy_all, load_state
from vton.weights.unfilled import read_later, unfilled


@register(LeffaConfig)
class LeffaModule(TryOnModule):
    """Both UNets are trained if the configuration says so; there are no encoders."""

    @classmethod
    def reads(cls, config: ExperimentConfig) -> frozenset[str]:
        return frozenset(("person", "agnostic", "agnostic_mask", "garment", "densepose"))

    def build(self) -> Denoiser:
        model: LeffaConfig = self.config.model
        channels = self.codec.channels
        height, width = self.config.data.size
        with unfilled() if model.pretrained else nullcontext():
            unet = build_generative(model.unet, channels, height / width)
            reference_unet = build_reference(model.reference_unet, channels, height / width)
        trained = (model.unet.trained, model.reference_unet.trained)
        if model.pretrained and not all(map(read_later, trained)):
            self.load_published(unet, reference_unet)
        self.add("unet", unet, model.unet.trained)
        self.add("reference_unet", reference_unet, model.reference_unet.trained)
        return Leffa(unet, reference_unet)

    def load_published(self, unet: nn.Module, reference_unet: nn.Module) -> None:
        """Load both UNets from the file that `model.pretrained` names, each in its own dtype."""
        model: LeffaConfig = self.config.model
        source = Path(model.pretrained)
        state, reference_state = read_networks(source)
        dtype = self.stored(model.unet)
        load_state(unet, copy_all(state, dtype), source, dtype)
        dtype = self.stored(model.reference_unet)
        load_state(reference_unet, copy_all(reference_state, dtype), source, dtype)

    def trained_parameters(self) -> list[dict]:
        """What the result of both UNets depends on: neither the unread cross-attention nor what
        lies behind the reference UNet's last feature.
        """
        model: LeffaConfig = self.config.model
        parameters = []
        if model.unet.trained:
            unread = unread_parameters(self.unet)
            parameters += [p for p in self.unet.parameters() if id(p) not in unread]
        if model.reference_unet.trained:
            unread = unread_parameters(self.reference_unet)
            parameters += [p for p in read_by_taps(self.reference_unet) if id(p) not in unread]
        return [{"params": parameters}]

    # ---- conditions ----

    def condition(self, batch: TryOnBatch) -> Conditions:
        return self.read(batch, training=False)

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        conditions = self.read(batch, training=True)
        return self.drop(conditions, u < self.config.model.condition_dropout)

    def read(self, batch: TryOnBatch, training: bool) -> Conditions:
        """VAE posteriors enter by their modes, so that a picture depends on its seed alone
        (published: samples).
        """
        if batch.densepose is None:
            raise DataError(
                f"{batch.dataset[0]}: leffa needs DensePose pictures; set data.densepose=true."
            )
        first, garment = distinct_garments(batch.garment, batch.garment_id, [""] * len(batch))
        masked = self.reading("agnostic", batch)
        size = masked.shape[-2:]
        once = None
        if self.config.model.reference_once and not training:
            times = sampling_times(self.config.sampler, self.objective)
            once = int(times[len(times) // 2])
        return self.denoiser.condition(
            mask=latent_mask(batch.agnostic_mask, size),
            masked=masked,
            pose=F.interpolate(batch.densepose, size, mode="nearest"),
            garment=garment,
            garment_latents=select_rows(self.reading("garment", batch, first), garment),
            reference_timestep=once,
        )

    def readings(self) -> dict[str, Reading]:
        readings = super().readings()
        readings["agnostic"] = self.latents("agnostic")
        readings["garment"] = self.latents("garment")
        return readings

    def wearing(self, conditions: Conditions) -> Tensor:
        return conditions["garment"] >= 0


def unread_parameters(unet: nn.Module) -> set[int]:
    """Ids of the cross-attentions' parameters, which published files hold and nothing reads."""
    unread = set()
    for name in execution_order(unet):
        unread |= {id(p) for p in unet.get_submodule(f"{name}.attn2").parameters()}
    return unread
