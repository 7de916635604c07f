"""LoRA on attention layers: what is trained, kept and exported, for every architecture."""

import pytest
import torch

from tests.batches import random_batch, randomised, tiny_module
from tests.sweeps import SHIPPED, soon_and_later
from vton import registry
from vton.commands.exchange import export_run, import_run, whole_weights
from vton.config import ConfigError, load
from vton.errors import UserError
from vton.models.base import TryOnModule
from vton.models.codecs import run_codec
from vton.models.lora import attention_layers, base_name, is_lora, load_base, merged
from vton.runs.assemble import base_weights, load_module, start_from
from vton.runs.folder import RunFolder
from vton.weights.pretrained import load_state, read_safetensors, write_tensors

LORA = ("model.lora.rank=2", "model.lora.alpha=4")


def tuned_module(model: str) -> TryOnModule:
    """The tiny module with LoRA; skips the test where no layer can have it, which is refused."""
    if not any(attention_layers(network) for network in tiny_module(model).children()):
        with pytest.raises(ConfigError, match="trains no network with attention layers"):
            tiny_module(model, *LORA)
        assert model not in SHIPPED
        pytest.skip("trains no attention layer that has the names LoRA knows")
    return tiny_module(model, *LORA)


@pytest.mark.parametrize("model", soon_and_later())
def test_only_its_matrices_are_trained_and_saved(model):
    module = randomised(tuned_module(model))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == set(module.state_dict()) != set()
    assert all(is_lora(name) for name in trained)
    module.train().training_step(random_batch(2), 0).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
    assert any(p.grad.abs().max() > 0 for p in module.parameters() if p.requires_grad)


def test_an_architecture_that_trains_all_of_it_is_tuned_on_its_attention(monkeypatch):
    """`trained_parameters` of the base class asks which parameters are trained."""
    module_class = registry.module_class("idm_vton")
    monkeypatch.setattr(module_class, "trained_parameters", TryOnModule.trained_parameters)
    module = tiny_module("idm_vton", *LORA)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained and all(is_lora(name) for name in trained)


@pytest.mark.parametrize("model", soon_and_later())
def test_it_starts_as_the_model_and_its_sum_is_one(model):
    """B is zero at first; afterwards the merged weights paint what weights and matrices did."""
    plain, module = tiny_module(model), tuned_module(model)
    load_base(module, plain.state_dict(), "plain")
    module.frozen = plain.frozen
    batch = random_batch(2)
    before = plain.eval().generate(batch)
    # Up to another order of sums, which layers with an added zero may have.
    torch.testing.assert_close(module.eval().generate(batch), before, atol=1e-5, rtol=0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if is_lora(name):
                parameter.add_(0.05 * torch.randn_like(parameter))
    changed = module.generate(batch)
    load_state(plain, merged(module), "merged")
    torch.testing.assert_close(plain.generate(batch), changed, atol=1e-3, rtol=0)


def test_a_published_checkpoint_is_tuned_and_exported(published_idm_vton, tmp_path):
    """Import, a run that starts from it, its export: the folder's weights plus the product."""
    folder, _ = published_idm_vton
    runs = f"runs={tmp_path / 'runs'}"
    imported = import_run("idm_vton", folder, runs, "name=imported", "data.size=[64,48]")
    config = imported.load_config()
    config.model.lora.rank = 2
    config.train.start_from = str(imported.path)
    config.name = "tuned"
    run = RunFolder.of(config)
    run.start(config)
    codec = run_codec(config.codec, run.codec)
    module = registry.module_class("idm_vton")(config, codec)
    start_from(module, imported.path)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("lora_B.default.weight"):
                parameter.fill_(0.01)
    write_tensors(run.weights, module.state_dict())

    before, after = read_safetensors(imported.weights), whole_weights(run, config)
    assert before.keys() == after.keys()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {
        base_name(name).replace("lora_A.default.", "")
        for name in module.state_dict()
        if "lora_A" in name
    }
    export_run(run, tmp_path / "again")
    assert (tmp_path / "again" / "unet" / "config.json").is_file()
    batch = random_batch(2)
    drawn = load_module(run, config, "weights").generate(batch)
    assert torch.equal(drawn, module.eval().generate(batch))
    run.remember_data("", [], base_weights(config))
    load_module(run, config, "weights")
    next(iter(before.values())).add_(1)  # the imported run was trained on
    write_tensors(imported.weights, before)
    with pytest.raises(UserError, match=r"train\.start_from was weights of sha256 .*, now weights"):
        load_module(run, config, "weights")


def test_shards_are_refused():
    with pytest.raises(ConfigError, match=r"model\.lora\.rank=4.*trainer\.strategy=ddp"):
        load("model=gardiff", "model.lora.rank=4", "trainer.strategy=fsdp")


def test_without_peft_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("vton.models.lora.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"peft is not installed.*lora"):
        tiny_module("gardiff", *LORA)
