"""Weights from disk: every layout of the hub, and nothing that runs code."""

import json
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub.utils import filter_repo_objects
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as ClipTower

from vton.errors import UserError
from vton.models.ldm import read_ldm_checkpoint
from vton.weights import pretrained
from vton.weights.pretrained import (
    FORMER_NAMES,
    PUBLISHED_METADATA,
    check_state,
    from_pretrained,
    hub_folder,
    network_folder,
    read_ip_adapter,
    read_safetensors,
    read_weights,
    read_weights_folder,
    stored_variant,
    write_tensors,
)

TINY_VAE = partial(
    AutoencoderKL,
    block_out_channels=(8, 8),
    norm_num_groups=4,
    latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
LAYERS |= {"num_attention_heads": 2, "projection_dim": 8}
TOWER = LAYERS | {"patch_size": 4, "image_size": 8}
TEXT = LAYERS | {
    "vocab_size": 9,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def same(state) -> bool:
    if state.keys() != STATE.keys():
        return False
    return all(
        torch.equal(state[name], x) and state[name].dtype == x.dtype for name, x in STATE.items()
    )


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model", "model", "diffusion_pytorch_model.fp16"]
)
def test_safetensors_and_pickles_whole(tmp_path, name):
    save_file(STATE, tmp_path / f"{name}.safetensors")
    assert same(read_weights_folder(tmp_path))
    (tmp_path / f"{name}.safetensors").unlink()
    torch.save(STATE, tmp_path / f"{name}.bin")
    assert same(read_weights_folder(tmp_path))


def test_shards(tmp_path):
    for key, value in STATE.items():
        save_file({key: value}, tmp_path / f"model-{key}.safetensors")
    index = {"weight_map": {key: f"model-{key}.safetensors" for key in STATE}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(read_weights_folder(tmp_path))
    index["weight_map"]["a"] = "../model-a.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its own folder"):
        read_weights_folder(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_numbers_are_brought_to_a_dtype(tmp_path, name):
    state = STATE | {"positions": torch.arange(3)}
    if name.endswith(".bin"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    read = read_weights_folder(tmp_path, torch.bfloat16)
    assert list(read) == list(read_weights_folder(tmp_path))  # in the same order
    assert torch.equal(read["positions"], state["positions"])
    for key, tensor in STATE.items():
        assert torch.equal(read[key], tensor.bfloat16())


MOST = """
import re, sys
from pathlib import Path
import torch
from vton.weights.pretrained import read_safetensors, write_tensors

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 2**10

write_tensors(Path("small"), {"x": torch.ones(2)})
tensors, before = {}, most()
if sys.argv[1] == "write":
    write_tensors(Path("weights"), {str(n): torch.ones(2**22) for n in range(8)})
else:
    tensors = read_safetensors(Path("weights"), torch.bfloat16)
print(most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_files_take_the_weights_once(tmp_path):
    """MiB that a process takes at most: 128 MiB of float32, and what is read of it in bfloat16."""
    for action, size in (("write", 128), ("read", 64)):
        command = [sys.executable, "-c", MOST, action]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert 0.9 * size < int(done.stdout) < size + 40  # one tensor has 16


def test_files_for_others_say_what_published_files_say(tmp_path):
    """And hold the same tensors, which may share memory here."""
    for metadata in (None, PUBLISHED_METADATA):
        write_tensors(tmp_path / "x.safetensors", STATE, metadata)
        assert same(read_safetensors(tmp_path / "x.safetensors"))
        with safe_open(tmp_path / "x.safetensors", "pt") as file:
            assert file.metadata() == metadata
    shared = torch.ones(4)
    write_tensors(tmp_path / "shared.safetensors", {"whole": shared, "half": shared[:2]})
    assert len(read_safetensors(tmp_path / "shared.safetensors")) == 2


@pytest.mark.parametrize("form", ["nested", "flat"])
def test_ip_adapter_files_have_two_sections(form, tmp_path):
    if form == "nested":
        torch.save({"image_proj": STATE, "ip_adapter": STATE, "more": STATE}, tmp_path / "x.bin")
    else:
        flat = {f"image_proj.{name}": x for name, x in STATE.items()}
        flat |= {f"ip_adapter.{name}": x for name, x in STATE.items()}
        torch.save(flat | {"more.a": STATE["a"]}, tmp_path / "x.bin")
    sections = read_ip_adapter(tmp_path / "x.bin")
    assert sections.keys() == {"image_proj", "ip_adapter"}
    assert all(same(state) for state in sections.values())
    for content in ({"image_proj": STATE}, STATE["a"]):
        torch.save(content, tmp_path / "x.bin")
        with pytest.raises(UserError, match="not an IP-Adapter file"):
            read_ip_adapter(tmp_path / "x.bin")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_an_unsafe_pickle_is_refused_and_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"a": Payload(marker)}, tmp_path / "model.bin")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Payload(marker)))
    for path in ("model.bin", "raw.bin"):
        with pytest.raises(UserError, match="not a safe, complete torch file"):
            read_weights(tmp_path / path)
    ClipTower(CLIPVisionConfig(**TOWER)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.bin").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"it holds a \S*open, and only tensors"):
        from_pretrained(ClipTower, str(tmp_path), key="model.clip.pretrained")
    assert not marker.exists()


def test_truncated_and_absent_files_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        read_weights_folder(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        read_weights_folder(tmp_path)


NOT_WEIGHTS = {
    "empty": (b"", "it is empty"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n",
        "git lfs pull",
    ),
    "page": (b"<!DOCTYPE html>\n<html><head><title>Sign in", "it is a web page"),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_lies_in_place_of_weights_is_named(tmp_path, kind, suffix):
    content, message = NOT_WEIGHTS[kind]
    TINY_VAE().save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    file = tmp_path / "vae" / f"diffusion_pytorch_model{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_weights_folder(tmp_path / "vae")
    assert str(file) in str(error.value)
    with pytest.raises(UserError, match=rf"^codec=.* cannot load .*{message}") as error:
        from_pretrained(AutoencoderKL, str(tmp_path), key="codec", subfolder="vae")
    assert str(file) in str(error.value)


def test_a_file_that_is_cut_off_is_named_whatever_library_reads_it(tmp_path):
    ClipTower(CLIPVisionConfig(**TOWER)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors: it is cut off"):
        from_pretrained(ClipTower, str(tmp_path), key="model.clip.pretrained")
    path.unlink()
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: it is not there"):
        from_pretrained(ClipTower, str(tmp_path), key="model.clip.pretrained")


def test_a_checkpoint_of_old_lightning_is_read_and_what_else_it_holds_is_named(tmp_path):
    """Latent diffusion's own have Lightning's class among the keys of `callbacks`."""
    path = tmp_path / "v1.ckpt"
    torch.save({"state_dict": STATE, "callbacks": {ModelCheckpoint: {"monitor": "loss"}}}, path)
    assert same(read_ldm_checkpoint(path))
    torch.save({"state_dict": STATE, "callbacks": {EarlyStopping: {}}}, path)
    with pytest.raises(UserError, match=r"it holds a pytorch_lightning\S*EarlyStopping, and"):
        read_ldm_checkpoint(path)


@pytest.mark.parametrize("read", [from_pretrained, network_folder])
def test_a_single_file_is_not_a_folder(tmp_path, read):
    path = tmp_path / "v1-5.safetensors"
    save_file(STATE, path)
    with pytest.raises(UserError, match=r"key=.*v1-5\.safetensors is a file; .*from_single_file"):
        if read is from_pretrained:
            from_pretrained(AutoencoderKL, str(path), key="key", subfolder="vae")
        else:
            network_folder(str(path), "unet", "key")


def test_a_tower_is_taken_from_a_whole_clip_and_nothing_is_said(tmp_path, capfd):
    """And one of another shape is one error, which names what does not fit."""
    whole = CLIPConfig(text_config=TEXT, vision_config=TOWER, projection_dim=8)
    CLIPModel(whole).save_pretrained(tmp_path)
    capfd.readouterr()
    from_pretrained(ClipTower, str(tmp_path), key="model.clip.pretrained")
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
    config = CLIPVisionConfig(**TOWER | {"intermediate_size": 24})
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"mlp\.fc1\.bias \(32,\) for \(24,\)"):
        from_pretrained(ClipTower, str(tmp_path), key="model.clip.pretrained")
    assert "MISMATCH" not in "".join(capfd.readouterr())


def test_both_ways_to_read_a_folder_prefer_full_precision(tmp_path):
    vae = TINY_VAE()
    vae.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(vae.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    half = {name: torch.zeros_like(x).half() for name, x in vae.state_dict().items()}
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    loaded = from_pretrained(AutoencoderKL, str(tmp_path), key="codec")
    read = read_weights_folder(tmp_path)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and torch.equal(read[name], tensor)


def test_both_ways_to_read_a_folder_take_its_shards_before_a_whole_file(tmp_path):
    """As diffusers does where a folder was saved twice; transformers does the opposite."""
    vae = TINY_VAE()
    vae.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file()
    zeros = {name: torch.zeros_like(x) for name, x in vae.state_dict().items()}
    save_file(zeros, tmp_path / "diffusion_pytorch_model.safetensors", PUBLISHED_METADATA)
    loaded = from_pretrained(AutoencoderKL, str(tmp_path), key="codec")
    read = read_weights_folder(tmp_path)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and torch.equal(read[name], tensor)


def test_weights_that_the_configuration_has_no_place_for_are_not_left_out(tmp_path):
    """A field that is missing there takes its default: the network would lose layers."""

    def without(name: str) -> None:
        config = json.loads((tmp_path / "config.json").read_text())
        del config[name]
        (tmp_path / "config.json").write_text(json.dumps(config))

    TINY_VAE(layers_per_block=2).save_pretrained(tmp_path)
    without("layers_per_block")
    with pytest.raises(UserError, match=r"hold .*resnets\.2.* no place"):
        from_pretrained(AutoencoderKL, str(tmp_path), key="codec")
    ClipTower(CLIPVisionConfig(**TOWER | {"num_hidden_layers": 14})).save_pretrained(tmp_path)
    without("num_hidden_layers")
    with pytest.raises(UserError, match=r"hold .*layers\.12\..* no place"):
        from_pretrained(ClipTower, str(tmp_path), key="model.clip.pretrained")


def test_keys_are_listed_ten_at_a_time():
    own = {f"layer.{i}": torch.zeros(2) for i in range(30)}
    state = {f"other.{i}": torch.zeros(2) for i in range(3)} | {"layer.29": torch.zeros(5)}
    with pytest.raises(UserError) as caught:
        check_state(own, state, "file.pt")
    message = str(caught.value)
    assert (
        "29 missing (layer.0" in message and "layer.9, ..." in message and "layer.10" not in message
    )
    assert "3 unexpected (other.0, other.1, other.2)" in message
    assert "1 mismatched (layer.29 (5,) for (2,))" in message and "\n" not in message


# ---- what is fetched of a hub id ----


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub: repositories by id below a folder, and a list of what was fetched."""
    fetched = []

    def snapshot(source, allow_patterns=None, local_files_only=False):
        repository = tmp_path / "hub" / source
        if not repository.is_dir():
            raise OSError(f"{source} is not there")
        if allow_patterns is None:
            return str(repository)
        names = [str(path.relative_to(repository)) for path in repository.rglob("*.*")]
        copy = tmp_path / "cache" / source
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            fetched.append(name)
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, copy / name)
        return str(copy)

    monkeypatch.setattr(pretrained, "snapshot_download", snapshot)
    monkeypatch.setenv("VTON_DOWNLOAD", "1")
    return tmp_path / "hub", fetched


# SDXL base's unet/, all 46 GB of it.
SDXL_UNET = (
    "config.json",
    "diffusion_flax_model.msgpack",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.onnx",
    "model.onnx_data",
    "openvino_model.bin",
    "openvino_model.xml",
)


@pytest.mark.parametrize(
    "names, read",
    [
        (SDXL_UNET, ["diffusion_pytorch_model.safetensors"]),
        # A UNet of IDM-VTON's authors, and one in half precision alone.
        (("config.json", "diffusion_pytorch_model.bin"), ["diffusion_pytorch_model.bin"]),
        (
            ("config.json", "diffusion_pytorch_model.fp16.safetensors", "openvino_model.bin"),
            ["diffusion_pytorch_model.fp16.safetensors"],
        ),
        (
            (
                "config.json",
                "model.fp16-00001-of-00002.safetensors",
                "model.fp16-00002-of-00002.safetensors",
                "model.safetensors.index.fp16.json",
                "model.non_ema.safetensors",
            ),
            [
                "model.fp16-00001-of-00002.safetensors",
                "model.fp16-00002-of-00002.safetensors",
                "model.safetensors.index.fp16.json",
            ],
        ),
    ],
)
def test_of_a_hub_id_only_what_is_read_is_fetched(hub, names, read):
    repositories, fetched = hub
    folder = repositories / "someone" / "model" / "unet"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    found = network_folder("someone/model", "unet", "model.unet.pretrained")
    assert sorted(set(fetched)) == [f"unet/{name}" for name in sorted(["config.json", *read])]
    assert (found / read[0]).is_file()


@pytest.mark.parametrize(("name", "former"), FORMER_NAMES.items())
def test_a_repository_that_left_the_hub_is_found_in_the_cache(hub, name, former):
    repositories, _ = hub
    old = repositories / former / "unet"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    found = hub_folder(name, "unet", "model.unet.pretrained")
    assert former.split("/")[0] in found.parts


def test_a_folder_without_readable_weights_says_what_it_holds(tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    with pytest.raises(UserError, match=r"found flax_model\.msgpack"):
        read_weights_folder(tmp_path)


@pytest.mark.parametrize(
    ("form", "variant"),
    [("whole", "fp16"), ("in pieces", "fp16"), ("pickle", "fp16"), ("whole", "bf16")],
)
def test_a_folder_with_the_half_precision_variant_alone_is_read(form, variant, tmp_path):
    torch.manual_seed(0)
    vae = TINY_VAE()
    options = {"max_shard_size": "20KB"} if form == "in pieces" else {}
    vae.half().save_pretrained(
        tmp_path / "vae", variant=variant, safe_serialization=form != "pickle", **options
    )
    assert stored_variant(tmp_path / "vae") == variant
    loaded = from_pretrained(AutoencoderKL, str(tmp_path), key="codec.pretrained", subfolder="vae")
    assert loaded.dtype == torch.float32
    for name, tensor in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float())
    read = read_weights_folder(tmp_path / "vae")
    assert read.keys() == vae.state_dict().keys()


def test_weights_without_a_variant_come_first(tmp_path):
    for name in ("model.safetensors", "model.fp16.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert stored_variant(tmp_path) is None
    (tmp_path / "model.safetensors").rename(tmp_path / "model.non_ema.safetensors")
    assert stored_variant(tmp_path) == "fp16"
    (tmp_path / "model.fp16.safetensors").unlink()
    assert stored_variant(tmp_path) == "non_ema"
    assert stored_variant(tmp_path / "absent") is None
