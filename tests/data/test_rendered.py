"""Rendered folders through the readers of the real layouts: every order and optional part."""

from dataclasses import replace

import pytest
import torch

from vton.config import DataConfig, SyntheticConfig
from vton.data import labels
from vton.data.check import check_folder
from vton.data.dataset import dataset_root
from vton.data.module import TryOnDataModule
from vton.data.sample import CATEGORIES, DataError

SIZE = (96, 72)


@pytest.fixture(scope="module", params=["viton_hd", "dresscode"])
def module(request, tmp_path_factory):
    synthetic = SyntheticConfig(layout=request.param, train=3, test=3, seed=5, workers=1)
    root = str(tmp_path_factory.mktemp("rendered"))
    config = DataConfig(root=root, size=SIZE, densepose=True, workers=0, synthetic=synthetic)
    data = TryOnDataModule(config, seed=0, batch_size=2, eval_batch_size=4)
    data.prepare_data()
    return data


def test_settings_have_folders_of_their_own(module):
    one = module.config
    assert dataset_root(one).name == f"{one.synthetic.layout}-96x72-3-3-5"
    other = SyntheticConfig(layout=one.synthetic.layout, train=3, test=3, seed=6)
    assert dataset_root(DataConfig(root=one.root, size=SIZE, synthetic=other)) != dataset_root(one)


def test_the_rendered_folder_itself_may_be_named(module):
    """Nothing is rendered inside it, whatever the settings."""
    itself = dataset_root(module.config)
    before = sorted(itself.iterdir())
    named = replace(module.config, root=f"{itself}/")
    TryOnDataModule(named, seed=0, batch_size=2, eval_batch_size=4).prepare_data()
    assert dataset_root(named) == itself
    other = replace(named, synthetic=replace(named.synthetic, seed=6))
    data = TryOnDataModule(other, seed=0, batch_size=2, eval_batch_size=4)
    with pytest.raises(DataError, match=r"^[^\n]* is a rendered data set itself, [^\n]*-6, which"):
        data.prepare_data()
    (problem,) = check_folder(other)
    assert "is a rendered data set itself" in problem.message
    assert sorted(itself.iterdir()) == before


def test_rendered_folder_is_sound(module):
    assert {problem.severity for problem in check_folder(module.config)} == {"note"}


@pytest.mark.parametrize("order", ["paired", "unpaired"])
def test_every_part_is_there_and_agrees(module, order):
    batch = module.val_batch(order, 9)
    layout = module.config.synthetic.layout
    categories = {"upper_body"} if layout == "viton_hd" else set(CATEGORIES)
    assert set(batch.category) == categories
    assert batch.dataset == ["synthetic"] * len(batch)
    assert batch.densepose.shape == batch.truth.shape == (len(batch), 3, *SIZE)
    assert batch.truth_garment_mask.flatten(1).any(1).all()
    assert torch.equal(batch.truth, batch.person) == (order == "paired")
    assert all(caption.startswith("model is wearing ") for caption in batch.person_caption)
    for row, category in enumerate(batch.category):
        worn = torch.isin(batch.parse[row], torch.tensor(labels.GARMENT_LABELS[category]))
        assert worn.any() and (batch.agnostic_mask[row, 0][worn] == 1).all()
        arm = batch.parse[row] == labels.LEFT_ARM
        joints = batch.keypoints[row, [6, 7]]
        if arm.any() and joints[:, 2].all():  # the left forearm lies where the left arm's label is
            rows, columns = arm.nonzero().float().T / torch.tensor(SIZE)[:, None]
            across = columns - joints[:, :1]
            down = rows - joints[:, 1:2]
            gap = torch.hypot(across, down).min(1).values
            assert gap.min() < 0.06


def test_warp_of_the_renderer_needs_asking_for(module):
    """It is exact: with it, copying the warped garment solves the unpaired task."""
    assert module.eval_dataset("unpaired").sources["warp"] == "geometric"
    config = DataConfig(**(vars(module.config) | {"warp_source": "folder"}))
    exact = TryOnDataModule(config, seed=0, batch_size=2, eval_batch_size=4)
    batch, plain = exact.val_batch("unpaired", 3), module.val_batch("unpaired", 3)
    assert exact.eval_dataset("unpaired").sources["warp"].startswith("folder:unpaired")

    def error(batch):
        inside = batch.warped_mask * batch.truth_garment_mask
        difference = (batch.warped_garment - batch.truth).abs().mean(1, keepdim=True)
        return float((difference * inside).sum() / inside.sum())

    assert error(batch) < error(plain)


def test_training_stream_of_rendered_data(module):
    batch = next(iter(module.train_dataloader())).to("cpu")
    assert batch.order == ["paired"] * 2 and batch.position == [0, 1]
    assert torch.equal(batch.truth, batch.person)


def test_a_removed_file_is_named(module, tmp_path):
    pairs = module.train_dataset().pairs
    person = pairs.folder.files("train", "paired", pairs.pairs[0]).path("person")
    content = person.read_bytes()
    person.write_bytes(content[:100])
    try:
        message = rf"synthetic train {pairs.pairs[0].person_id}: image .*{person.name}"
        with pytest.raises(DataError, match=message):
            pairs[0]
    finally:
        person.write_bytes(content)
