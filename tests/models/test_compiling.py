"""trainer.compile: compiled blocks compute what the others do."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch._dynamo.utils import counters

from tests.batches import random_batch, randomised, tiny_module
from tests.running import command, trained
from tests.sweeps import soon_and_later
from vton.models import compiling
from vton.models.base import TrainedModule
from vton.models.unet import garment_taps
from vton.weights.pretrained import read_safetensors


@pytest.fixture(autouse=True)
def traced_alone(monkeypatch):
    """The compiler's front end and its gradients, without the minutes of generating code."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def require_same(model: str, *overrides: str, tolerance: float = 1e-5) -> None:
    """That loss, gradients, pictures and names of weights are those of the module as it is."""
    plain = randomised(tiny_module(model, *overrides))
    other = randomised(tiny_module(model, *overrides, "trainer.compile=true"))
    other.make_fast(torch.device("cpu"))
    batch, losses = random_batch(2), []
    for module in (plain, other):
        loss = module.train().training_step(batch, 0)
        loss.backward()
        losses.append(loss.detach())
    assert counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(losses[1], losses[0], atol=tolerance, rtol=tolerance)
    parameters = zip(plain.named_parameters(), other.named_parameters(), strict=True)
    for (name, expected), (found_name, found) in parameters:
        assert found_name == name and (found.grad is None) == (expected.grad is None)
        if found.grad is not None:
            torch.testing.assert_close(
                found.grad, expected.grad, atol=tolerance, rtol=10 * tolerance, msg=name
            )
    assert other.state_dict().keys() == plain.state_dict().keys()
    if model != "warp":
        pictures = [module.eval().generate(batch) for module in (plain, other)]
        torch.testing.assert_close(pictures[1], pictures[0], atol=10 * tolerance, rtol=0)


@pytest.mark.parametrize("model", soon_and_later())
def test_losses_gradients_and_pictures_are_the_same(model):
    require_same(model)


@pytest.mark.slow
def test_with_checkpointing_lora_and_recorded_attention():
    """They wrap blocks, layers inside them and calls of these."""
    require_same("idm_vton", "model.lora.rank=2", "model.unet.gradient_checkpointing=true")
    require_same("leffa", "model.flow_loss.weight=0.1", "model.unet.gradient_checkpointing=true")


def unet(depth: int) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=4,
        transformer_layers_per_block=depth,
        cross_attention_dim=8,
        norm_num_groups=8,
    )


def compiled(network):
    compiling.compile_blocks([network], TrainedModule.COMPILED, TrainedModule.ATTENTIONS)
    return network


def test_repeated_blocks_share_what_was_compiled():
    sample, context, graphs = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8), []
    for depth in (2, 5):  # the first of a row reads what is laid out otherwise
        torch.compiler.reset()
        counters.clear()
        compiled(unet(depth))(sample, 3, context)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]


def test_features_of_garments_are_found_again_and_again():
    sample, context, t = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8), torch.tensor([7])
    plain, other = unet(2), compiled(unet(2))
    expected = garment_taps(plain, sample, t, context)
    first, graphs = garment_taps(other, sample, t, context), counters["stats"]["unique_graphs"]
    again = garment_taps(other, sample, t, context)
    assert list(first) == list(again) == list(expected)
    for name, tap in expected.items():
        torch.testing.assert_close(first[name], tap)
        assert torch.equal(first[name], again[name])
    assert counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(other(sample, t, context).sample, plain(sample, t, context).sample)


def test_blocks_are_compiled_once_and_attention_never():
    network = compiled(unet(1))
    before = {id(m): m.forward for m in network.modules()}
    compiled(network)
    for module in network.modules():
        assert module.forward == before[id(module)]
        is_block = isinstance(module, BasicTransformerBlock | ResnetBlock2D)
        assert compiling.is_compiled(module) == (is_block or isinstance(module, Attention))


@pytest.mark.slow
def test_a_run_may_be_compiled_from_its_middle_on(tmp_path, rendered):
    settings = ("catvton", tmp_path, rendered)
    plain = trained(*settings, "plain", "train.steps=4")
    trained(*settings, "other", "train.steps=2")
    assert not counters["stats"]
    other = trained(*settings, "other", "train.steps=4", "trainer.compile=true")
    assert counters["stats"]["unique_graphs"] > 0
    expected, found = read_safetensors(plain.weights), read_safetensors(other.weights)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)
    counters.clear()
    assert command("predict", "--run", str(other.path), "--out", str(tmp_path / "pictures")) == 0
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.slow
def test_it_is_timed_beside_the_same_setting_without(capsys):
    setting = ("model=gardiff", "preset=tiny", "data.size=[64,48]", "data.synthetic.workers=1")
    batches = ("train.batch_size=2", "eval.batch_size=2", "sampler.steps=2")
    rounds = ("--warmup", "1", "--repeats", "1", "--json")
    done = command("bench", *setting, *batches, *rounds, "--against", "trainer.compile=true")
    assert done == 0 and counters["stats"]["unique_graphs"] > 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratios"]["train"]["median"] > 0 and found["ratios"]["sample"]["median"] > 0


@pytest.mark.slow
def test_generated_code_computes_the_same(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    plain, other = unet(1), compiled(unet(1))
    sample, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)
    outputs = [network(sample, 3, context).sample for network in (plain, other)]
    for output in outputs:
        output.pow(2).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-3, rtol=1e-3)
