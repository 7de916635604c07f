"""The optional third picture of a sample: the person in other clothes, for maskless training."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.folders import config, figure, save, write_viton_hd
from vton.config import DataConfig, SyntheticConfig
from vton.data import augmentation
from vton.data.check import check_folder
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.module import TryOnDataModule
from vton.data.sample import DataError, TryOnBatch


@pytest.fixture
def root(tmp_path):
    root = write_viton_hd(tmp_path / "data", train=2, test=2)
    for split, first in (("train", 0), ("test", 1000)):
        for number in (first, first + 1):
            save(root / split / f"image_synthesis/{number:05d}_00.jpg", figure(number + 7)["photo"])
    return root


def test_it_comes_where_it_is_asked_for(root):
    settings = config("viton_hd", root, person_other=True)
    batch = TryOnBatch.collate(list(TryOnDataset(open_folder(settings), "train", "paired")))
    stored = np.array(Image.open(root / "train/image_synthesis/00000_00.jpg")).transpose(2, 0, 1)
    assert torch.equal(
        ((batch.person_other[0] + 1) * 127.5).round(), torch.from_numpy(stored).float()
    )
    assert not torch.equal(batch.person_other, batch.person)
    plain = TryOnDataset(open_folder(config("viton_hd", root)), "train", "paired")[0]
    assert plain.person_other is None


def test_it_moves_with_the_person(root):
    settings = config("viton_hd", root, person_other=True)
    record = TryOnDataset(open_folder(settings), "train", "paired").record(0)
    record.person_other = record.person.clone()
    changes = augmentation.Changes(
        flip=True,
        person=augmentation.Move(1.1, 0.05, -0.1),
        garment=None,
        colour=augmentation.ColourChange(1.1, 0.9, 1.2, 0.02),
        dilate_px=0,
        box=False,
    )
    changed = augmentation.augment(record, changes)
    assert torch.equal(changed.person_other, changed.person)
    assert not torch.equal(changed.person, record.person)


def test_a_missing_or_unfitting_file_is_named(root, tmp_path):
    asked = config("viton_hd", root, person_other=True)
    path = root / "train/image_synthesis/00001_00.jpg"
    save(path, figure(8, (72, 96))["photo"])
    with pytest.raises(DataError, match="in other clothes is 96x72, image is 72x96"):
        TryOnDataset(open_folder(asked), "train", "paired")[1]
    (problem,) = [one for one in check_folder(asked) if one.severity != "note"]
    assert problem.severity == "required" and problem.path == str(path)
    path.unlink()
    (problem,) = [one for one in check_folder(config("viton_hd", root)) if one.severity != "note"]
    assert problem.severity == "optional" and "is missing" in problem.message
    other = write_viton_hd(tmp_path / "other", train=1, test=1)
    with pytest.raises(DataError, match=r"data\.person_other=true needs a folder"):
        TryOnDataset(open_folder(config("viton_hd", other, person_other=True)), "train", "paired")


@pytest.mark.parametrize("layout", ["viton_hd", "dresscode"])
def test_the_renderer_writes_it_where_it_is_asked_for(layout, tmp_path):
    """The same pose and garment picture; every other file as without."""
    folders = []
    for other in (False, True):
        synthetic = SyntheticConfig(layout=layout, train=2, test=2, workers=1, other_clothes=other)
        settings = DataConfig(
            root=str(tmp_path), size=(96, 72), workers=0, synthetic=synthetic, person_other=other
        )
        data = TryOnDataModule(settings, seed=0, batch_size=1, eval_batch_size=1)
        data.prepare_data()
        folders.append((data.root, data))
    (plain, _), (more, data) = folders
    assert plain != more
    for path in plain.rglob("*"):
        if path.is_file() and path.name != "synthetic.json":
            assert path.read_bytes() == (more / path.relative_to(plain)).read_bytes(), path
    extra = {path.parent.name for path in more.rglob("*") if path.is_file()} - {
        path.parent.name for path in plain.rglob("*") if path.is_file()
    }
    assert extra - {more.name} == {"person-other"}
    for pairs in (data.train_dataset().pairs, data.eval_dataset("unpaired")):
        sample = pairs[0]
        worn = sample.parse == 5
        assert not torch.equal(sample.person_other, sample.person)
        if pairs.order == "unpaired":  # which has the true picture of those other clothes
            assert (sample.person_other - sample.truth).abs().mean() < 0.05  # JPEG
        head = sample.parse == 13
        difference = (sample.person_other - sample.person).abs().mean(0)
        if head.any() and worn.any():
            assert difference[head].mean() < difference[worn].mean()
