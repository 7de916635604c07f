"""StableVITON's part of `vton verify`: tensors recomputed by the code that trains and samples.

Preprocessing, the CLIP branch, spatial features, zero cross-attention, guided calls, training steps
with and without the CLIP token, attention total variation, and runs through the shared sampler.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from vton.config import CodecConfig, SamplerConfig
from vton.data.ranges import from_bytes, to_unit
from vton.diffusion.denoiser import Conditions
from vton.errors import UserError
from vton.models.codecs import KLCodec, small_autoencoder
from vton.models.ldm import autoencoder_names, autoencoder_to_diffusers, to_diffusers
from vton.models.reference import Kind, Reference, read_objective, record_calls, run_sampler
from vton.models.settings import ClipConfig, UNetConfig
from vton.models.stableviton.building import build_networks
from vton.models.stableviton.checkpoint import checkpoint_names, sections_of
from vton.models.stableviton.config import StableVitonConfig
from vton.models.stableviton.losses import attention_variation, garment_cells
from vton.models.stableviton.module import keep_mask
from vton.models.stableviton.network import StableViton
from vton.weights.pretrained import below, load_state


def kind(name: str) -> Kind:
    if name.startswith("control."):
        return Kind.CONTROL
    if name.endswith("_u8"):
        return Kind.BYTES
    if name.endswith(".evaluations") or name.startswith("train.optimised"):
        return Kind.EXACT
    if name.endswith((".latents_steps", ".decoded")):
        return Kind.STEPS
    return Kind.GRADIENT if ".grad." in name else Kind.CALL


def recompute(reference: Reference) -> dict[str, Tensor]:
    """Every tensor of outputs.safetensors under its name there."""
    networks = Networks(reference)
    with torch.no_grad():
        tensors = preprocessing(networks)
        networks.read(tensors)
        tensors |= garment_token(networks)
        tensors |= single_block(networks)
        tensors |= guided_call(networks)
        for name in networks.settings["runs"]:
            tensors |= sampling_run(networks, name)
    tensors |= training_step(networks, "train", networks.conditions())
    dropped = networks.model.unconditional(networks.conditions())
    tensors |= training_step(networks, "train_dropped", dropped)
    return tensors | attention_loss(networks)


class Networks:
    """The folder's networks behind StableViton, and its settings as ours."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self.inputs = reference.inputs
        self.settings = reference.config
        self.objective = read_objective(self.settings["scheduler"])
        file = reference.folder / "weights_checkpoint.safetensors"
        sections = sections_of(reference.weights("checkpoint"), file)
        self.names = checkpoint_names(sections.structure)

        config = reference_config(self.settings)
        channels = self.settings["spatial_encoder"]["hint_channels"]
        networks = build_networks(config, channels, aspect=1.0)
        for name, network in networks.named().items():
            load_state(network, below(sections.networks, f"{name}."), f"{file} ({name})")
        for network in networks.named().values():
            # diffusers' own `.to` warns of layers to be kept in float32, of which these have none.
            nn.Module.to(network, reference.device, reference.dtype).eval()
        self.clip = networks.embedding
        # What the public optimiser holds; the first convolution never gets a gradient there.
        networks.unet.requires_grad_(False)
        networks.unet.conv_in.requires_grad_(True)
        networks.embedding.requires_grad_(False)
        self.parameters = {}
        for name, network in networks.named().items():
            for key, parameter in network.named_parameters():
                self.parameters[f"{name}.{key}"] = parameter
        self.model = StableViton(
            networks.unet,
            networks.token,
            networks.encoder,
            networks.garment_blocks,
            levels=len(config.levels) - 1,
            encoder_gradients=False,
            watched=self.settings["atv"]["blocks"],
        )
        self.codec = reference_codec(reference, sections.autoencoder)

    def read(self, prepared: dict[str, Tensor]) -> None:
        """Take over the latents that `preprocessing` made."""
        like = self.clip.final_ln.weight
        self.person, self.hint, rest = (
            prepared[f"prep.{name}"].to(like)
            for name in ("image_latents", "cloth_latents", "first_stage_cond")
        )
        c = self.hint.shape[1]
        self.agnostic, self.keep, self.densepose = rest.split([c, 1, c], 1)
        self.z_t = self.objective.add_noise(
            self.person, self.inputs["noise"], self.inputs["timesteps"]
        )

    def picture(self, name: str) -> Tensor:
        """A picture of the inputs, (B, 3, H, W) in [-1, 1], float32."""
        bytes_bhwc = self.inputs[f"{name}_u8"]
        return from_bytes(bytes_bhwc.permute(0, 3, 1, 2).float()).contiguous()

    def conditions(self, **changed: Tensor) -> Conditions:
        parts = {
            "embedding": self.clip(self.picture("cloth")),
            "agnostic": self.agnostic,
            "keep": self.keep,
            "densepose": self.densepose,
            "garment": self.hint,
        }
        return self.model.condition(**(parts | changed))

    def predict(self, conditions: Conditions) -> Tensor:
        t = self.inputs["timesteps"]
        features = self.model.garment_features(conditions, t)
        return self.model.denoise(self.z_t, t, conditions, features)


def reference_config(settings: dict) -> StableVitonConfig:
    unet, vision = settings["unet"], settings["vision_encoder"]
    levels = len(unet["channel_mult"])
    return StableVitonConfig(
        unet=UNetConfig(
            widths=tuple(unet["model_channels"] * factor for factor in unet["channel_mult"]),
            attention=tuple(2**level in unet["attention_resolutions"] for level in range(levels)),
            heads=(unet["num_heads"],) * levels,
            depth=(1,) * levels,
            layers=unet["num_res_blocks"],
            context=unet["context_dim"],
            groups=unet["norm_num_groups"],
        ),
        clip=ClipConfig(
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            mlp=vision["intermediate_size"],
            patch=vision["patch_size"],
            image_size=vision["image_size"],
            activation=vision["hidden_act"],
        ),
        mapper_layers=settings["mapper"]["layers"],
        mapper_heads=settings["mapper"]["heads"],
        levels=(True,) * (levels - 1) + (False,),
    )


def reference_codec(reference: Reference, state: dict[str, Tensor]) -> KLCodec:
    """In float32, whatever the networks run in."""
    vae = reference.config["vae"]
    config = CodecConfig(
        channels=vae["z_channels"],
        widths=tuple(vae["ch"] * factor for factor in vae["ch_mult"]),
        layers=vae["num_res_blocks"],
        groups=vae["norm_num_groups"],
    )
    autoencoder = small_autoencoder(config)
    autoencoder.register_to_config(scaling_factor=vae["scaling_factor"])
    names = autoencoder_names(len(config.widths), config.layers)
    weights = autoencoder_to_diffusers(state, names)
    return KLCodec(reference.ready(autoencoder, weights, torch.float32))


def preprocessing(networks: Networks) -> dict[str, Tensor]:
    """From bytes to latents, drawn with the recorded noise, and to what CLIP sees. In float32."""
    i, codec = networks.inputs, networks.codec

    def latents(name: str, noise: str) -> Tensor:
        posterior = codec.posterior(networks.picture(name))
        return (posterior.mean + posterior.std * i[f"{noise}_noise"].float()) * codec.scaling

    agnostic = latents("agn", "agn")
    paint = 1 - i["agn_mask_u8"][:, None].float() / 255
    keep = keep_mask(paint, agnostic.shape[-2:])
    densepose = latents("densepose", "densepose")
    return {
        "prep.image_latents": latents("image", "image"),
        "prep.cloth_latents": latents("cloth", "cloth"),
        "prep.first_stage_cond": torch.cat([agnostic, keep, densepose], 1),
        "prep.clip_pixels": networks.clip.pixels(networks.picture("cloth")),
    }


def garment_token(networks: Networks) -> dict[str, Tensor]:
    garment = networks.picture("cloth")
    conditions = networks.conditions()
    return {
        "cond.clip_pooled": networks.clip.pooled(garment),
        "cond.embedding": networks.clip(garment),
        "cond.context": conditions["context"],
        "cond.context_uncond": networks.model.unconditional(conditions)["context"],
    }


def single_block(networks: Networks) -> dict[str, Tensor]:
    """One zero cross-attention block, whose two grids differ."""
    i, block = networks.inputs, networks.model.garment_blocks["4"]
    return {
        "zca.transformer_out": block.read(i["zca.query"], i["zca.hint"]),
        "zca.out": block(i["zca.query"], i["zca.hint"]),
    }


def guided_call(networks: Networks) -> dict[str, Tensor]:
    """Both branches, the spatial features and the blocks of the conditional one from inside."""
    model, t = networks.model, networks.inputs["timesteps"]
    conditions = networks.conditions()
    with record_calls(model.garment_blocks) as calls:
        cond = networks.predict(conditions)
    uncond = networks.predict(model.unconditional(conditions))
    scale = networks.settings["unet_call_guidance_scale"]
    x = model.input(networks.z_t, conditions)
    tensors = {
        "unet.input": x,
        "unet.noise_pred": cond,
        "unet.noise_pred_uncond": uncond,
        "unet.noise_pred_guided": uncond + scale * (cond - uncond),
    }
    features = model.encoder(x, t, conditions["context"], networks.hint)
    for k, feature in enumerate(features):
        tensors[f"encoder.out_{k:02}"] = feature
    for position, call in calls.items():
        tensors[f"warp.in_{position}"] = call.input
        tensors[f"warp.out_{position}"] = call.output
    for name in networks.reference.expected:
        if name.startswith("control."):
            tensors[name] = cond
    return tensors


def sampling_run(networks: Networks, name: str) -> dict[str, Tensor]:
    """The shared sampling loop from the recorded noise, and its picture."""
    run, noise = networks.settings["runs"][name], networks.inputs["init_latents"]
    sampler = SamplerConfig(
        solver=run["sampler"],
        steps=run["num_inference_steps"],
        guidance=run["guidance_scale"],
        spacing="leading",
    )
    networks.reference.check_scheduler(sampler, networks.objective)
    start = {"start": networks.person} if run["start"] == "noised_person" else {}
    conditions = networks.conditions(**start)
    steps = run_sampler(networks.model, conditions, [noise], sampler, networks.objective)
    # PLMS evaluates the second timestep twice. The latents before it are on the way, not a step.
    latents, times = steps.latents, steps.timesteps.tolist()
    if any(now == after for now, after in pairwise(times)):
        latents = latents[1:]
    decoded = networks.codec.decode(latents[-1])
    tensors = {
        f"{name}.evaluations": steps.timesteps,
        f"{name}.latents_steps": torch.stack(latents),
        f"{name}.decoded": decoded,
    }
    if start:
        last = networks.objective.at(torch.ones(len(noise)))
        tensors[f"{name}.start"] = networks.objective.add_noise(networks.person, noise, last)
        tensors |= pictures(networks, name, decoded)
    return tensors


def pictures(networks: Networks, name: str, decoded: Tensor) -> dict[str, Tensor]:
    """The picture, and the picture with the known person pasted in, as the public script writes
    them: it truncates values that `vton eval` rounds.
    """
    keep = networks.inputs["agn_mask_u8"][..., None].float() / 255
    image, person = (
        (to_unit(picture.clamp(-1, 1)) * 255).floor().permute(0, 2, 3, 1)
        for picture in (decoded, networks.picture("image"))
    )
    return {
        f"{name}.image_u8": image,
        f"{name}.repainted_u8": (person * keep + image * (1 - keep)).floor(),
    }


def training_step(networks: Networks, name: str, conditions: Conditions) -> dict[str, Tensor]:
    """Loss and gradients, as the public code trains: the UNet's encoder half without gradient."""
    prediction = networks.predict(conditions)
    loss = (prediction - networks.inputs["noise"]).square().mean()
    tensors = {f"{name}.loss": loss.detach()[None]}
    tensors |= gradients(networks, name, loss)
    if name == "train":
        optimised = [p for p in networks.parameters.values() if p.requires_grad]
        idle = [p for p in optimised if p.grad is None]
        tensors["train.noisy_latents"] = networks.z_t
        tensors["train.optimised_tensors"] = torch.tensor([len(optimised)])
        tensors["train.optimised_without_gradient"] = torch.tensor([len(idle)])
    return tensors


def gradients(networks: Networks, name: str, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of the loss for the checkpoint entries that the folder names."""
    for parameter in networks.parameters.values():
        parameter.grad = None
    loss.backward()
    prefix = f"{name}.grad."
    tensors = {}
    for key in networks.reference.expected:
        if key.startswith(prefix):
            (ours,) = to_diffusers({key.removeprefix(prefix): loss}, networks.names)
            tensors[key] = networks.parameters[ours].grad
    return tensors


def attention_loss(networks: Networks) -> dict[str, Tensor]:
    """Attention total variation on recorded inputs, with its gradients."""
    i, model, settings = networks.inputs, networks.model, networks.settings["atv"]
    c = i["atv.hint"].shape[1]
    z_t, agnostic, keep, densepose = i["atv.x"].split([c, c, 1, c], 1)
    conditions = {
        "context": i["atv.context"],
        "agnostic": agnostic,
        "keep": keep,
        "densepose": densepose,
        "garment": i["atv.hint"],
    }
    prediction = model.denoise(z_t, i["atv.timesteps"], conditions, {})
    worn = i["atv.garment_mask_u8"][:, None].float() / 255
    counted, variation = None, prediction.new_zeros(())
    for centres in model.centres.values():
        if settings["min_tokens"] < centres.tokens < settings["max_tokens"]:
            counted = centres.of_cells
            inside = garment_cells(worn, tuple(counted.shape[1:3]))
            variation = variation + attention_variation(counted, inside)
    if counted is None:
        raise UserError(
            f"{networks.reference.folder}/config.json: no block of atv.blocks reads more than "
            f"{settings['min_tokens']} and fewer than {settings['max_tokens']} garment tokens."
        )
    loss = settings["weight"] * variation
    total = (prediction - i["atv.target"]).square().mean() + loss
    return {
        "atv.noise_pred": prediction.detach(),
        "atv.centers": counted.detach().flatten(1, 2),
        "atv.mask": inside.float(),
        "atv.loss": loss.detach()[None],
        "atv.total": total.detach()[None],
        **gradients(networks, "atv", loss),
    }
