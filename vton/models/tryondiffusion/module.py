"""TryOnDiffusion (Zhu et al., CVPR 2023, arXiv 2306.08276) behind the contract: one stage of the
cascade per run.

A batch becomes the tensors that vton/models/tryondiffusion/stages.py works on: clothing-agnostic
picture, segmented garment, both poses, the low-resolution result, and the noise on all of these
pictures. With `model.warp_first` the base stage is two networks in sequence: `WarpDiffusion`, then
the usual one.

Legend: B batch, H W picture size, K keypoints, L number of the stage's conditional images.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vton.config import ConfigError, ExperimentConfig, ObjectiveConfig
from vton.data.sample import DataError, TryOnBatch
from vton.diffusion import noise
from vton.diffusion.denoiser import Conditions, Denoiser
from vton.diffusion.objective import Noised, Objective
from vton.diffusion.solvers import sampling_times
from vton.models.base import TryOnModule
from vton.models.rows import index_on
from vton.models.tryondiffusion.config import TryOnDiffusionConfig
from vton.models.tryondiffusion.layers import ResBlock, Unit
from vton.models.tryondiffusion.network import EfficientUNet, ParallelUNet
from vton.models.tryondiffusion.reuse import GarmentReuse
from vton.models.tryondiffusion.stages import TryOnStage, UpscaleStage
from vton.processes import to_device
from vton.registry import register
from vton.weights.unfilled import lay_out_channels_last

IMAGES = {
    "base": ("agnostic", "garment"),
    "sr256": ("agnostic", "garment", "lowres"),
    "sr1024": ("lowres",),
}
# Embeddings, and FiLM's layers, which read them.
MODULATING = re.compile(r"\.(embedding|time|level|film)\.")
# COCO's 17 joints among the data's 18: nose; eyes, ears, shoulders, elbows, wrists, hips, knees,
# ankles, left first.
COCO_17 = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]


@register(TryOnDiffusionConfig)
class TryOnDiffusion(TryOnModule):
    """The network of `model.stage`, trained as a whole, from scratch, on pixels."""

    BLOCKS = (Unit,)
    COMPILED = (ResBlock,)
    denoiser: TryOnStage | UpscaleStage

    @classmethod
    def reads(cls, config: ExperimentConfig) -> frozenset[str]:
        return frozenset(
            (
                "person",
                "agnostic",
                "agnostic_mask",
                "garment",
                "garment_mask",
                "keypoints",
                "truth",
                "truth_garment_mask",
            )
        )

    def build(self) -> Denoiser:
        model: TryOnDiffusionConfig = self.config.model
        if self.config.codec.name != "identity":
            raise ConfigError(
                f"codec.name={self.config.codec.name}: model=tryondiffusion paints pixels; set "
                "codec.name=identity."
            )
        self.network = self.build_network()
        # A training step takes 0.80 to 0.85 of the time on a CPU.
        lay_out_channels_last(self.network)
        self.require_size(self.network.factor)
        self.curve = self.objective
        if model.augmentation.curve != "schedule":
            schedule = f"continuous_{model.augmentation.curve}"
            self.curve = Objective(ObjectiveConfig(schedule=schedule))
        self.warp = WarpDiffusion.before(self) if model.warp_first else None

        timesteps = self.config.objective.train_timesteps
        if model.stage == "sr1024":
            return UpscaleStage(self.network, model, timesteps)
        reuse = GarmentReuse(
            self.network, self.grid, timesteps, model.garment_steps, model.null_table
        )
        return TryOnStage(self.network, model, timesteps, reuse)

    def build_network(self) -> ParallelUNet | EfficientUNet:
        model: TryOnDiffusionConfig = self.config.model
        if model.stage == "sr1024":
            return EfficientUNet(model.sr1024)
        height, width = self.config.data.size
        shape = getattr(model, model.stage)
        coordinates = 3 if model.visibility else 2
        aspect = height / width
        return ParallelUNet(shape, self.images, model.keypoints, coordinates, aspect=aspect)

    def require_size(self, factor: int) -> None:
        """Raise ConfigError unless pictures can be reduced `factor` times."""
        height, width = self.config.data.size
        if height % factor or width % factor:
            raise ConfigError(
                f"data.size={[height, width]} must be divisible by {factor}, by which "
                f"model.{self.config.model.stage} reduces pictures."
            )

    def networks(self) -> dict[str, nn.Module]:
        if isinstance(self.network, ParallelUNet):
            networks = dict(self.network.named_children())
        else:
            networks = {"efficient_unet": self.network}
        if self.warp is not None:
            for name, network in self.warp.network.named_children():
                networks[f"warp_{name}"] = network
        return networks | self.frozen

    def trained_parameters(self) -> list[dict]:
        """All, but for the garment pose's linear layer where that pose is zero: only its bias
        matters then.
        """
        model = self.config.model
        idle = ("embedding.garment.linear.weight",) if model.garment_pose is None else ()
        modulating, others = [], []
        for name, parameter in self.named_parameters():
            if name.endswith(idle):
                continue
            if MODULATING.search(name):
                modulating.append(parameter)
            else:
                others.append(parameter)
        rate = self.config.train.lr * model.modulation_lr
        return [{"params": others}, {"params": modulating, "lr": rate}]

    def train(self, mode: bool = True):
        """Also forgets kept features: averaged weights are swapped in and out between changes of
        mode.
        """
        if isinstance(self.denoiser, TryOnStage):
            self.denoiser.reuse.forget()
        return super().train(mode)

    def grid(self) -> list[float]:
        """The timesteps of the configured sampling run."""
        return sampling_times(self.config.sampler, self.objective).tolist()

    # ---- conditions ----

    def wearing(self, conditions: Conditions) -> Tensor:
        return conditions["null"] == 0 if "null" in conditions else super().wearing(conditions)

    def training_view(self, batch: TryOnBatch) -> TryOnBatch:
        """The 1024 stage trains on crops of the person, drawn from (seed, position)."""
        if self.config.model.stage != "sr1024":
            return batch
        height, width = batch.person.shape[-2:]
        crop_height = min(self.config.model.crop_px, height)
        crop_width = min(self.config.model.crop_px, width)
        crops = []
        for picture, position in zip(batch.person, batch.position, strict=True):
            draw = noise.generator(self.config.seed, "crop", position)
            down, right = torch.rand(2, generator=draw).tolist()
            top = int(down * (height - crop_height + 1))
            left = int(right * (width - crop_width + 1))
            crops.append(picture[:, top : top + crop_height, left : left + crop_width])
        return replace(batch, person=torch.stack(crops))

    def condition(self, batch: TryOnBatch, warped: Tensor | None = None) -> Conditions:
        """What the stage sees, with the noise of `model.augmentation` on its pictures.

        warped: for warp_first, the first network's (B, 3, H, W) in [-1, 1]; without it, that
            network is sampled here.

        An upper stage enlarges batch.lowres, the result of the stage before it:
        (B, 3, H / n, W / n) with n = 2 for sr256 and 4 for sr1024. Without it the reduced truth
        stands in, which shows what this stage alone can do.

        Augmentation noise depends on the pair and eval.seed, not on the seed of the picture. Raises
        DataError where there is no truth either, and ValueError for a result of another size.
        """
        draws = {}
        for name in self.images:
            draws[name] = []
            for order, pair in zip(batch.order, batch.pair_name, strict=True):
                key = (self.config.eval.seed, "augmentation", name, order, pair)
                draws[name].append(noise.generator(*key))
        levels = [getattr(self.config.model.augmentation, name) for name in self.images]
        lowres = batch.lowres
        if lowres is None and "lowres" in self.images:
            lowres = self.reduced(self.truth_of(batch))
        if lowres is not None:
            self.check_lowres(lowres, batch)
        if self.warp is not None and warped is None:
            warped = self.warp.generate(batch, self.warp.config.eval.seed)
        levels = torch.tensor([levels], dtype=batch.person.dtype)
        return self.read(batch, lowres, warped, levels, draws)

    def truth_of(self, batch: TryOnBatch) -> Tensor:
        if batch.truth is None:
            raise DataError(
                f"{batch.dataset[0]} {batch.order[0]} {batch.pair_id[0]}: "
                f"model.stage={self.config.model.stage} enlarges the former stage's result, and "
                "without one the truth, which real unpaired pairs lack; use eval.orders=[paired]."
            )
        return batch.truth

    def training_condition(self, batch: TryOnBatch, u: Tensor) -> Conditions:
        """Own noise levels for every image and sample; one coin per sample drops everything."""
        draws, levels = {}, []
        for name in self.images:
            keys = ((self.config.seed, "augmentation", name, place) for place in batch.position)
            draws[name] = [noise.generator(*key) for key in keys]
            low, high = self.config.model.augmentation.training_range(name)
            levels.append(low + (high - low) * noise.uniform(draws[name]))
        lowres = self.reduced(batch.person) if "lowres" in self.images else None
        warped = None
        if self.warp is not None:
            warped = worn_garment(batch, self.config.model.garment_fill)
        conditions = self.read(batch, lowres, warped, torch.stack(levels, 1), draws)
        return self.drop(conditions, u < self.config.model.condition_dropout)

    def extra_losses(
        self, batch: TryOnBatch, noised: Noised, prediction: Tensor
    ) -> dict[str, Tensor]:
        """warp_first: the first network's own diffusion loss, apart from the second's."""
        return {} if self.warp is None else {"warp": self.warp.training_step(batch, 0)}

    def check_lowres(self, lowres: Tensor, batch: TryOnBatch) -> None:
        """Raise ValueError unless `lowres` has the size that this stage enlarges."""
        stage, size = self.config.model.stage, list(lowres.shape[-2:])
        expected = None
        if "lowres" in self.images:
            expected = [side // self.factor for side in batch.person.shape[-2:]]
        if size != expected:
            raise ValueError(
                f"model.stage={stage} enlarges pictures of {expected or 'no size'}, not of {size}."
            )

    def can_sample(self, batch: TryOnBatch) -> bool:
        enlarged = batch.lowres if batch.lowres is not None else batch.truth
        return "lowres" not in self.images or enlarged is not None

    @property
    def images(self) -> tuple[str, ...]:
        """The stage's conditional images, in the order of their noise levels."""
        return IMAGES[self.config.model.stage]

    @property
    def factor(self) -> int:
        """How many times the stage enlarges the former one's pictures."""
        return self.config.model.CASCADE[self.config.model.stage]

    def read(
        self,
        batch: TryOnBatch,
        lowres: Tensor | None,
        warped: Tensor | None,
        levels: Tensor,
        draws: dict[str, list[torch.Generator]],
    ) -> Conditions:
        """Conditions with levels (B or 1, L), on the CPU, of noise from `draws`.

        Noise comes before everything else, so before the low-resolution result is enlarged. warped
        stands in for the segmented garment.
        """
        model: TryOnDiffusionConfig = self.config.model
        clean = {"lowres": lowres}
        if model.stage != "sr1024":
            clean["agnostic"] = batch.agnostic + model.agnostic_fill * batch.agnostic_mask
            clean["garment"] = warped
            if warped is None:
                clean["garment"] = torch.where(
                    batch.garment_mask > 0, batch.garment, model.garment_fill
                )
        images = {}
        rows = levels.expand(len(batch), -1).unbind(1)
        for name, level in zip(self.images, rows, strict=True):
            images[name] = self.with_noise(clean[name], level, draws[name])
        if lowres is not None:
            images["lowres"] = enlarged(images["lowres"], self.factor)
        if model.stage == "sr1024":
            return self.denoiser.condition(images, levels)
        poses = self.person_pose(batch), self.garment_pose(batch)
        return self.denoiser.condition(images, levels, *poses)

    def with_noise(self, image: Tensor, level: Tensor, draws: list[torch.Generator]) -> Tensor:
        """alpha_s image + sigma_s noise with s = level (B,), on the CPU; a level of 0 changes
        nothing.
        """
        if not level.any():
            return image
        signal, sigma = self.curve.signal_and_noise(self.curve.at(level), image)
        eps = noise.normal(image.shape[1:], draws, image)
        noisy = to_device(level > 0, image.device).view(-1, 1, 1, 1)
        return torch.where(noisy, signal * image + sigma * eps, image)

    def reduced(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H / n, W / n), antialiased: the former stage's result as training
        knows it.
        """
        size = [side // self.factor for side in picture.shape[-2:]]
        if self.config.model.lowres_filter == "area":
            return F.interpolate(picture, size, mode="area")
        picture = F.interpolate(picture, size, mode="bicubic", antialias=True)
        return picture.clamp(-1, 1)  # bicubic overshoots

    def person_pose(self, batch: TryOnBatch) -> Tensor:
        return joints(batch.keypoints, self.config.model.keypoints, self.config.model.visibility)

    def garment_pose(self, batch: TryOnBatch) -> Tensor:
        """(B, K, 2 or 3): zeros or one constant: flat garments have no pose."""
        model: TryOnDiffusionConfig = self.config.model
        pose = joints(torch.ones_like(batch.keypoints), model.keypoints, model.visibility)
        if model.garment_pose is None:
            return torch.zeros_like(pose)
        pose[..., :2] = model.garment_pose_constant
        return pose


class WarpDiffusion(TryOnDiffusion):
    """The first of two base networks in sequence (appendix, Table 4, ablation 2): garment and both
    poses to the garment as worn.

    A diffusion model of its own: it learns what is cut out of the truth, with its own draws in
    training and in sampling but the same objective, sampler and guidance. The second network learns
    from the true cut-out, as a cascade's stages learn from the truth, and gets this one's result in
    sampling.
    """

    images = ("garment",)

    @classmethod
    def before(cls, second: TryOnDiffusion) -> WarpDiffusion:
        config = second.config
        own = replace(
            config,
            model=replace(config.model, warp_first=False),
            eval=replace(config.eval, seed=own_seed(config.eval.seed)),
            seed=own_seed(config.seed),
        )
        return cls(own, second.codec)

    def training_view(self, batch: TryOnBatch) -> TryOnBatch:
        return replace(batch, person=worn_garment(batch, self.config.model.garment_fill))


def own_seed(seed: int) -> int:
    """A seed of the first network's own."""
    return noise.generator(seed, "warp").initial_seed() % 2**32


def worn_garment(batch: TryOnBatch, fill: float) -> Tensor:
    """(B, 3, H, W): the person where the garment is, `fill` elsewhere; for paired order. Raises
    DataError without its mask.
    """
    if batch.truth_garment_mask is None:
        raise DataError(
            f"{batch.dataset[0]} {batch.order[0]} {batch.pair_id[0]}: model.warp_first=true learns "
            "from the garment as worn and needs to know where it is "
            "(TryOnSample.truth_garment_mask)."
        )
    return torch.where(batch.truth_garment_mask > 0, batch.person, fill)


def joints(keypoints: Tensor, count: int, visibility: bool) -> Tensor:
    """(B, 18, 3) of TryOnBatch -> (B, count, 2), or 3 with visibility; missing joints are zeros."""
    seen = (keypoints[..., 2:] > 0).to(keypoints.dtype)
    table = torch.cat([keypoints[..., :2] * seen, seen], -1)
    table = table[:, index_on(table.device, COCO_17)] if count == 17 else table
    return table if visibility else table[..., :2]


def enlarged(picture: Tensor, factor: int) -> Tensor:
    """(B, 3, h, w) -> (B, 3, factor h, factor w), bilinear, as in training (appendix)."""
    return F.interpolate(picture, scale_factor=factor, mode="bilinear", align_corners=False)
