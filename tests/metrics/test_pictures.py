import numpy as np
import pytest
import torch
from PIL import Image

from vton.data.sample import DataError
from vton.metrics.pictures import PictureFolder, to_uint8, write_pictures

IDS = ["00001_00__00002_00", "00003_00__00004_00"]


def write_two(folder, size=(16, 12)):
    pictures = torch.randint(
        0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    write_pictures(folder, IDS, pictures)
    return pictures


def test_every_level_survives_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)


def test_rounds_instead_of_truncating_and_clamps():
    just_below = (torch.tensor([100.49, 100.51, 254.9]) / 127.5) - 1
    assert to_uint8(just_below).tolist() == [100, 101, 255]
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_picture_is_refused(value):
    with pytest.raises(DataError, match="NaN or infinite"):
        to_uint8(torch.tensor([0.0, value]))


def test_png_round_trip_is_exact_in_any_order(tmp_path):
    pictures = write_two(tmp_path)
    folder = PictureFolder(tmp_path)
    folder.check(IDS, (16, 12))
    assert torch.equal(folder.read(IDS), pictures)
    assert torch.equal(folder.read(IDS[::-1]), pictures.flip(0))


def test_check_names_every_problem_at_once(tmp_path):
    write_two(tmp_path)
    Image.new("RGB", (12, 16)).save(tmp_path / "stray.png")
    Image.new("RGB", (13, 16)).save(tmp_path / "wide.png")
    Image.new("L", (12, 16)).save(tmp_path / "grey.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        PictureFolder(tmp_path).check([*IDS, "absent", "wide", "grey", "empty"], (16, 12))
    message = str(error.value)
    assert "5 problems" in message
    for part in (
        "missing",
        "absent.png",
        "extra",
        "stray.png",
        "13x16",
        "grey.png: is a L picture",
        "empty.png: not r",
    ):
        assert part in message, part
    assert IDS[0] not in message


def test_a_picture_that_breaks_off_is_named_on_loading(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    write_two(tmp_path)
    path = tmp_path / f"{IDS[1]}.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{IDS[1]}.png: predicted picture not readable"):
        PictureFolder(tmp_path).read(IDS)


def test_a_missing_folder_and_mixed_sizes_are_named(tmp_path):
    with pytest.raises(DataError, match="missing"):
        PictureFolder(tmp_path / "nowhere").check(IDS, (16, 12))
    write_two(tmp_path)
    Image.new("RGB", (20, 10)).save(tmp_path / f"{IDS[1]}.png")
    with pytest.raises(DataError, match="20x10"):
        PictureFolder(tmp_path).read(IDS)
