"""LaDI-VTON's warping module behind the training command: the spline first, then the refinement on
it frozen.

Its picture is what the geometric baseline's is: the warped garment on the agnostic person, the rest
of the hole filled from the surroundings.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vton.config import ConfigError
from vton.data.sample import TryOnBatch
from vton.models.base import PicturesAndSilhouettes, TrainedModule
from vton.models.baselines import warped_garment
from vton.models.warp.config import WarpConfig
from vton.models.warp.losses import build_perceptual, order_loss
from vton.models.warp.network import WHITE, Warped, WarpNetwork
from vton.registry import register


@register(WarpConfig)
class LearnedWarp(TrainedModule):
    """Stage 1, `tps_steps` long, trains the spline; stage 2 the refinement on it frozen. 0 trains
    both at once.
    """

    def build(self) -> None:
        model: WarpConfig = self.config.model
        if self.config.codec.name != "identity":
            raise ConfigError(
                "model=warp works on pixels: set codec.name=identity, not "
                f"{self.config.codec.name}."
            )
        if model.start == "geometric" and self.config.data.warp_source != "geometric":
            raise ConfigError(
                "model.start=geometric bends what the geometric warp gives: set "
                f"data.warp_source=geometric, not {self.config.data.warp_source}."
            )
        self.network = WarpNetwork(model)
        if model.perceptual.weight and self.config.train.steps > model.tps_steps:
            self.frozen["perceptual"] = build_perceptual(model.perceptual)

    def networks(self) -> dict[str, nn.Module]:
        return {"tps": self.network.tps, "refinement": self.network.refinement}

    @property
    def learning(self) -> tuple[bool, bool]:
        """Whether the spline and the refinement learn in this step."""
        first = self.global_step < self.config.model.tps_steps
        return first or self.config.model.tps_steps == 0, not first

    def training_step(self, batch: TryOnBatch, batch_index: int) -> Tensor:
        """The loss, a scalar, of what learns at this step: the spline or the refinement."""
        self.current_pairs = batch.pair_id
        network = self.network
        tps_learns, refinement_learns = self.learning
        network.tps.train(tps_learns)  # frozen, it keeps its running statistics too
        worn = torch.where(batch.truth_garment_mask > 0, batch.truth, WHITE)
        garment, garment_mask = self.start(batch)
        agnostic = batch.agnostic
        if not refinement_learns:  # the spline alone learns at its own size
            worn = network.tps.reduced(worn)
            garment = network.tps.reduced(garment)
            garment_mask = network.tps.reduced(garment_mask)
            agnostic = network.tps.reduced(agnostic)
        person = network.person(agnostic, batch.keypoints)
        with self.gradients_if(tps_learns):
            points = network.tps(garment, person)
            coarse = network.coarse(garment, garment_mask, points)
        losses = {}
        if tps_learns:
            losses["warp"] = F.l1_loss(coarse.garment, worn)
            losses["order"] = self.config.model.tps.order_weight * order_loss(points)
        if refinement_learns:
            coarse = Warped(*(part.detach() for part in coarse))
            losses |= self.refinement_losses(
                network.refine(coarse, person, batch.agnostic_mask), worn, batch
            )
            network.refined.fill_(True)
        self.last_losses = {name: loss.detach() for name, loss in losses.items()}
        # DDP waits for a gradient of every parameter in every step.
        return sum(losses.values()) + 0 * sum(parameter.sum() for parameter in self.resting())

    def refinement_losses(
        self, refined: Warped, worn: Tensor, batch: TryOnBatch
    ) -> dict[str, Tensor]:
        """The refinement's losses by name.

        A refinement that draws a new picture has LaDI-VTON's losses. One that corrects the warp is
        measured inside the true silhouette only, and its own silhouette apart.
        """
        silhouette = batch.truth_garment_mask
        hole = batch.agnostic_mask
        losses = {}
        if self.network.corrects:
            cross_entropy = F.binary_cross_entropy_with_logits(
                refined.silhouette, silhouette, hole, reduction="sum"
            )
            losses["silhouette"] = cross_entropy / hole.sum()
            refined = Warped(torch.where(silhouette > 0, refined.garment, WHITE), silhouette)
            values = (3 * silhouette.sum()).clamp(min=1)
            losses["refined"] = (refined.garment - worn).abs().sum() / values
        else:
            losses["refined"] = F.l1_loss(refined.garment, worn)
        if "perceptual" in self.frozen:
            distance = self.frozen["perceptual"](refined.garment, worn)
            losses["perceptual"] = self.config.model.perceptual.weight * distance
        return losses

    def start(self, batch: TryOnBatch) -> tuple[Tensor, Tensor]:
        """What the spline bends, (B, 3, H, W), and its silhouette."""
        if self.config.model.start == "geometric":
            return batch.warped_garment, batch.warped_mask
        return batch.garment, batch.garment_mask

    def resting(self) -> list[nn.Parameter]:
        """Parameters that do not learn in this step."""
        networks = zip(self.networks().values(), self.learning, strict=True)
        return [
            parameter
            for network, learns in networks
            if not learns
            for parameter in network.parameters()
        ]

    def on_before_optimizer_step(self, optimizer) -> None:
        for (
            parameter
        ) in self.resting():  # from gradients of zero Adam would go on in its old direction
            parameter.grad = None

    def generate(self, batch: TryOnBatch, seed: int = 0) -> Tensor:
        return self.predict_step(batch, 0).pictures

    @torch.no_grad()
    def predict_step(self, batch: TryOnBatch, batch_index: int) -> PicturesAndSilhouettes:
        worn = self.put_on(batch)
        return PicturesAndSilhouettes(warped_garment(worn), worn.warped_mask)

    @torch.no_grad()
    def put_on(self, batch: TryOnBatch) -> TryOnBatch:
        """The batch with this warp in the place of its own, which model.start=geometric begins
        with.
        """
        garment, silhouette = self.network(
            *self.start(batch), batch.agnostic, batch.agnostic_mask, batch.keypoints
        )
        return replace(batch, warped_garment=garment, warped_mask=silhouette)
