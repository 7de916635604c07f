"""CatVTON's part of `vton verify`: tensors recomputed by the code that trains and samples.

Pictures to latents, single calls of the UNet and one block from inside, guidance, sampling runs,
training steps with DREAM and gradients, and the same of DeCo-VTON.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from vton.config import SamplerConfig
from vton.data.ranges import from_bytes, to_unit
from vton.data.repaint import feathered
from vton.diffusion.denoiser import Conditions, drop_rows
from vton.diffusion.objective import Noised
from vton.diffusion.sampling import double
from vton.diffusion.solvers import make_solver
from vton.errors import UserError
from vton.models.catvton.checkpoint import first_names, numbered
from vton.models.catvton.network import CatVton, beside, dream, halves, is_trained, read_canvas
from vton.models.catvton.pictures import crop_to, fit_into
from vton.models.codecs import KLCodec, latent_mask
from vton.models.reference import Kind, Reference, Run, read_objective, record_calls, run_sampler
from vton.models.unet import attention_names

EXACT = (
    "checkpoint.trained",
    "prep.mask_latents",
    "prep.mask_concat",
    "picture.crop_rgb",
    "picture.pad_rgb",
)
STEPS = ("sample.person_latents", "sample.decoded", "deco.person_steps")


def kind(name: str) -> Kind:
    if name.startswith("wrong."):
        return Kind.CONTROL
    if name.endswith(".timesteps") or name in EXACT:
        return Kind.EXACT
    if name.endswith("_rgb"):
        return Kind.BYTES
    if name.endswith(".latents_steps") or name in STEPS:
        return Kind.STEPS
    return Kind.GRADIENT if ".grad." in name else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of the outputs under its name there."""
    networks = Networks(reference)
    with torch.no_grad():
        tensors = networks.prepared | single_calls(networks)
        tensors |= sampling_runs(networks)
        tensors |= resized_pictures(networks)
        tensors |= repainted(networks, tensors["sample.image_rgb"])
    tensors |= training_steps(networks)
    if any(name.startswith("deco.") for name in reference.expected):
        with torch.no_grad():
            tensors |= deco_sampling(networks)
        tensors |= deco_training(networks)
    return tensors


class Networks:
    """The folder's UNet with its attention file, its VAE, and its settings as ours."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self.inputs = reference.inputs
        self.settings = reference.config
        self.axis = self.settings.get("concat_axis", "height")
        self.objective = read_objective(self.settings["scheduler"])
        with torch.device("meta"):
            names = attention_names(UNet2DConditionModel(**self.settings["unet"]))
        # The file's name of each tensor of the attention layers, and the UNet's.
        self.names = numbered([name for name in names if name.endswith(".attn1")])
        vae = AutoencoderKL(**self.settings["vae"])
        self.codec = KLCodec(reference.load(vae, "vae", torch.float32))
        self.model = self.denoiser()

    def unet(self, axis: str, text: bool = False, published: bool = True) -> UNet2DConditionModel:
        """published: with the attention file's layers in place of the base's."""
        unet = UNet2DConditionModel(**self.settings["unet"])
        weights = self.reference.weights("unet")
        if published:
            path = self.reference.folder / "weights_attention.safetensors"
            stored, _ = first_names(self.reference.weights("attention"), path)
            differing = sorted(stored.keys() ^ self.names.keys())
            if differing:
                raise UserError(
                    f"{path}: does not hold exactly the attention layers of config.json's UNet: "
                    f"{', '.join(differing[:5])}."
                )
            weights |= {self.names[key]: tensor for key, tensor in stored.items()}
        self.reference.ready(unet, weights)
        read_canvas(unet, axis, text)
        return unet

    def denoiser(self, **changes) -> CatVton:
        return CatVton(self.unet(self.axis), self.axis, **changes)

    # ---- pictures to latents, in float32 whatever the UNet runs in ----

    def latents(self, name: str, keep: Tensor | None = None) -> Tensor:
        """A sample of the posterior with the recorded noise; keep: 1 where the picture is read."""
        of = "person" if name == "masked" else name
        picture = from_bytes(self.inputs[f"{of}_rgb"].float()).permute(0, 3, 1, 2).contiguous()
        posterior = self.codec.posterior(picture if keep is None else picture * keep)
        noise = self.inputs[f"vae_noise_{name}"].float()
        return self.codec.scaling * (posterior.mean + posterior.std * noise)

    @cached_property
    def prepared(self) -> dict[str, Tensor]:
        mask = (self.inputs["mask"][:, None] / 255 >= 0.5).float()
        with torch.no_grad():
            person, garment = self.latents("person"), self.latents("garment")
            masked = self.latents("masked", keep=1 - mask)
        mask = latent_mask(mask, person.shape[-2:])
        conditions = self.model.condition(mask=mask, masked=masked, garment=garment)
        return {
            "prep.person_latents": person,
            "prep.garment_latents": garment,
            "prep.masked_latents": masked,
            "prep.mask_latents": mask,
            "prep.mask_concat": conditions["mask"],
            "prep.masked_concat": conditions["masked"],
        }

    def conditions(self, model: CatVton) -> Conditions:
        dtype = self.reference.dtype
        return model.condition(
            mask=self.prepared["prep.mask_latents"].to(dtype),
            masked=self.prepared["prep.masked_latents"].to(dtype),
            garment=self.prepared["prep.garment_latents"].to(dtype),
        )

    def example(self) -> Noised:
        """The stack of person and garment at the recorded timesteps."""
        prepared, dtype = self.prepared, self.reference.dtype
        x0 = beside(prepared["prep.person_latents"], prepared["prep.garment_latents"], self.axis)
        i = self.inputs
        return self.objective.noised(x0.to(dtype), i["train_noise"], i["timesteps"])

    # ---- sampling ----

    def sampler(self, settings: dict) -> SamplerConfig:
        guidance = settings["guidance_scale"]
        return SamplerConfig(
            solver="ddim",
            steps=settings["num_inference_steps"],
            guidance=guidance if guidance > 1 else 1.0,  # below 1 the reference has none
            spacing=self.settings["scheduler"]["timestep_spacing"],
            eta=settings["eta"],
        )

    def run(self, model: CatVton, settings: dict) -> Run:
        noise = [self.inputs["init_noise"], *self.inputs["step_noise"]]
        sampler = self.sampler(settings)
        self.reference.check_scheduler(sampler, self.objective)
        return run_sampler(model, self.conditions(model), noise, sampler, self.objective)

    def branches(self, model: CatVton, settings: dict, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first step's input, without and with garment (2B rows), and its two predictions."""
        conditions = self.conditions(model)
        both = double(model.unconditional(conditions), conditions)
        solver = make_solver(self.sampler(settings), self.objective)
        z = torch.cat([z, z])
        prediction = model.denoise(z, solver.timesteps[0].expand(len(z)), both, {})
        uncond, cond = prediction.chunk(2)
        return model.canvas(z, both), uncond, cond


# ---- single calls ----


def single_calls(networks: Networks) -> dict[str, Tensor]:
    """The UNet with and without the attention file, on both axes, with text; a block of it."""
    i, model, settings = networks.inputs, networks.model, networks.settings
    z, t = i["init_noise"], i["timesteps"]
    conditions = networks.conditions(model)
    block = model.unet.get_submodule(settings["block_example"])
    layers = {"block": block, "attn1": block.attn1, "norm2": block.norm2}
    with record_calls(layers) as calls:
        eps = model.denoise(z, t, conditions, {})

    other = "width" if networks.axis == "height" else "height"
    sideways = CatVton(networks.unet(other), other)
    turned = beside(*halves(z, networks.axis), other)
    base = CatVton(networks.unet(networks.axis, published=False), networks.axis)
    reading = CatVton(networks.unet(networks.axis, text=True), networks.axis)
    with_text = conditions | {"text": i["text_embeds"]}
    tensors = {
        "unet.eps": eps,
        "unet.eps_base": base.denoise(z, t, conditions, {}),
        f"unet.eps_{'x' if other == 'width' else 'y'}_axis": sideways.denoise(
            turned, t, networks.conditions(sideways), {}
        ),
        "ablation.eps_text": reading.denoise(z, t, with_text, {}),
        "block.input": calls["block"].input,
        "block.attn1_output": calls["attn1"].output,
        "block.norm2_output": calls["norm2"].output,
        "block.output": calls["block"].output,
        "checkpoint.trained": trained_counts(networks),
    }
    for name in networks.reference.expected:
        if name.startswith("wrong."):
            tensors[name] = eps
    return tensors


def trained_counts(networks: Networks) -> Tensor:
    """How many tensors and how many values learn as published."""
    sizes = []
    for name, parameter in networks.model.unet.named_parameters():
        if is_trained(name, "attention", text=False):
            sizes.append(parameter.numel())
    return torch.tensor([len(sizes), sum(sizes)])


def resized_pictures(networks: Networks) -> dict[str, Tensor]:
    picture = Image.fromarray(networks.inputs["picture_rgb"].cpu().numpy())
    target = networks.settings["resize_target"]
    size = (target["height"], target["width"])
    return {
        "picture.crop_rgb": torch.from_numpy(np.array(crop_to(picture, size))),
        "picture.pad_rgb": torch.from_numpy(np.array(fit_into(picture, size))),
    }


# ---- sampling ----


def sampling_runs(networks: Networks) -> dict[str, Tensor]:
    """The runs of config.json through the shared loop, and what becomes of run `sample`."""
    tensors = {}
    for name, settings in networks.settings["calls"].items():
        run = networks.run(networks.model, settings)
        tensors[f"{name}.timesteps"] = run.timesteps
        tensors[f"{name}.latents_steps"] = torch.stack(run.latents)

    settings, z = networks.settings["calls"]["sample"], networks.inputs["init_noise"]
    seen, uncond, cond = networks.branches(networks.model, settings, z)
    person, _ = halves(tensors["sample.latents_steps"][-1], networks.axis)
    decoded = networks.codec.decode(person)
    levels = (255 * to_unit(decoded).clamp(0, 1)).round().to(torch.uint8)
    return tensors | {
        "cfg.input_uncond": seen[: len(z)],
        "cfg.eps_uncond": uncond,
        "cfg.eps_cond": cond,
        "cfg.eps_guided": uncond + settings["guidance_scale"] * (cond - uncond),
        "sample.person_latents": person,
        "sample.decoded": decoded,
        "sample.image_rgb": levels.permute(0, 2, 3, 1),
    }


def repainted(networks: Networks, pictures: Tensor) -> dict[str, Tensor]:
    """The first picture pasted onto its person through the blurred mask."""
    painted, person = (
        x[0].cpu().permute(2, 0, 1) for x in (pictures, networks.inputs["person_rgb"])
    )
    blend = feathered(painted, person, networks.inputs["mask"][0].cpu())
    return {"picture.repaint_rgb": blend.permute(1, 2, 0)}


def deco_sampling(networks: Networks) -> dict[str, Tensor]:
    """Garment-free guidance and anchored garment latents."""
    settings, axis = networks.settings["deco"], networks.axis
    model = networks.denoiser(garment_free=True, anchored=True)
    run = networks.run(model, settings)

    start = networks.inputs["init_noise"]
    known = model.known(networks.conditions(model))
    first = run.timesteps[0].to(start.device).expand(len(start))
    noised = networks.objective.add_noise(known.latents.to(start.dtype), start, first)
    anchored = beside(halves(start, axis)[0], halves(noised, axis)[1], axis)
    _, uncond, cond = networks.branches(model, settings, anchored)
    return {
        "deco.eps_uncond": halves(uncond, axis)[0],
        "deco.eps_cond": halves(cond, axis)[0],
        "deco.person_steps": torch.stack([halves(z, axis)[0] for z in run.latents]),
    }


# ---- training ----


def training_steps(networks: Networks) -> dict[str, Tensor]:
    """A step of the attention layers, without DREAM and with it."""
    model, settings, objective = networks.model, networks.settings["train"], networks.objective
    for name, parameter in model.unet.named_parameters():
        parameter.requires_grad_(is_trained(name, "attention", text=False))
    conditions = networks.conditions(model)
    conditions = drop_rows(conditions, model.unconditional(conditions), networks.inputs["dropped"])
    noised = networks.example()
    seen = model.canvas(noised.z_t, conditions)
    tensors = {"train.noisy": noised.z_t, "train.input": seen}
    gradients = {key: networks.names[key] for key in settings["gradients"]}

    prediction = model.denoise(noised.z_t, noised.t, conditions, {})
    loss = objective.loss(prediction, noised).mean()
    tensors |= {"train.eps": prediction.detach(), "train.loss": loss.detach()[None]}
    tensors |= gradients_of(model, loss, gradients, "train.grad.")

    final = None
    for power in settings["dream_exponents"]:
        dreamt = dream(noised, prediction.detach(), objective, power, None)
        tensors[f"dream.noisy_p{power:g}"] = dreamt.z_t
        tensors[f"dream.target_p{power:g}"] = dreamt.target
        if power == settings["dream_exponent"]:
            final = dreamt
    if final is None:
        raise UserError(
            f"{networks.reference.folder}/config.json: dream_exponents lack dream_exponent."
        )
    eps = model.denoise(final.z_t, final.t, conditions, {})
    loss = objective.loss(eps, final).mean()
    tensors |= {"dream.eps": eps.detach(), "dream.loss": loss.detach()[None]}
    return tensors | gradients_of(model, loss, gradients, "dream.grad.")


def deco_training(networks: Networks) -> dict[str, Tensor]:
    """A step of the whole UNet with the loss and DREAM on the person's half."""
    settings, objective, axis = networks.settings["deco"], networks.objective, networks.axis
    model = networks.denoiser(garment_free=True)
    conditions = networks.conditions(model)
    conditions = drop_rows(conditions, model.unconditional(conditions), networks.inputs["dropped"])
    noised = networks.example()
    person, garment = halves(torch.ones_like(noised.z_t), axis)
    where = beside(person, torch.zeros_like(garment), axis)
    with torch.no_grad():
        prediction = model.denoise(noised.z_t, noised.t, conditions, {})
    dreamt = dream(noised, prediction, objective, settings["dream_exponent"], where)

    prediction, _ = halves(model.denoise(dreamt.z_t, dreamt.t, conditions, {}), axis)
    target, _ = halves(dreamt.target, axis)
    loss = objective.loss(prediction, dreamt._replace(target=target)).mean()
    channels = dreamt.z_t.shape[1]
    noisy_person, noisy_garment = halves(model.canvas(dreamt.z_t, conditions)[:, :channels], axis)
    gradients = {key: key for key in settings["gradients"]}
    return {
        "deco.noisy_person": noisy_person,
        "deco.noisy_garment": noisy_garment,
        "deco.target": target,
        "deco.loss": loss.detach()[None],
        **gradients_of(model, loss, gradients, "deco.grad."),
    }


def gradients_of(
    model: CatVton, loss: Tensor, names: dict[str, str], prefix: str
) -> dict[str, Tensor]:
    """Gradients under their names in the folder; names: of the UNet's parameters by these."""
    model.unet.zero_grad()
    loss.backward()
    return {prefix + key: model.unet.get_parameter(name).grad for key, name in names.items()}
