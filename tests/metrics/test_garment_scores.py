"""The garment-driven metrics with networks plugged in, loaded from small folders, and lacking."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import ByT5Tokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from tests.metrics.dressed import (
    Remembered,
    dressed_batches,
    measured,
    rows_by_method,
    rows_of_one,
    unchanged,
)
from vton.config import EvalConfig
from vton.errors import UserError
from vton.metrics import garment_driven
from vton.metrics.extractors import Extractors
from vton.metrics.garment_scores import GarmentNetworks, cut_out, with_stored
from vton.metrics.tally import merge
from vton.report.tables import table_markdown

ALL = ("cami_u", "cami_s", "mp_lpips", "image_reward")


def place(picture):
    """Features by which a pixel is found again: colour and, faintly, position."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None] / 255
    grid = torch.meshgrid(torch.linspace(0, 1, 512), torch.linspace(0, 1, 512), indexing="ij")
    return torch.cat([pixels, torch.stack(grid)[None]], 1)


def mean_difference(x, y):
    return (x - y).abs().mean((1, 2, 3))


PLUGGED = GarmentNetworks(
    pose=lambda picture: picture,
    face=lambda picture: np.float32([1, 0]) if picture.mean() > 0 else None,
    clip=lambda picture, prompt: (torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 1]])),
    dift=place,
    lpips=mean_difference,
    reward=lambda picture, prompt: len(prompt) / 10,
)


def row_by_region(metrics, networks=None, change=unchanged):
    extractors = Extractors(EvalConfig(metrics=metrics), garment_networks=networks)
    batches = dressed_batches(2, size=2)
    rows = rows_of_one(extractors, batches, Remembered(batches, change))
    return {row.region: row for row in rows if row.category == "all"}


def test_what_lacks_a_network_is_absent_and_says_which():
    rows = row_by_region(ALL)
    assert set(rows["garment"].metrics) == {"cami_u_true_mask"}
    absent = rows["garment"].provenance["absent"]
    assert absent["cami_s"].startswith(
        "needs pose (to be plugged in), face (to be plugged in), clip (clip-vit-base"
    )
    assert "stable-diffusion-2-1 in the folder of metric weights" in absent["mp_lpips"]
    assert set(absent) == {"cami_s", "mp_lpips", "image_reward"}


def test_plugged_networks_give_every_metric():
    rows = row_by_region(ALL, PLUGGED)
    assert set(rows["garment"].metrics) == {
        "cami_u_true_mask",
        "cami_s_true_mask",
        "mp_lpips_true_mask",
    }
    assert rows["image"].metrics == {
        "image_reward": pytest.approx(len("model is wearing a shirt") / 10)
    }
    assert "absent" not in rows["image"].provenance
    scores = rows["garment"].metrics
    difference = scores["cami_s_true_mask"] - scores["cami_u_true_mask"]
    # Face 1, text cos 45 degrees, and a share of the pose.
    assert 1 + 0.5**0.5 < difference <= 2 + 0.5**0.5

    everywhere = GarmentNetworks(parser=lambda picture: np.ones(picture.shape[:2], dtype=bool))
    assert set(row_by_region(("cami_u",), everywhere)["garment"].metrics) == {"cami_u"}
    nowhere = GarmentNetworks(parser=lambda picture: np.zeros(picture.shape[:2], dtype=bool))
    assert row_by_region(("cami_u",), nowhere)["garment"].metrics == {"cami_u": 0}


def test_a_pair_that_a_metric_is_not_defined_for_is_left_out_and_named():
    """One garment is too thin for MP-LPIPS: the evaluation goes on, and the row says over which
    pairs it is.
    """
    batches = dressed_batches(2, size=2)
    batches[0].garment_mask[0] = 0
    thin, other = batches[0].pair_id
    config = EvalConfig(metrics=("cami_u", "mp_lpips"))
    extractors = Extractors(config, garment_networks=PLUGGED)

    def garment_row(rows):
        (row,) = (row for row in rows if (row.region, row.category) == ("garment", "all"))
        return row

    results = merge([measured(extractors, batches, {"m": Remembered(batches)})])
    tally = results.tallies["paired", "m"]
    rows = rows_by_method(extractors, results)["m"]
    row = garment_row(rows)
    assert row.n == 2 and row.provenance["left_out"].keys() == {"mp_lpips_true_mask"}
    assert row.provenance["left_out"]["mp_lpips_true_mask"].keys() == {thin}
    assert "no point of its grid" in row.provenance["left_out"]["mp_lpips_true_mask"][thin]
    assert row.metrics["mp_lpips_true_mask"] == tally.scores["garment"]["mp_lpips"][other]
    both = tally.scores["garment"]["cami_u"]
    assert row.metrics["cami_u_true_mask"] == pytest.approx((both[thin] + both[other]) / 2)
    assert "mp_lpips_true_mask of m (paired) is the mean over 1 of 2 pairs" in table_markdown(rows)

    batches[0].garment_mask[1] = 0  # none is left
    row = garment_row(rows_of_one(extractors, batches, Remembered(batches)))
    assert row.metrics.keys() == {"cami_u_true_mask"}
    assert row.provenance["left_out"]["mp_lpips_true_mask"].keys() == {thin, other}


def test_mp_lpips_is_zero_for_the_garment_itself_and_the_penalty_off_it():
    rng = np.random.default_rng(0)
    garment = np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    mask = np.zeros((512, 512), dtype=bool)
    mask[50:450, 50:450] = True
    same = garment_driven.mp_lpips(garment, mask, garment, mask, place, mean_difference)
    assert same == pytest.approx(0, abs=1e-6)
    nothing = np.zeros_like(mask)
    assert garment_driven.mp_lpips(
        garment, mask, garment, nothing, place, mean_difference
    ) == pytest.approx(1)
    half = mask.copy()
    half[:, 250:] = False
    some = garment_driven.mp_lpips(
        garment, mask, np.where(half[..., None], garment, 0), half, place, mean_difference
    )
    assert 0.1 < some < 1
    with pytest.raises(garment_driven.MetricError, match="no point"):
        garment_driven.mp_lpips(garment, nothing, garment, mask, place, mean_difference)


def test_a_cut_out_garment_is_on_white_and_never_below_the_window():
    picture = np.full((20, 16, 3), 7, dtype=np.uint8)
    mask = np.zeros((20, 16), dtype=bool)
    mask[19, 3:6] = True
    cut = cut_out(picture, mask)
    assert cut.shape == (7, 7, 3) and (cut[6, :3] == 7).all() and (cut[:6] == 255).all()


def test_clip_is_read_from_the_hubs_layout(tmp_path):
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    text = {**sizes, "vocab_size": 384, "max_position_embeddings": 24, "eos_token_id": 1}
    shape = CLIPConfig(
        text_config=text, vision_config={**sizes, "patch_size": 112}, projection_dim=8
    )
    CLIPModel(shape).save_pretrained(tmp_path / "clip-vit-base-patch32")
    ByT5Tokenizer().save_pretrained(tmp_path / "clip-vit-base-patch32")
    picture = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    read = with_stored(GarmentNetworks(), ["cami_s"], tmp_path, torch.device("cpu")).clip(
        picture, "a shirt"
    )
    assert [tuple(features.shape) for features in read] == [(1, 8), (1, 8)]


def test_diffusion_features_are_the_third_up_blocks_and_repeat(tmp_path):
    folder = tmp_path / "stable-diffusion-2-1"
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1).save_pretrained(
        folder / "vae"
    )
    UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("DownBlock2D",) * 3 + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * 3,
    ).save_pretrained(folder / "unet")
    CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=384,
            max_position_embeddings=8,
        )
    ).save_pretrained(folder / "text_encoder")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    dift = with_stored(GarmentNetworks(), ["mp_lpips"], tmp_path, torch.device("cpu")).dift
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    features = dift(picture)
    assert features.shape == (1, 8, 32, 32) and torch.equal(dift(picture), features)


def published_reward(folder):
    """A checkpoint under the published names: ViT of one layer, BERT of one with cross-attention,
    the linear stack.
    """
    torch.manual_seed(0)
    v, t = 64, 16
    shapes = {
        "cls_token": (1, 1, v),
        "pos_embed": (1, 5, v),
        "patch_embed.proj.weight": (v, 3, 112, 112),
        "patch_embed.proj.bias": (v,),
        "norm.weight": (v,),
        "norm.bias": (v,),
    }
    for name, shape in {
        "norm1": (v,),
        "norm2": (v,),
        "attn.qkv": (3 * v, v),
        "attn.proj": (v, v),
        "mlp.fc1": (32, v),
        "mlp.fc2": (v, 32),
    }.items():
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    state = {
        f"blip.visual_encoder.{name}": 0.2 * torch.randn(shape) for name, shape in shapes.items()
    }
    shapes = {
        "embeddings.word_embeddings.weight": (8, t),
        "embeddings.position_embeddings.weight": (40, t),
    }
    layers = {"embeddings.LayerNorm": (t,)}
    for attention, width in (("attention", t), ("crossattention", v)):
        layers |= {
            f"encoder.layer.0.{attention}.self.{part}": (t, t if part == "query" else width)
            for part in ("query", "key", "value")
        }
        layers |= {
            f"encoder.layer.0.{attention}.output.{part}": shape
            for part, shape in (("dense", (t, t)), ("LayerNorm", (t,)))
        }
    layers |= {
        "encoder.layer.0.intermediate.dense": (24, t),
        "encoder.layer.0.output.dense": (t, 24),
        "encoder.layer.0.output.LayerNorm": (t,),
    }
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    state |= {
        f"blip.text_encoder.{name}": 0.2 * torch.randn(shape) for name, shape in shapes.items()
    }
    widths = (t, 1024, 128, 64, 16, 1)
    for index, place_in_stack in enumerate((0, 2, 4, 6, 7)):
        state[f"mlp.layers.{place_in_stack}.weight"] = 0.2 * torch.randn(
            widths[index + 1], widths[index]
        )
        state[f"mlp.layers.{place_in_stack}.bias"] = torch.randn(widths[index + 1])
    state |= {
        "blip.vision_proj.weight": torch.zeros(3, v),
        "blip.text_encoder.embeddings.position_ids": torch.arange(40),
    }
    folder.mkdir()
    torch.save(state, folder / "ImageReward.pt")
    described = {
        "hidden_size": t,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "encoder_width": 768,
    }
    (folder / "med_config.json").write_text(json.dumps(described))
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "shirt", "a"])
    )
    return state


def test_image_reward_is_read_from_its_published_files(tmp_path):
    state = published_reward(tmp_path / "image_reward")
    reward = with_stored(GarmentNetworks(), ["image_reward"], tmp_path, torch.device("cpu")).reward
    picture = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    value = reward(picture, "a red shirt")
    assert np.isfinite(value) and value == reward(picture, "a red shirt") != reward(
        picture, "a shirt"
    )
    assert value != reward(255 - picture, "a red shirt")

    state["mlp.layers.7.weight"].zero_()  # then the stack returns its last bias, whatever it saw
    state["mlp.layers.7.bias"].fill_(0.16717362830052426 + 2 * 1.0333394966054072)
    torch.save(state, tmp_path / "image_reward" / "ImageReward.pt")
    reward = with_stored(GarmentNetworks(), ["image_reward"], tmp_path, torch.device("cpu")).reward
    assert reward(picture, "a red shirt") == pytest.approx(2, abs=1e-6)

    del state["blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"]
    torch.save(state, tmp_path / "image_reward" / "ImageReward.pt")
    with pytest.raises(
        UserError, match=r"1 missing \(text.encoder.layer.0.crossattention.self.key.weight\)"
    ):
        with_stored(GarmentNetworks(), ["image_reward"], tmp_path, torch.device("cpu"))
