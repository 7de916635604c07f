"""Every ablation row that changes the model is built without what it lacks, trains and draws."""

import pytest
import torch

from tests.batches import as_loaded, random_batch, randomised, tiny_module
from vton.config import ablation, choices

ROWS = [
    (name, row)
    for name in choices("ablation")
    if name != "tryondiffusion"  # its rows have a file of their own
    for row, changes in ablation(name).rows.items()
    if any(change.startswith("model.") for change in changes)
]


@pytest.mark.parametrize(("model", "row"), ROWS, ids=lambda value: value)
def test_gradients_reach_what_is_there(model, row):
    overrides = (f"ablation={model}/{row}", "model.condition_dropout=0.4")
    module = randomised(tiny_module(model, *overrides))
    module.training_step(as_loaded(random_batch(3), module), 0).backward()
    trained = {id(p) for group in module.trained_parameters() for p in group["params"]}
    for name, parameter in module.named_parameters():
        learns = parameter.grad is not None and parameter.grad.abs().max() > 0
        assert learns == (id(parameter) in trained), name
    picture = module.eval().generate(as_loaded(random_batch(1), module))
    assert torch.isfinite(picture).all()


def test_what_a_row_lacks_is_not_built():
    def networks(model: str, *row: str) -> set[str]:
        return set(tiny_module(model, *(f"ablation={model}/{name}" for name in row)).networks())

    idm, imagdressing = networks("idm_vton"), networks("imagdressing")
    assert networks("idm_vton", "without_garment_net") == idm - {"garment_net"}
    assert networks("idm_vton", "without_ip_adapter") == idm - {"clip"}
    assert networks("imagdressing", "A0") == imagdressing - {"clip", "projector", "adapter"}
    assert networks("imagdressing", "A1") == imagdressing - {"adapter"}
