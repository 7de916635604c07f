"""Label maps: both palettes survive a file, and nothing else is taken for labels."""

import numpy as np
import pytest
from PIL import Image

from tests.data.folders import TO_DRESSCODE, config, figure, save, write_dresscode, write_viton_hd
from vton.data import labels, transforms
from vton.data.dataset import open_folder
from vton.data.sample import DataError


def read(name, root, part="parse"):
    folder = open_folder(config(name, root))
    pair = folder.pairs("train", "paired")[0]
    return folder.files("train", "paired", pair).labels(part, None), pair


@pytest.mark.parametrize(
    ("name", "write"), [("viton_hd", write_viton_hd), ("dresscode", write_dresscode)]
)
def test_palette_file_gives_our_labels(tmp_path, name, write):
    parse, pair = read(name, write(tmp_path))
    assert np.array_equal(parse, figure(int(pair.person[:6].split("_")[0]))["parse"])
    assert parse.dtype == np.uint8


def test_every_label_of_both_palettes_round_trips(tmp_path):
    write_viton_hd(tmp_path / "v", train=1, test=1)
    write_dresscode(tmp_path / "d", count=1)
    everything = np.arange(20, dtype=np.uint8).repeat(5).reshape(10, 10)
    save(tmp_path / "v/train/image-parse-v3/00000_00.png", everything, labels.VITON_HD_PALETTE)
    assert np.array_equal(read("viton_hd", tmp_path / "v")[0], everything)
    ours = np.unique(labels.FROM_DRESSCODE)
    atr = np.array([TO_DRESSCODE[label] for label in ours], dtype=np.uint8)
    file = tmp_path / "d/upper_body/label_maps/000000_4.png"
    save(file, atr[None].repeat(2, 0), labels.DRESSCODE_PALETTE)
    assert np.array_equal(read("dresscode", tmp_path / "d")[0], ours[None].repeat(2, 0))
    assert len(ours) == 18


def test_colours_of_the_files_are_the_archives(tmp_path):
    """Value by value from the data sets' documentation: upper garment, left arm and face."""
    viton_hd = {5: (254, 85, 0), 14: (51, 169, 220), 13: (0, 0, 254), 20: (20, 20, 20)}
    dresscode = {4: (0, 0, 128), 14: (64, 128, 128), 11: (192, 128, 0), 18: (18, 18, 18)}
    for palette, expected in (
        (labels.VITON_HD_PALETTE, viton_hd),
        (labels.DRESSCODE_PALETTE, dresscode),
    ):
        for index, rgb in expected.items():
            assert tuple(palette[3 * index : 3 * index + 3]) == rgb


def test_grey_file_of_labels_is_read_and_luminance_is_refused(tmp_path):
    write_viton_hd(tmp_path, train=1, test=1)
    path = tmp_path / "train/image-parse-v3/00000_00.png"
    parse = figure(0)["parse"]
    save(path, parse)
    assert np.array_equal(read("viton_hd", tmp_path)[0], parse)
    image = Image.fromarray(parse)
    image.putpalette(labels.VITON_HD_PALETTE)
    image.convert("L").save(path)
    with pytest.raises(DataError, match="luminance"):
        read("viton_hd", tmp_path)
    image.convert("RGB").save(path)
    with pytest.raises(
        DataError, match=r"viton_hd train 00000_00: parse map has mode RGB.*palette"
    ):
        read("viton_hd", tmp_path)


def test_labels_survive_resizing():
    parse = figure(0, (256, 192))["parse"]
    for size in ((96, 72), (100, 70), (512, 384)):
        small = transforms.resize_labels(parse, size)
        assert small.shape == size
        assert set(np.unique(small)) <= set(np.unique(parse))


def test_left_arm_label_lies_at_the_left_wrist(tmp_path):
    for name, write in (("viton_hd", write_viton_hd), ("dresscode", write_dresscode)):
        root = write(tmp_path / name)
        folder = open_folder(config(name, root))
        files = folder.files("train", "paired", folder.pairs("train", "paired")[0])
        parse, joints = files.labels("parse", None), files.joints()
        height, width = parse.shape
        for label, elbow, wrist in ((labels.LEFT_ARM, 6, 7), (labels.RIGHT_ARM, 3, 4)):
            x, y = joints[[elbow, wrist], :2].mean(0) * (width, height)
            assert parse[int(y), int(x)] == label
