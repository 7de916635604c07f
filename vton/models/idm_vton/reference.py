"""IDM-VTON's part of `vton verify`: reference tensors recomputed by the code that trains and
samples.

Preprocessing, tokens, garment features, one transformer block from inside, a guided call, a short
run through the shared sampler, and one training step with gradients.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vton.config import SamplerConfig
from vton.diffusion.denoiser import Conditions
from vton.diffusion.sampling import double, sample
from vton.diffusion.solvers import make_solver
from vton.models.encoders import ClipImageEncoder
from vton.models.idm_vton.building import published_arguments, without_added_embedding
from vton.models.idm_vton.network import IdmVton, NullPrompt, TryonNet, latent_mask
from vton.models.reference import Kind, Reference, read_objective, read_resampler
from vton.models.unet import execution_order, garment_taps
from vton.weights.pretrained import load_state, read_safetensors

PIXELS_PER_LATENT = 8


def kind(name: str) -> Kind:
    if name.endswith("timesteps") or name.startswith("scheduler.timesteps"):
        return Kind.EXACT
    if name.startswith("sampler."):
        return Kind.STEPS
    return Kind.GRADIENT if name.startswith("train.grad") else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of outputs.safetensors under its name there."""
    networks = Networks(reference)
    with torch.no_grad():
        found = (
            preprocessing(reference)
            | garment_reading(networks)
            | guided_call(networks)
            | schedule(networks)
        )
        found |= short_run(networks)
    return found | training_step(networks)


class Networks:
    """The folder's networks behind IdmVton, and its settings as ours."""

    def __init__(self, reference: Reference):
        self.reference, self.inputs, self.settings = reference, reference.inputs, reference.config
        self.tryon, self.clip = build_tryon(self.settings), build_clip(self.settings)
        self.garment_net = UNet2DConditionModel(
            **published_arguments(self.settings["unet_encoder"])
        )
        self.load(self.tryon.unet, "unet")
        self.load(self.garment_net, "unet_encoder")
        self.load(self.clip.tower, "image_encoder")
        for network in (self.tryon, self.garment_net, self.clip):
            network.to(reference.device, reference.dtype).eval()
            network.requires_grad_(network is self.tryon)
        self.model = IdmVton(self.tryon, self.garment_net, self.null_prompt)
        run, noise = self.settings["run"], self.settings["scheduler"]
        self.objective = read_objective(noise)
        self.guidance = (
            run["guidance_scale"] if run["guidance_scale"] > 1 else 1.0
        )  # below 1 the reference has none
        self.sampler = SamplerConfig(
            solver="ddpm",
            steps=run["sampler_steps"],
            guidance=self.guidance,
            spacing=noise["timestep_spacing"],
            clip_sample=noise["clip_sample_range"] if noise["clip_sample"] else 0.0,
        )

    def load(self, network: nn.Module, part: str) -> None:
        weights = self.reference.weights(part)
        if part == "unet_encoder":
            weights = without_added_embedding(network, weights)
        load_state(network, weights, self.reference.folder / f"weights_{part}.safetensors")

    def null_prompt(self) -> NullPrompt:
        i = self.inputs
        empty = self.clip.read(torch.zeros_like(i["clip_pixel_values"]))
        return NullPrompt(i["negative_prompt_embeds"], i["negative_pooled_prompt_embeds"], empty)

    def conditions(self, size_ids: Tensor) -> Conditions:
        i = self.inputs
        return self.model.condition(
            mask=i["mask_latent"],
            masked=i["masked_image_latents"],
            pose=i["pose_latents"],
            text=i["prompt_embeds"],
            pooled=i["pooled_prompt_embeds"],
            size_ids=size_ids,
            image_tokens=self.tryon.image_tokens(self.clip.read(i["clip_pixel_values"])),
            garment=torch.arange(len(i["garment_latents"]), device=size_ids.device),
            garment_latents=i["garment_latents"],
            garment_text=i["garment_prompt_embeds"],
        )


def build_tryon(settings: dict) -> TryonNet:
    sizes, image_prompt = settings["resampler"], settings["ip_adapter"]
    resampler = read_resampler(sizes)
    unet = UNet2DConditionModel(**published_arguments(settings["unet"]))
    return TryonNet(unet, resampler, image_prompt["scale"])


def build_clip(settings: dict) -> ClipImageEncoder:
    return ClipImageEncoder(
        CLIPVisionModelWithProjection(CLIPVisionConfig(**settings["image_encoder"])), "crop"
    )


def preprocessing(reference: Reference) -> dict[str, Tensor]:
    """From [0, 1] pictures and soft masks to what the networks are given; in float32 whatever the
    networks run in.
    """
    pictures = read_safetensors(reference.folder / "inputs.safetensors")
    image = pictures["prep.image01"] * 2 - 1
    mask = (pictures["prep.mask01"] >= 0.5).to(image.dtype)
    size = tuple(side // PIXELS_PER_LATENT for side in mask.shape[-2:])
    return {
        "prep.image": image,
        "prep.mask_binary": mask,
        "prep.masked_image": image * (1 - mask),
        "prep.mask_latent": latent_mask(mask, size),
    }


def garment_reading(networks: Networks) -> dict[str, Tensor]:
    """CLIP states, image tokens and GarmentNet's features."""
    i, tryon = networks.inputs, networks.tryon
    clip, empty = networks.clip.read(i["clip_pixel_values"]), networks.null_prompt().clip
    taps, discarded = whole_garment_pass(networks)
    return {
        "clip.hidden_cond": clip,
        "clip.hidden_uncond": empty,
        "image_tokens": torch.cat([tryon.image_tokens(empty), tryon.image_tokens(clip)]),
        "garment.discarded_sample": discarded,
        **{f"garment.feature.{index:03}": feature for index, feature in enumerate(taps.values())},
    }


def whole_garment_pass(networks: Networks) -> tuple[dict[str, Tensor], Tensor]:
    """The taps, and the state behind the block of the last one."""
    i, unet, seen = networks.inputs, networks.garment_net, {}
    last = unet.get_submodule(".".join(execution_order(unet)[-1].split(".")[:2]))
    handle = last.register_forward_hook(
        lambda module, arguments, output: seen.update(sample=output)
    )
    taps = garment_taps(
        unet, i["garment_latents"], i["timestep"], i["garment_prompt_embeds"], whole=True
    )
    handle.remove()
    return taps, seen["sample"]


def guided_call(networks: Networks) -> dict[str, Tensor]:
    """One denoiser call on both guidance branches, watched inside one transformer block."""
    model, i = networks.model, networks.inputs
    conditions = networks.conditions(i["time_ids"])
    both = double(model.unconditional(conditions), conditions)
    z = torch.cat([i["latents"], i["latents"]])
    t = i["timestep"].expand(len(z))
    features = model.garment_features(both, t)
    name = networks.settings["run"]["hooked_block"]
    with watched(networks.tryon.unet.get_submodule(name)) as seen:
        prediction = model.denoise(z, t, both, features)
    uncond, cond = prediction.chunk(2)
    return {
        "tryon.input13": model.tryon_input(z, both),
        "tryon.noise_pred_cfg_batch": prediction,
        "tryon.noise_pred_guided": uncond
        + networks.settings["run"]["guidance_scale"] * (cond - uncond),
        **inside_block(networks, name, seen, features),
    }


class watched:
    """Inputs and outputs of a transformer block and its layers while the context lasts: {"norm1":
    (in, out), ...}.
    """

    def __init__(self, block: nn.Module):
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        names = ("norm1", "attn1", "norm2", "attn2", "norm3", "ff")
        layers = {"": block} | {name: getattr(block, name) for name in names}
        self.handles = [
            layer.register_forward_hook(self.hook(name)) for name, layer in layers.items()
        ]

    def hook(self, name: str):
        def remember(module, arguments, output):
            self.seen[name] = (arguments[0] if arguments else None, output)

        return remember

    def __enter__(self) -> dict[str, tuple[Tensor, Tensor]]:
        return self.seen

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def inside_block(
    networks: Networks, name: str, seen: dict, features: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The intermediate results. The garment's rows of self-attention, which the model never forms,
    are added here.
    """
    unet = networks.tryon.unet
    g = features[str(execution_order(unet).index(name))]
    g = torch.cat([g, g.new_zeros(1, *g.shape[1:])])[
        features["row"]
    ]  # zeros for the unconditional rows
    person = seen["norm1"][1]
    joined = torch.cat([person, g], 1)
    everything = AttnProcessor2_0()(unet.get_submodule(f"{name}.attn1"), joined)
    return {
        "tryon.block.block_input": seen["norm1"][0],
        "tryon.block.norm1_out": person,
        "tryon.block.attn1_in": joined,
        "tryon.block.attn1_out": torch.cat([seen["attn1"][1], everything[:, person.shape[1] :]], 1),
        "tryon.block.after_attn1_residual": seen["norm2"][0],
        "tryon.block.norm2_out": seen["norm2"][1],
        "tryon.block.attn2_out": seen["attn2"][1],
        "tryon.block.after_attn2_residual": seen["norm3"][0],
        "tryon.block.ff_out": seen["ff"][1],
        "tryon.block.block_output": seen[""][1],
    }


def schedule(networks: Networks) -> dict[str, Tensor]:
    """The noise level of every t, and the visited timesteps for each length that the folder names."""
    found = {"scheduler.alphas_cumprod": networks.objective.alphas_cumprod}
    for name in networks.reference.expected:
        if name.startswith("scheduler.timesteps_"):
            steps = SamplerConfig(**vars(networks.sampler) | {"steps": int(name.rsplit("_", 1)[1])})
            found[name] = make_solver(steps, networks.objective, torch.device("cpu")).timesteps
    return found


def short_run(networks: Networks) -> dict[str, Tensor]:
    """The shared sampling loop with the recorded noise."""
    i, predictions, latents = networks.inputs, [], []
    draws = iter([i["sampler.init_noise"], *i["sampler.step_noise"]])
    sample(
        networks.model,
        networks.conditions(i["time_ids"]),
        lambda: next(draws),
        networks.sampler,
        networks.objective,
        watch=lambda step, prediction, z: (predictions.append(prediction), latents.append(z)),
    )
    return {
        "sampler.timesteps": make_solver(
            networks.sampler, networks.objective, torch.device("cpu")
        ).timesteps,
        "sampler.guided_eps": torch.stack(predictions),
        "sampler.latents_after_step": torch.stack(latents),
    }


def training_step(networks: Networks) -> dict[str, Tensor]:
    """Loss and gradients of one step without guidance or dropout, GarmentNet frozen."""
    model, i, objective = networks.model, networks.inputs, networks.objective
    x0, eps, t = i["train.clean_latents"], i["train.noise"], i["train.timesteps"]
    z_t = objective.add_noise(x0, eps, t)
    conditions = networks.conditions(i["train.time_ids"])
    features = model.garment_features(conditions, t)
    prediction = model.denoise(z_t, t, conditions, features)
    loss = objective.loss(prediction, objective.noised(x0, eps, t)).mean()
    networks.tryon.zero_grad()
    loss.backward()
    gradients = {f"train.grad.{name}": p.grad for name, p in networks.tryon.unet.named_parameters()}
    wanted = networks.reference.expected
    return {
        "train.noisy_latents": z_t,
        "train.noise_pred": prediction.detach(),
        "train.loss": loss.detach(),
        "train.grad_norm_total": torch.stack([g.float().norm() for g in gradients.values()]).norm(),
        **{
            f"train.garment.feature.{k:03}": features[str(k)][features["row"]]
            for k in range(model.blocks)
        },
        **{name: gradient for name, gradient in gradients.items() if name in wanted},
    }
