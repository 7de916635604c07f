"""The pretrained networks of the garment-driven metrics, from the folder of metric weights.

garment_scores.py says which there are and where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPModel,
    CLIPTextModel,
)

from vton.data.ranges import from_bytes
from vton.errors import UserError
from vton.metrics import vton_iqa
from vton.models.encoders import CLIP_MEAN, CLIP_STD, TextEncoder
from vton.models.perceptual import LPIPS
from vton.weights.pretrained import from_pretrained, load_state, read_checkpoint, read_json

clip_square = v2.Compose(
    [
        v2.Resize(224, v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(224),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(CLIP_MEAN, CLIP_STD),
    ]
)


def load_lpips(path: Path, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS with AlexNet as a function of two batches of pictures in [0, 1]."""
    network = LPIPS("alex", path, seed=0).to(device)

    @torch.inference_mode()
    def distance(x: Tensor, y: Tensor) -> Tensor:
        x_features = network.features(x.to(device))
        y_features = network.features(y.to(device))
        return network.distance(x_features, y_features, mask=None).cpu()

    return distance


class ClipSimilarity:
    """Features of a prompt and a picture, from a folder in the hub's layout."""

    def __init__(self, folder: Path, device: torch.device):
        self.device = device
        self.model = from_pretrained(CLIPModel, str(folder), key="clip").eval().to(device)
        self.length = self.model.config.text_config.max_position_embeddings
        self.tokenizer = from_pretrained(AutoTokenizer, str(folder), key="clip")

    @torch.inference_mode()
    def __call__(self, picture: NDArray, prompt: str) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(
            [prompt], truncation=True, max_length=self.length, return_tensors="pt"
        )
        pixels = clip_square(Image.fromarray(picture))[None]
        output = self.model(**tokens.to(self.device), pixel_values=pixels.to(self.device))
        return output.text_embeds, output.image_embeds


class DiffusionFeatures:
    """DIFT features as MP-LPIPS takes them (Tang et al. 2023, arXiv 2306.03881).

    The output of Stable Diffusion 2.1's third up block at t = 41, the mean over eight noises, which
    are drawn for every picture from seed 0. The published code draws one after the other, so that
    its numbers depend on the order of pictures.
    """

    PROMPT = "a photo of an upper-garment"
    TIMESTEP = 41
    BLOCK = 2
    NOISES = 8

    def __init__(self, folder: Path, device: torch.device):
        def load(cls: type, name: str):
            return from_pretrained(cls, str(folder), key="dift", subfolder=name)

        self.device = device
        self.vae = load(AutoencoderKL, "vae").eval().to(device)
        self.unet = load(UNet2DConditionModel, "unet").eval().to(device)
        self.schedule = load(DDIMScheduler, "scheduler")
        tokenizer = load(AutoTokenizer, "tokenizer")
        text = TextEncoder(tokenizer, load(CLIPTextModel, "text_encoder").eval(), False)
        with torch.inference_mode():
            self.prompt = text([self.PROMPT])[0].to(device)

    @torch.inference_mode()
    def __call__(self, picture: NDArray) -> Tensor:
        """Features (1, C, h, w) of uint8 RGB (H, W, 3)."""
        pixels = from_bytes(torch.from_numpy(picture).permute(2, 0, 1)[None].to(self.device))
        posterior = self.vae.encode(pixels).latent_dist
        shape = (self.NOISES, *posterior.mean.shape[1:])
        generator = torch.Generator().manual_seed(0)
        draws = torch.randn(shape, generator=generator).to(self.device)
        eps = torch.randn(shape, generator=generator).to(self.device)
        z = (posterior.mean + posterior.std * draws) * self.vae.config.scaling_factor
        t = torch.tensor([self.TIMESTEP], device=self.device)
        z_t = self.schedule.add_noise(z, eps, t)

        features: list[Tensor] = []
        block = self.unet.up_blocks[self.BLOCK]
        hook = block.register_forward_hook(lambda *call: features.append(call[-1]))
        try:
            self.unet(z_t, t, self.prompt.expand(self.NOISES, -1, -1))
        finally:
            hook.remove()
        return features[0].mean(0, keepdim=True).float()


class ImageReward(nn.Module):
    """How well people think that a picture answers a prompt, about N(0, 1).

    Xu et al. 2023, arXiv 2304.05977. In BLIP the prompt's tokens attend to those of the picture;
    the first token goes through a purely linear stack.
    """

    MEAN = 0.16717362830052426
    DEVIATION = 1.0333394966054072
    # Of the head's layers: their places in the published stack, and their widths.
    PLACES = (0, 2, 4, 6, 7)
    WIDTHS = (1024, 128, 64, 16, 1)

    def __init__(self, text: BlipTextConfig, vision: BlipVisionConfig):
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = nn.ModuleDict()
        width = text.hidden_size
        for place, wider in zip(self.PLACES, self.WIDTHS, strict=True):
            self.head[str(place)] = nn.Linear(width, wider)
            width = wider

    def forward(self, pixels_B3SS: Tensor, tokens_BL: Tensor, attention_BL: Tensor) -> Tensor:
        """Rewards (B,)."""
        picture = self.vision(pixels_B3SS).last_hidden_state
        prompt = self.text(tokens_BL, attention_mask=attention_BL, encoder_hidden_states=picture)
        x = prompt.last_hidden_state[:, 0]
        for layer in self.head.values():
            x = layer(x)
        return (x[:, 0] - self.MEAN) / self.DEVIATION


# Published names of the vision half, and transformers' names of the same tensors. The names of the
# text half differ in the prefix only.
RENAMED = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
# What med_config.json says of the text half.
TEXT_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "layer_norm_eps",
)


def reward_state(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """ImageReward.pt's tensors under our names, without BLIP's projections, which it never uses."""
    state = {}
    for name, tensor in published.items():
        if name.startswith("blip.visual_encoder."):
            name = name.removeprefix("blip.visual_encoder.")
            for theirs, ours in RENAMED:
                name = name.replace(theirs, ours)
            if name.startswith("norm."):
                name = name.replace("norm.", "post_layernorm.")
            state[f"vision.{name}"] = tensor
        elif name.startswith("blip.text_encoder.") and not name.endswith("position_ids"):
            state["text." + name.removeprefix("blip.text_encoder.")] = tensor
        elif name.startswith("mlp.layers."):
            state["head." + name.removeprefix("mlp.layers.")] = tensor
    return state


def _shapes(state: dict[str, Tensor]) -> dict[str, dict[str, int]]:
    """What BLIP's configurations can read off its tensors.

    A vision transformer's heads are 64 wide.
    """
    width, _, patch, _ = state["vision.embeddings.patch_embedding.weight"].shape
    patches = state["vision.embeddings.position_embedding"].shape[1] - 1
    layers = 0
    while f"vision.encoder.layers.{layers}.mlp.fc1.weight" in state:
        layers += 1
    vision = {
        "hidden_size": width,
        "intermediate_size": len(state["vision.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "patch_size": patch,
        "image_size": patch * round(patches**0.5),
    }
    text = {
        "vocab_size": len(state["text.embeddings.word_embeddings.weight"]),
        "max_position_embeddings": len(state["text.embeddings.position_embeddings.weight"]),
        "encoder_hidden_size": width,
        "is_decoder": True,  # for transformers the switch that builds cross-attention
    }
    return {"vision": vision, "text": text}


def load_reward(folder: Path, device: torch.device) -> Callable[[NDArray, str], float]:
    """The published reward as a function of picture and prompt. Raises UserError."""
    described = read_json(folder / "med_config.json")
    state = reward_state(read_checkpoint(folder / "ImageReward.pt"))
    try:
        shapes = _shapes(state)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{folder / 'ImageReward.pt'}: not ImageReward's checkpoint, no tensor {error}."
        ) from None
    given = {name: described[name] for name in TEXT_SETTINGS if name in described}
    text = BlipTextConfig(**given, **shapes["text"])
    vision = BlipVisionConfig(**shapes["vision"], layer_norm_eps=1e-6)
    network = ImageReward(text, vision)
    load_state(network, state, folder / "ImageReward.pt")
    network = network.eval().to(device)
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))

    @torch.inference_mode()
    def reward(picture: NDArray, prompt: str) -> float:
        tokens = tokenizer(
            [prompt], padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        )
        tokens = tokens.to(device)
        pixels = clip_square(Image.fromarray(picture))[None].to(device)
        return network(pixels, tokens.input_ids, tokens.attention_mask).item()

    return reward


def load_iqa(folder: Path, device: torch.device) -> Callable[[NDArray, NDArray, NDArray], float]:
    """VTON-IQA as a function of person, garment and picture. Raises UserError."""
    network = vton_iqa.load(folder, device)

    def score(*pictures: NDArray) -> float:
        tensors = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
        return network(*tensors).item()

    return score


LOADERS = {
    "iqa": load_iqa,
    "lpips": load_lpips,
    "clip": ClipSimilarity,
    "dift": DiffusionFeatures,
    "reward": load_reward,
}
