"""IMAGDressing-v1's part of `vton verify`: tensors recomputed by the code that trains and samples.

Projector and identity tokens, garment features, one hybrid layer, whole UNets, a training step with
gradients, and the sampling runs of config.json with their plug-ins through the shared loop.
"""

from __future__ import annotations

from functools import cached_property

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from vton.config import SamplerConfig
from vton.diffusion.denoiser import Conditions, Known, Step
from vton.diffusion.objective import Objective
from vton.diffusion.sampling import double
from vton.models.codecs import latent_mask
from vton.models.imagdressing.checkpoint import split_published
from vton.models.imagdressing.control import Control
from vton.models.imagdressing.faceid import FaceID
from vton.models.imagdressing.network import Dresser, Face, GarmentAdapter
from vton.models.reference import (
    Kind,
    Reference,
    read_objective,
    read_resampler,
    record_calls,
    run_sampler,
)


def kind(name: str) -> Kind:
    if name.startswith("garment_wrong_t."):
        return Kind.CONTROL
    if name.endswith(".timesteps") or name == "train.ref_unet_params_without_grad":
        return Kind.EXACT
    if name.endswith(".latents_steps"):
        return Kind.STEPS
    return Kind.GRADIENT if name.startswith("train.grad.") else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of outputs.safetensors under its name there."""
    networks = Networks(reference)
    with torch.no_grad():
        tensors = tokens(networks)
        tensors |= garment_features(networks)
        tensors |= dressing(networks)
        for name, settings in reference.config["calls"].items():
            tensors |= sampling_call(networks, name, settings)
    return tensors | training_step(networks)


class Networks:
    """The folder's networks, without plug-ins, and its noise schedules."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self.inputs = reference.inputs
        self.settings = reference.config

        self.unet = UNet2DConditionModel(**self.settings["unet"])
        reference.load(self.unet, "base_unet")
        parts, _ = split_published(reference.weights("checkpoint"), reference.folder)
        self.garment_unet = UNet2DConditionModel(**self.settings["unet"])
        reference.ready(self.garment_unet, parts["garment_unet"])
        self.projector = read_resampler(self.settings["proj"])
        reference.ready(self.projector, parts["projector"])
        self.adapter = GarmentAdapter(self.unet)
        reference.ready(self.adapter, parts["adapter"])
        self.dresser = self.with_plugins()

    def with_plugins(
        self, controls: dict[str, Control] | None = None, face: FaceID | None = None
    ) -> Dresser:
        return Dresser(self.unet, self.garment_unet, self.projector, self.adapter, controls, face)

    @cached_property
    def controlnet(self) -> ControlNetModel:
        net = ControlNetModel(**self.settings["controlnet"])
        return self.reference.load(net, "controlnet")

    @cached_property
    def face(self) -> FaceID:
        shapes = self.reference.weights("faceid")
        return self.reference.load(FaceID.shaped(shapes, self.unet), "faceid")

    def objective(self, part: str, **settings) -> Objective:
        return read_objective(self.settings[part], **settings)

    def predict(self, z_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        features = self.dresser.garment_features(conditions, t)
        return self.dresser.denoise(z_t, t, conditions, features)

    def training_conditions(self) -> Conditions:
        i = self.inputs
        return self.dresser.condition(
            text=i["text_embeds"],
            negative_text=i["negative_text_embeds"],
            garment_latents=i["garment_latents"],
            clip=i["clip_hidden"],
        )

    def noisy_latents(self) -> Tensor:
        i, objective = self.inputs, self.objective("training_scheduler")
        return objective.add_noise(i["person_latents"], i["noise"], i["timesteps"])


# ---- single calls ----


def tokens(networks: Networks) -> dict[str, Tensor]:
    """Garment tokens, and identity tokens of a face and of nobody."""
    i = networks.inputs
    tensors = {
        "proj_tokens": networks.projector(i["clip_hidden"]),
        "proj_tokens_null": networks.projector(i["clip_hidden_null"]),
    }
    if "face_id_embeds" in i:
        project = networks.face.image_proj
        embedding, clip = i["face_id_embeds"], i["face_clip_hidden"]
        nobody = torch.zeros_like(embedding)
        shortcut = networks.settings["faceid"]["shortcut_scale_example"]
        tensors["face.id_tokens"] = project(embedding, clip)
        tensors["face.id_tokens_shortcut"] = project(embedding, clip, shortcut)
        tensors["face.id_tokens_uncond"] = project(nobody, i["clip_hidden_null"])
    return tensors


def garment_features(networks: Networks) -> dict[str, Tensor]:
    """What the garment UNet exports, compared with the recorded features at a wrong t too."""
    i, tensors = networks.inputs, {}
    taps = networks.dresser.garment_taps(i["garment_latents"], i["clip_hidden"])
    for block, tap in taps.items():
        tensors[f"garment.{block}.attn1"] = tap
        tensors[f"garment_wrong_t.{block}.attn1"] = tap
    return tensors


def dressing(networks: Networks) -> dict[str, Tensor]:
    """The dressing UNet at several lambda and without a garment, and one layer of it alone."""
    model, t, z_t = networks.dresser, networks.inputs["timesteps"], networks.noisy_latents()
    conditions = networks.training_conditions()
    layer = networks.unet.get_submodule(networks.settings["hybrid_example_layer"])
    with record_calls({"hybrid": layer}) as calls:
        networks.predict(z_t, t, conditions)
    hidden = calls["hybrid"].input
    bare = model.unconditional(conditions) | {"text": conditions["text"]}
    tensors = {
        "hybrid.input": hidden,
        "hybrid.output_no_garment": layer(hidden),
        "unet.eps_no_garment": networks.predict(z_t, t, bare),
    }
    for name in networks.reference.expected:  # e.g. unet.eps_scale_0.6
        what, _, scale = name.rpartition("_scale_")
        if what not in ("hybrid.output", "unet.eps"):
            continue
        garment_scale = torch.full_like(conditions["garment_scale"], float(scale))
        scaled = conditions | {"garment_scale": garment_scale}
        if what == "unet.eps":
            tensors[name] = networks.predict(z_t, t, scaled)
        else:
            garments = model.garments(scaled, model.garment_features(scaled, t))
            tensors[name] = layer(hidden, garments=garments)
    return tensors


def training_step(networks: Networks) -> dict[str, Tensor]:
    """Loss and gradients of one step; the dressing UNet is frozen."""
    i, objective = networks.inputs, networks.objective("training_scheduler")
    gamma = networks.settings["min_snr_gamma_example"]
    weighted = networks.objective("training_scheduler", loss_weight="min_snr", min_snr_gamma=gamma)
    x0, eps, t = i["person_latents"], i["noise"], i["timesteps"]
    z_t = networks.noisy_latents()
    networks.unet.requires_grad_(False)
    prediction = networks.predict(z_t, t, networks.training_conditions())
    loss = objective.loss(prediction, objective.noised(x0, eps, t)).mean()
    loss.backward()

    signal, noise = objective.signal_and_noise(t, x0.float())
    min_snr_loss = weighted.loss(prediction, weighted.noised(x0, eps, t)).mean()
    tensors = {
        "train.alphas_cumprod": objective.alphas_cumprod,
        "train.snr": ((signal / noise) ** 2).flatten(),
        "train.noisy_latents": z_t,
        "train.noise_pred": prediction.detach(),
        "train.loss": loss.detach().view(1),
        "train.loss_min_snr": min_snr_loss.detach().view(1),
    }
    trained = {
        "ref_unet": networks.garment_unet,
        "proj": networks.projector,
        "adapter_modules": networks.adapter,
    }
    for part, network in trained.items():
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                tensors[f"train.grad.{part}.{name}"] = parameter.grad
    unread = [
        parameter for parameter in networks.garment_unet.parameters() if parameter.grad is None
    ]
    tensors["train.ref_unet_params_without_grad"] = torch.tensor([len(unread)])
    return tensors


# ---- sampling runs ----


def sampling_call(networks: Networks, name: str, settings: dict) -> dict[str, Tensor]:
    """One of config.json's `calls`, whose settings and name say which plug-ins it has.

    The timesteps, latents after each step, and the first step from inside.
    """
    pictures = control_pictures(networks, name, settings)
    model = networks.with_plugins(
        {control: reference_control(networks, settings) for control in pictures},
        reference_face(networks, name, settings),
    )
    conditions = call_conditions(networks, model, pictures, settings)
    noise = networks.settings["inference_scheduler"]
    sampler = SamplerConfig(
        solver="ddim",
        steps=settings["num_inference_steps"],
        guidance=settings["guidance_scale"],
        spacing=noise.get("timestep_spacing", "leading"),
        zero_terminal_snr=noise.get("rescale_betas_zero_snr", False),
    )
    start = networks.inputs["init_latents"]
    objective = networks.objective("inference_scheduler")
    networks.reference.check_scheduler(sampler, objective, "inference_scheduler")
    run = run_sampler(model, conditions, [start], sampler, objective)
    tensors = {"timesteps": run.timesteps, "latents_steps": torch.cat(run.latents)}
    tensors |= first_step(model, conditions, start, run.timesteps)
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def control_pictures(networks: Networks, name: str, settings: dict) -> dict[str, Tensor]:
    """The picture of each ControlNet: for inpainting where the name says so, else for the pose.

    It is for both where the name says both, and none where the settings give no scale.
    """
    i, pictures = networks.inputs, {}
    if "controlnet_conditioning_scale" not in settings:
        return pictures
    if "pose" in name or "inpaint" not in name:
        pictures["pose"] = i["control_image"]
    if "inpaint" in name:
        pictures["inpaint"] = i["inpaint_control_image"]
    return pictures


def reference_control(networks: Networks, settings: dict) -> Control:
    return Control(
        networks.controlnet,
        scale=settings["controlnet_conditioning_scale"],
        start=settings.get("control_guidance_start", 0.0),
        end=settings.get("control_guidance_end", 1.0),
    )


def reference_face(networks: Networks, name: str, settings: dict) -> FaceID | None:
    """FaceID with the run's scales; None for runs without.

    "noface" in the name: FaceID's network without a face, for which upstream cuts text tokens.
    """
    absent = "noface" in name
    has_face = "ipa_scale" in settings
    if not has_face and not absent:
        return None
    face = networks.face
    face.cut_text = absent
    if has_face:
        face.scale = settings["ipa_scale"]
        face.self_lora = settings["s_lora_scale"]
        face.cross_lora = settings["c_lora_scale"]
    return face


def call_conditions(
    networks: Networks, model: Dresser, pictures: dict[str, Tensor], settings: dict
) -> Conditions:
    i, count = networks.inputs, len(networks.inputs["init_latents"])
    face = known = None
    if "ipa_scale" in settings:
        face = Face(i["face_id_embeds"], i["face_clip_hidden"], i["clip_hidden_null"])
    if "inpaint" in pictures:
        latents = i["inpaint_image_latents"]
        known = Known(latent_mask(i["inpaint_mask_image"], latents.shape[-2:]), latents)
    return model.condition(
        text=i["text_embeds"][:count],
        negative_text=i["negative_text_embeds"],
        garment_latents=i["garment_latents"][:count],
        clip=i["clip_hidden"][:count],
        garment_scale=settings["image_scale"],
        control=pictures,
        face=face,
        known=known,
    )


def first_step(
    model: Dresser, conditions: Conditions, start: Tensor, timesteps: Tensor
) -> dict[str, Tensor]:
    """Both predictions and the ControlNets' residuals."""
    both = double(model.unconditional(conditions), conditions)
    z = torch.cat([start, start])
    t = timesteps[:1].expand(len(z))
    features = model.garment_features(both, t, Step(0, len(timesteps)))
    uncond, cond = model.denoise(z, t, both, features).chunk(2)
    tensors = {"eps_uncond_step0": uncond, "eps_cond_step0": cond}
    if model.controls:
        z = z.to(model.unet.dtype)
        residuals = model.control_residuals(z, t, both, features)
        if residuals is None:  # none acts at this step: all residuals are 0
            silent = {f"control.{name}": torch.zeros(()) for name in model.controls}
            residuals = model.control_residuals(z, t, both, features | silent)
        *down, middle = residuals
        for index, residual in enumerate(down):
            tensors[f"control_down_{index:02}"] = residual
        tensors["control_mid"] = middle
    return tensors
