"""IDM-VTON's part of `vton verify`: tensors recomputed by the code that trains and samples.

Preprocessing, tokens, garment features, one transformer block from inside, a guided call, a short
run through the shared sampler, and one training step with gradients.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vton.config import SamplerConfig
from vton.data.ranges import from_unit
from vton.diffusion.denoiser import Conditions
from vton.diffusion.sampling import double
from vton.diffusion.solvers import make_solver
from vton.models.codecs import latent_mask
from vton.models.encoders import ClipImageEncoder
from vton.models.idm_vton.building import without_added_embedding
from vton.models.idm_vton.network import IdmVton, NullPrompt, TryonNet
from vton.models.reference import (
    Call,
    Kind,
    Reference,
    read_objective,
    read_resampler,
    record_calls,
    run_sampler,
)
from vton.models.unet import execution_order, garment_taps, published_arguments
from vton.weights.pretrained import read_safetensors

PIXELS_PER_LATENT = 8
BLOCK_LAYERS = ("norm1", "attn1", "norm2", "attn2", "norm3", "ff")


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
        tensors = preprocessing(reference)
        tensors |= garment_reading(networks)
        tensors |= guided_call(networks)
        tensors |= schedule(networks)
        tensors |= short_run(networks)
    return tensors | training_step(networks)


class Networks:
    """The folder's networks behind IdmVton, and its settings as ours."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self.inputs = reference.inputs
        self.settings = reference.config

        self.tryon = reference_tryon(self.settings)
        reference.load(self.tryon.unet, "unet")
        self.garment_net = UNet2DConditionModel(
            **published_arguments(self.settings["unet_encoder"]) | {"addition_embed_type": None}
        )
        weights = reference.weights("unet_encoder")
        reference.ready(self.garment_net, without_added_embedding(self.garment_net, weights))
        self.garment_net.requires_grad_(False)
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**self.settings["image_encoder"]))
        reference.load(tower, "image_encoder")
        self.clip = ClipImageEncoder(tower, "crop").requires_grad_(False)
        self.clip.to(reference.device, reference.dtype)
        self.model = IdmVton(self.tryon, self.garment_net, self.null_prompt)

        run, scheduler = self.settings["run"], self.settings["scheduler"]
        guidance = run["guidance_scale"]
        clipped = scheduler.get("clip_sample_range", 1.0) if scheduler["clip_sample"] else 0.0
        self.objective = read_objective(scheduler)
        self.sampler = SamplerConfig(
            solver="ddpm",
            steps=run["sampler_steps"],
            guidance=guidance if guidance > 1 else 1.0,  # below 1 the reference has none
            spacing=scheduler["timestep_spacing"],
            clip_sample=clipped,
        )
        reference.check_scheduler(self.sampler, self.objective)

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


def reference_tryon(settings: dict) -> TryonNet:
    unet = UNet2DConditionModel(**published_arguments(settings["unet"]))
    return TryonNet(unet, read_resampler(settings["resampler"]), settings["ip_adapter"]["scale"])


def preprocessing(reference: Reference) -> dict[str, Tensor]:
    """From [0, 1] pictures and soft masks to what the networks are given.

    In float32, whatever the networks run in.
    """
    pictures = read_safetensors(reference.folder / "inputs.safetensors")
    image = from_unit(pictures["prep.image01"])
    mask = (pictures["prep.mask01"] >= 0.5).to(image.dtype)
    height, width = mask.shape[-2:]
    size = (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return {
        "prep.image": image,
        "prep.mask_binary": mask,
        "prep.masked_image": image * (1 - mask),
        "prep.mask_latent": latent_mask(mask, size),
    }


def garment_reading(networks: Networks) -> dict[str, Tensor]:
    """CLIP states, image tokens and GarmentNet's features."""
    i, tryon = networks.inputs, networks.tryon
    clip = networks.clip.read(i["clip_pixel_values"])
    empty = networks.null_prompt().clip
    tensors = {
        "clip.hidden_cond": clip,
        "clip.hidden_uncond": empty,
        "image_tokens": torch.cat([tryon.image_tokens(empty), tryon.image_tokens(clip)]),
    }

    # The state behind the block of the last feature, which the published code discards.
    unet = networks.garment_net
    last_block = ".".join(execution_order(unet)[-1].split(".")[:2])
    with record_calls({"last": unet.get_submodule(last_block)}) as calls:
        taps = garment_taps(
            unet, i["garment_latents"], i["timestep"], i["garment_prompt_embeds"], full_pass=True
        )
    tensors["garment.discarded_sample"] = calls["last"].output
    for index, feature in enumerate(taps.values()):
        tensors[f"garment.feature.{index:03}"] = feature
    return tensors


def guided_call(networks: Networks) -> dict[str, Tensor]:
    """One denoiser call on both guidance branches, and one transformer block of it from inside."""
    i, model, run = networks.inputs, networks.model, networks.settings["run"]
    conditions = networks.conditions(i["time_ids"])
    both = double(model.unconditional(conditions), conditions)
    z = torch.cat([i["latents"], i["latents"]])
    t = i["timestep"].expand(len(z))
    features = model.garment_features(both, t)
    name = run["hooked_block"]
    block = networks.tryon.unet.get_submodule(name)
    layers = {"block": block} | {layer: getattr(block, layer) for layer in BLOCK_LAYERS}
    with record_calls(layers) as calls:
        prediction = model.denoise(z, t, both, features)
    uncond, cond = prediction.chunk(2)

    index = execution_order(networks.tryon.unet).index(name)
    g = features[str(index)]
    g = torch.cat([g, torch.zeros_like(g[:1])])[features["row"]]  # zeros for unconditional rows
    return {
        "tryon.input13": model.tryon_input(z, both),
        "tryon.noise_pred_cfg_batch": prediction,
        "tryon.noise_pred_guided": uncond + run["guidance_scale"] * (cond - uncond),
        **inside_block(block, calls, g),
    }


def inside_block(block: nn.Module, calls: dict[str, Call], garment: Tensor) -> dict[str, Tensor]:
    """The block's intermediate results.

    garment (B, M, D): its tokens in self-attention, whose own rows the model never forms. They are
    added here.
    """
    person = calls["norm1"].output
    joined = torch.cat([person, garment], 1)
    everything = AttnProcessor2_0()(block.attn1, joined)
    of_garment = everything[:, person.shape[1] :]
    tensors = {
        "block_input": calls["norm1"].input,
        "norm1_out": person,
        "attn1_in": joined,
        "attn1_out": torch.cat([calls["attn1"].output, of_garment], 1),
        "after_attn1_residual": calls["norm2"].input,
        "norm2_out": calls["norm2"].output,
        "attn2_out": calls["attn2"].output,
        "after_attn2_residual": calls["norm3"].input,
        "ff_out": calls["ff"].output,
        "block_output": calls["block"].output,
    }
    return {f"tryon.block.{name}": tensor for name, tensor in tensors.items()}


def schedule(networks: Networks) -> dict[str, Tensor]:
    """The noise level of every t, and the visited timesteps for each length that is asked for."""
    tensors = {"scheduler.alphas_cumprod": networks.objective.alphas_cumprod}
    for name in networks.reference.expected:
        if name.startswith("scheduler.timesteps_"):
            sampler = replace(networks.sampler, steps=int(name.rsplit("_", 1)[1]))
            solver = make_solver(sampler, networks.objective)
            tensors[name] = solver.timesteps
    return tensors


def short_run(networks: Networks) -> dict[str, Tensor]:
    """The shared sampling loop with the recorded noise."""
    i = networks.inputs
    noise = [i["sampler.init_noise"], *i["sampler.step_noise"]]
    conditions = networks.conditions(i["time_ids"])
    run = run_sampler(networks.model, conditions, noise, networks.sampler, networks.objective)
    return {
        "sampler.timesteps": run.timesteps,
        "sampler.guided_eps": torch.stack(run.predictions),
        "sampler.latents_after_step": torch.stack(run.latents),
    }


def training_step(networks: Networks) -> dict[str, Tensor]:
    """Loss and gradients of one step without guidance or dropout, GarmentNet frozen."""
    i, model, objective = networks.inputs, networks.model, networks.objective
    x0, eps, t = i["train.clean_latents"], i["train.noise"], i["train.timesteps"]
    z_t = objective.add_noise(x0, eps, t)
    conditions = networks.conditions(i["train.time_ids"])
    features = model.garment_features(conditions, t)
    prediction = model.denoise(z_t, t, conditions, features)
    loss = objective.loss(prediction, objective.noised(x0, eps, t)).mean()
    networks.tryon.zero_grad()
    loss.backward()

    parameters = dict(networks.tryon.unet.named_parameters())
    norms = torch.stack([parameter.grad.float().norm() for parameter in parameters.values()])
    tensors = {
        "train.noisy_latents": z_t,
        "train.noise_pred": prediction.detach(),
        "train.loss": loss.detach(),
        "train.grad_norm_total": norms.norm(),
    }
    for block in range(model.blocks):
        tensors[f"train.garment.feature.{block:03}"] = features[str(block)][features["row"]]
    for name, parameter in parameters.items():
        if f"train.grad.{name}" in networks.reference.expected:
            tensors[f"train.grad.{name}"] = parameter.grad
    return tensors
