"""The released files in and out, and names, shapes and counts at full size."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vton.commands.evaluate import evaluate
from vton.commands.exchange import export_run, import_run
from vton.config import load
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models.ladi_vton.checkpoint import read_published, write_published
from vton.models.ladi_vton.emasc import EMASC, SkipChannels, skip_channels
from vton.models.ladi_vton.words import InversionAdapter
from vton.runs.cascade import load_stage
from vton.weights.pretrained import read_checkpoint

MANIFEST = Path(__file__).parents[2] / "vectors" / "ladi_vton" / "key_manifest.json"
FILES = {"unet": "network.unet.", "emasc": "emasc.", "inversion_adapter": "adapter."}
CONTEXT, TOWER = 16, 32
SMALL_TOWER = {
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def parameters(module, prefix: str) -> int:
    state = module.state_dict().items()
    return sum(tensor.numel() for name, tensor in state if name.startswith(prefix))


@pytest.fixture(scope="module")
def full_size():
    return on_meta(load("model=ladi_vton", "preset=paper"))


def test_names_and_shapes_are_those_of_the_released_files(full_size):
    manifest = json.loads(MANIFEST.read_text())
    state = full_size.state_dict()
    for kind, prefix in FILES.items():
        published = manifest[f"{kind}_{{dataset}}.pth"]
        ours = {
            name.removeprefix(prefix): list(tensor.shape)
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        assert ours == published, kind
    assert len(state) == 686 + 20 + 24  # nothing else is saved


def test_parameter_counts(full_size):
    assert parameters(full_size, FILES["unet"]) == 865_988_484
    assert parameters(full_size, FILES["inversion_adapter"]) == 136_360_704
    assert parameters(full_size, FILES["emasc"]) == 7_965_696
    with torch.device("meta"):
        linear = EMASC(skip_channels(full_size.codec), "linear")
    assert parameters(linear, "") == 4_573_056
    new_channels = 320 * (31 - 9) * 9
    assert parameters(full_size, FILES["unet"]) - new_channels == 865_925_124


def unet(inputs: int) -> UNet2DConditionModel:
    torch.manual_seed(inputs)
    return UNet2DConditionModel(
        in_channels=inputs,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CONTEXT,
        attention_head_dim=2,
        use_linear_projection=True,
    )


def vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        **SMALL_TOWER, hidden_size=TOWER, image_size=32, patch_size=16, projection_dim=8
    )


@pytest.fixture
def released(tmp_path):
    """The three files of one data set, as one finds them on the release page."""
    folder = tmp_path / "ladi"
    folder.mkdir()
    network = unet(31)
    torch.save(network.state_dict(), folder / "unet_vitonhd.pth")
    network.save_config(folder)
    (folder / "config.json").rename(folder / "unet_config.json")
    emasc = EMASC(SkipChannels([8, 8, 8, 8], [8, 8, 8, 8]))
    torch.save(emasc.state_dict(), folder / "emasc_vitonhd.pth")
    adapter = InversionAdapter(vision(), output=2 * CONTEXT, words=2)
    torch.save(adapter.state_dict(), folder / "inversion_adapter_vitonhd.pth")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """VAE and CLIP's towers of the sizes that the small files need, in the hub's layout; as
    overrides.
    """
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).save_pretrained(folder / "vae")
    CLIPVisionModelWithProjection(vision()).save_pretrained(folder / "clip")
    text = CLIPTextConfig(
        **SMALL_TOWER, hidden_size=CONTEXT, vocab_size=384, max_position_embeddings=64
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    unet(9).save_pretrained(folder / "unet")
    return (
        f"codec.pretrained={folder}",
        f"model.clip.pretrained={folder}/clip",
        f"model.text.pretrained={folder}",
        "codec.groups=4",
        "codec.layers=1",
        "model.clip.layers=1",
        "model.clip.heads=2",
        "model.clip.image_size=32",
        "model.clip.patch=16",
        "model.clip.projection=8",
        "model.text.layers=1",
        "model.text.heads=2",
        "model.text.mlp=64",
        "model.text.vocabulary=384",
        "model.text.length=64",
        "data.size=[64,48]",
    )


def test_import_evaluate_export(released, base, tmp_path, rendered):
    """What comes out is what went in, to the byte."""
    few = (
        f"data.root={rendered}",
        "data.synthetic.train=6",
        "data.synthetic.test=4",
        "data.synthetic.workers=1",
        "data.workers=0",
        "sampler.steps=2",
        "eval.metrics=[ssim]",
        "eval.orders=[paired]",
        "eval.shuffled=false",
        "eval.baselines=false",
        "eval.batch_size=2",
        "trainer=cpu",
        f"runs={tmp_path / 'runs'}",
    )
    run = import_run("ladi_vton", released, *base, *few)
    config = run.load_config()
    assert config.model.adapter.words == 2 and config.model.clip.width == TOWER
    assert config.model.emasc.kind == "nonlinear" and list(config.codec.widths) == [8, 8, 8]
    (row, *_) = evaluate(load_stage(run))
    assert row.model == "ladi_vton" and row.metrics["ssim"] > -1
    out = tmp_path / "again"
    export_run(run, out)
    assert {file.name.split("_synthetic")[0] for file in out.iterdir()} == {
        *FILES,
        "unet_config.json",
    }
    for kind in FILES:
        before = read_checkpoint(released / f"{kind}_vitonhd.pth")
        after = read_checkpoint(out / f"{kind}_synthetic.pth")
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    again = read_published(out)
    assert again.settings == read_published(released).settings


def test_variants_are_recognised(released):
    torch.save(unet(27).state_dict(), released / "unet_vitonhd.pth")
    linear = EMASC(SkipChannels([8, 8, 8, 8], [8, 8, 8, 8]), "linear")
    torch.save(linear.state_dict(), released / "emasc_vitonhd.pth")
    settings = read_published(released / "unet_vitonhd.pth").settings
    assert {'model.garment_input="none"', 'model.emasc.kind="linear"'} <= set(settings)


def test_files_that_are_not_ladi_vton(released, tmp_path):
    def refused(match: str, path: Path = released):
        with pytest.raises(UserError, match=match) as error:
            read_published(path)
        assert "\n" not in str(error.value)

    refused("name LaDI-VTON's UNet", released / "emasc_vitonhd.pth")
    adapter = torch.load(released / "inversion_adapter_vitonhd.pth", weights_only=True)
    cut = {name: x for name, x in adapter.items() if name != "encoder_layers.0.mlp.fc1.bias"}
    torch.save(cut, released / "inversion_adapter_vitonhd.pth")
    refused(r"not an inversion adapter.*mlp\.fc1\.bias")
    torch.save(unet(8).state_dict(), released / "unet_vitonhd.pth")
    refused(r"it reads 8 channels, expected 31 or 27")
    torch.save(unet(31).state_dict(), released / "unet_vitonhd.pth")
    (released / "unet_config.json").unlink()
    refused(r"widths of \[32, 64\] are not Stable Diffusion's.*unet_config.json")
    torch.save({}, released / "unet_dresscode.pth")
    refused("unet_dresscode.pth, unet_vitonhd.pth; import one UNet's file")
    refused(
        "emasc_dresscode.pth does not exist|adapter_dresscode.pth does not exist",
        released / "unet_dresscode.pth",
    )
    (released / "unet_dresscode.pth").unlink()
    (released / "emasc_vitonhd.pth").unlink()
    refused(r"holds no emasc_<dataset>.pth")


def test_what_the_format_has_no_place_for(tmp_path):
    state = {"network.unet.conv_in.weight": torch.zeros(1), "clip.tower.x": torch.zeros(1)}
    config = load("model=ladi_vton", "preset=paper")
    with pytest.raises(UserError, match=r"no place for clip\.tower\.x"):
        write_published(tmp_path / "x", state, config, {})
    del state["clip.tower.x"]
    with pytest.raises(UserError, match="no weights of its own for inversion_adapter"):
        write_published(tmp_path / "x", state, config, {})
    state |= {"adapter.a": torch.zeros(1), "emasc.a": torch.zeros(1)}
    with pytest.raises(UserError, match="codec is linear"):
        write_published(tmp_path / "x", state, load("model=ladi_vton", "preset=tiny"), {})
    assert not (tmp_path / "x").exists()


def test_a_training_starts_from_the_files_and_the_base(released, base):
    """The widened UNet computes what the base did, whatever stands in the new channels."""
    from tests.batches import random_batch
    from vton import registry
    from vton.models.codecs import build_codec

    folder = base[0].removeprefix("codec.pretrained=")
    config = load(
        "model=ladi_vton",
        "preset=paper",
        *base,
        f"model.unet.pretrained={folder}",
        f"model.unet.context={CONTEXT}",
        f"model.text.width={CONTEXT}",
        f"model.clip.width={TOWER}",
        "model.clip.mlp=64",
        "model.adapter.words=2",
        f"model.adapter.pretrained={released}/inversion_adapter_vitonhd.pth",
        f"model.emasc.pretrained={released}/emasc_vitonhd.pth",
        "model.perceptual.channels=[4,4,4,4,4]",
    )
    module = registry.module_class("ladi_vton")(config, build_codec(config.codec)).eval()
    stored = read_checkpoint(released / "emasc_vitonhd.pth")
    assert torch.equal(module.emasc.conv[1][2].bias, stored["conv.1.2.bias"])
    own, batch = unet(9), random_batch(2)
    conditions = module.condition(batch)
    z, t = torch.randn(2, 4, 16, 12), torch.tensor([3, 900])
    features = module.denoiser.garment_features(conditions, t)
    found = module.denoiser.denoise(z, t, conditions, features)
    nine = torch.cat([z, conditions["mask"], conditions["masked"]], 1)
    expected = own.eval()(nine, t, conditions["text"]).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert module.adapter.layers[6].weight.shape[0] == 2 * CONTEXT
