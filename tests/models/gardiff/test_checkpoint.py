"""The released UNet in and out, adapter files, and full-size names and shapes."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vton.cli import main
from vton.commands.exchange import export_run, import_run
from vton.config import load
from vton.cost.meta import on_meta
from vton.errors import UserError
from vton.models.gardiff.building import build_network
from vton.models.gardiff.checkpoint import load_adapter, read_published, write_published
from vton.models.gardiff.released import DecoupledUNet
from vton.models.unet import stock_heads
from vton.weights.pretrained import read_checkpoint

CONTEXT = 48  # 64x48 in latents of 16x12


def unet(inputs: int = 8) -> UNet2DConditionModel:
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
    )


@pytest.fixture
def released(tmp_path):
    """The released folder, the UNet in half precision as such files often are."""
    network, folder = unet(), tmp_path / "gardiff"
    folder.mkdir()
    torch.save(
        {name: tensor.half() for name, tensor in network.state_dict().items()}, folder / "unet.pth"
    )
    network.save_config(folder)
    (folder / "config.json").rename(folder / "unet_config.json")
    torch.save({}, folder / "inversion_adapter.pth")
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """VAE, CLIP tower and text encoder of the sizes that the small UNet needs, in the hub's layout;
    as overrides.
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
    sizes = {
        "hidden_size": CONTEXT,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=CONTEXT)
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "clip")
    tokenizer = ByT5Tokenizer()
    text = CLIPTextConfig(**sizes, vocab_size=384, max_position_embeddings=8)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return (
        f"codec.pretrained={folder}",
        f"model.clip.pretrained={folder}/clip",
        f"model.text.pretrained={folder}",
        "codec.widths=[8,8,8]",
        "codec.groups=4",
        "codec.layers=1",
        "model.clip.width=48",
        "model.clip.layers=1",
        "model.clip.heads=2",
        "model.clip.mlp=64",
        "model.clip.image_size=32",
        "model.clip.patch=16",
        "model.text.layers=1",
        "model.text.heads=2",
        "model.text.mlp=64",
        "model.text.vocabulary=384",
        "model.text.length=8",
        "data.size=[64,48]",
    )


def test_import_evaluate_export(released, encoders, tmp_path, capsys):
    """Through the real command; what comes out is what went in, to the byte."""

    def vton(*arguments) -> tuple[int, str]:
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        return done.value.code, capsys.readouterr().err

    few = (
        "sampler.steps=2",
        "eval.metrics=[ssim]",
        "eval.orders=[paired]",
        "eval.shuffled=false",
        "data.workers=0",
    )
    small = (
        "data.synthetic.train=2",
        "data.synthetic.test=2",
        f"data.root={tmp_path / 'data'}",
        "trainer=cpu",
    )
    run = tmp_path / "runs" / "mine"
    assert vton(
        "import", "gardiff", released, *encoders, *few, *small, f"runs={run.parent}", "name=mine"
    ) == (0, "")
    code, error = vton("eval", "--run", run)
    assert code == 0, error
    assert len(list((run / "predictions" / "paired").glob("*.png"))) == 2
    for target in (tmp_path / "again.pth", tmp_path / "again.safetensors"):
        assert vton("export", "--run", run, "--out", target) == (0, "")
        before = read_checkpoint(released / "unet.pth")
        after = load_file(target) if target.suffix == ".safetensors" else read_checkpoint(target)
        assert before.keys() == after.keys()
        assert all(
            after[name].dtype == x.dtype and torch.equal(after[name], x)
            for name, x in before.items()
        )


def test_a_file_alone_tells_its_mode_by_its_channels(released, tmp_path):
    for inputs, mode in ((8, "release"), (12, "legacy12")):
        torch.save(unet(inputs).state_dict(), tmp_path / "unet.pth")
        settings = read_published(tmp_path / "unet.pth").settings
        assert f'model.mode="{mode}"' in settings
        assert not any("heads" in setting for setting in settings)  # of a size unlike SD's
    settings = read_published(released).settings
    assert "model.unet.heads=[2, 2]" in settings and "model.unet.groups=4" in settings


def test_heads_follow_from_stable_diffusion_or_have_to_be_given(encoders, tmp_path):
    assert stock_heads((320, 640, 1280, 1280), context=768) == [8, 8, 8, 8]
    assert stock_heads((320, 640, 1280, 1280), context=1024) == [5, 10, 20, 20]  # SD 2.1
    assert stock_heads((32, 64), context=1024) == []
    torch.save(unet().state_dict(), tmp_path / "unet.pth")
    with pytest.raises(UserError, match=r"model\.unet\.heads is in no tensor .* or give") as error:
        import_run("gardiff", tmp_path / "unet.pth", f"runs={tmp_path}", *encoders)
    assert "\n" not in str(error.value) and not (tmp_path / "gardiff-unet").exists()
    run = import_run(
        "gardiff", tmp_path / "unet.pth", f"runs={tmp_path}", "model.unet.heads=[2,4]", *encoders
    )
    assert run.load_config().model.unet.heads == (2, 4)


def test_the_decoupled_mode_is_a_flat_unet_with_its_adapter(encoders, tmp_path):
    network = DecoupledUNet(unet(), clip_width=CONTEXT, tokens=3)
    state = {name.removeprefix("unet."): x for name, x in network.state_dict().items()}
    assert (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_adapter.weight"
        in state
    )
    torch.save(state, tmp_path / "unet.pth")
    heads = "model.unet.heads=[2,2]"
    run = import_run("gardiff", tmp_path / "unet.pth", f"runs={tmp_path}", heads, *encoders)
    model = run.load_config().model
    assert (model.mode, model.decoupled.tokens) == ("decoupled", 3)
    export_run(run, tmp_path / "again.pth")
    again = read_checkpoint(tmp_path / "again.pth")
    assert again.keys() == state.keys() and all(
        torch.equal(again[name], x) for name, x in state.items()
    )


class Attack:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_that_are_not_the_released_unet(released, tmp_path, capsys):
    def refused(match: str, content=None, path=tmp_path / "x.pth"):
        if content is not None:
            torch.save(content, path)
        with pytest.raises(UserError, match=match) as error:
            read_published(path)
        assert "\n" not in str(error.value)

    refused("not a safe, complete torch file", {"conv_in.weight": Attack()})
    refused("expected a mapping from names to tensors", {"unet": unet().state_dict()})
    refused("it reads 13 channels; GarDiff has 8", unet(13).state_dict())
    refused("it has no conv_in.weight", {"ref_unet.conv_in.weight": torch.zeros(2)})
    refused("the file is empty", {})
    narrow = {
        n: x[:16] if n.endswith("0.resnets.0.conv1.bias") else x
        for n, x in unet().state_dict().items()
    }
    refused(r"32 norm groups, .* do not divide widths of \[16, 64\]", narrow)
    refused(
        "an adapter without a UNet", {"adapter_adapter.1.to_k_adapter.weight": torch.zeros(2, 2)}
    )
    refused(
        r"not a complete UNet \(no",
        {n: x for n, x in unet().state_dict().items() if "mid_block" not in n},
    )
    whole = (released / "unet.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: len(whole) // 2])
    refused("not a safe, complete torch file")
    torch.save({"vae2clip.weight": torch.zeros(2, 2)}, released / "inversion_adapter.pth")
    read_published(released)  # July's unused layer
    torch.save({"to_k": torch.zeros(1)}, released / "inversion_adapter.pth")
    refused("weights that GarDiff's scripts do not read: to_k", path=released)
    (released / "inversion_adapter.pth").unlink()
    (released / "unet.pth").unlink()
    refused("No checkpoint at", path=released)
    assert "must not run" not in capsys.readouterr().out


def test_wrong_keys_are_listed(encoders, tmp_path):
    state = unet().state_dict()
    state["conv_out.scale"] = state.pop("conv_norm_out.weight")
    state["conv_in.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "unet.pth")
    with pytest.raises(
        UserError, match=r"1 missing \(.*conv_norm_out\.weight\); 1 unexpected .*; 1 mismatched"
    ):
        heads = "model.unet.heads=[2,2]"
        import_run("gardiff", tmp_path / "unet.pth", f"runs={tmp_path}", heads, *encoders)


def test_the_papers_mode_and_trained_encoders_have_no_published_format(tmp_path):
    for mode, match in (
        ("paper", "model.mode=paper has no published format"),
        ("release", "no place for clip.tower"),
    ):
        config = load("model=gardiff", "preset=tiny", f"model.mode={mode}")
        with pytest.raises(UserError, match=match):
            write_published(tmp_path / "x.pth", {"clip.tower.weight": torch.zeros(1)}, config, {})
    assert not (tmp_path / "x.pth").exists()


def test_full_size_names_shapes_and_counts():
    """SD 1.5's UNet with 8 channels, and what the adapter adds at both context widths."""
    config = load("model=gardiff", "preset=paper", "model.mode=release", "model.unet.pretrained=''")
    with torch.device("meta"):
        released = build_network(config.model, (4, 64, 48), clip_width=1024, clip_projection=768)
    state = {name.removeprefix("unet."): x for name, x in released.state_dict().items()}
    assert len(state) == 686 and sum(x.numel() for x in state.values()) == 859_532_484
    assert state["conv_in.weight"].shape == (320, 8, 3, 3)
    for block, width in (("down_blocks.0", 320), ("up_blocks.2", 640), ("mid_block", 1280)):
        layer = f"{block}.attentions.0.transformer_blocks.0.attn2"
        assert (
            state[f"{layer}.to_q.weight"].shape
            == state[f"{layer}.to_out.0.weight"].shape
            == (width, width)
        )
        assert (
            state[f"{layer}.to_k.weight"].shape
            == state[f"{layer}.to_v.weight"].shape
            == (width, 768)
        )
        assert state[f"{layer}.to_out.0.bias"].shape == (width,)
    for context, added in ((768, 19_169_280), (1024, 25_559_040)):
        with torch.device("meta"):
            base = UNet2DConditionModel(
                in_channels=8, cross_attention_dim=context, attention_head_dim=8
            )
            own = DecoupledUNet(base, clip_width=1024).state_dict()
        found = {name: x for name, x in own.items() if "_adapter." in name}
        assert len(found) == 32 and sum(x.numel() for x in found.values()) == added
        assert own["image_proj.proj.weight"].shape == (4 * context, 1024)


@pytest.mark.parametrize("form", ["nested", "flat", "ip_adapter"])
def test_adapter_files(form, tmp_path):
    source, target = (DecoupledUNet(unet(), clip_width=20, tokens=2) for _ in range(2))
    state = {f"image_proj.{name}": x for name, x in source.image_proj.state_dict().items()}
    # Counted over all attention layers: down, up, mid; cross-attention has the odd places.
    layers = (
        "down_blocks.0.attentions.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
        "mid_block.attentions.0",
    )
    for place, layer in enumerate(layers):
        processor = source.unet.get_submodule(f"{layer}.transformer_blocks.0.attn2").processor
        for part in ("to_k_adapter", "to_v_adapter"):
            torch.nn.init.normal_(getattr(processor, part).weight)
            state[f"adapter_adapter.{2 * place + 1}.{part}.weight"] = getattr(
                processor, part
            ).weight.detach()
    if form == "flat":
        path = tmp_path / "adapter.safetensors"
        save_file(state, path)
    else:
        path, nested = tmp_path / "adapter.bin", {"image_proj": {}, "adapter_adapter": {}}
        for name, tensor in state.items():
            section, _, rest = name.partition(".")
            nested[section][rest] = tensor
        if form == "ip_adapter":
            theirs = {
                name.replace("_adapter.", "_ip."): x
                for name, x in nested.pop("adapter_adapter").items()
            }
            nested["ip_adapter"] = theirs
        torch.save(nested, path)
    load_adapter(target, path)
    assert all(torch.equal(x, target.state_dict()[name]) for name, x in source.state_dict().items())
    with pytest.raises(UserError, match="does not fit ProjectionHead"):
        load_adapter(DecoupledUNet(unet(), clip_width=21, tokens=2), path)
    torch.save({"image_proj": {}}, tmp_path / "other.bin")
    with pytest.raises(UserError, match="not an adapter file"):
        load_adapter(target, tmp_path / "other.bin")


def test_decoupled_training_starts_from_an_adapter_file(tmp_path):
    config = load(
        "model=gardiff",
        "preset=tiny",
        "model.mode=decoupled",
        f"model.decoupled.pretrained={tmp_path}/adapter.bin",
    )
    with pytest.raises(UserError, match=r"No checkpoint at .*adapter\.bin"):
        build_network(config.model, (16, 16, 12), 64, 64)
    assert on_meta(config).network.tokens == 4  # for shapes `pretrained` is forgotten


def test_the_noted_configuration_has_to_be_readable(released):
    (released / "unet_config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"unet_config\.json: expected a JSON object"):
        read_published(released)
