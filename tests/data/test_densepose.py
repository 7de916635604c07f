"""DensePose pictures: colours to parts and back, through JPEG, in both data sets."""

import re
import shutil

import numpy as np
import pytest

from tests.data.folders import config, figure, save, write_dresscode, write_viton_hd
from vton.data import densepose
from vton.data.check import check_folder
from vton.data.dataset import TryOnDataset, open_folder
from vton.data.images import Origin
from vton.data.sample import DataError

ORIGIN = Origin("viton_hd", "train", "00001_00")


def test_every_colour_decodes_to_its_part(tmp_path):
    parts = np.arange(25, dtype=np.uint8).repeat(16).reshape(20, 20)
    save(tmp_path / "a.png", densepose.draw_parts(parts))
    assert np.array_equal(densepose.read_colours(tmp_path / "a.png", ORIGIN), parts)


def test_jpeg_keeps_the_parts_inside_regions(tmp_path):
    parts = figure(0, (512, 384))["parts"]
    save(tmp_path / "a.jpg", densepose.draw_parts(parts))
    assert (densepose.read_colours(tmp_path / "a.jpg", ORIGIN) == parts).mean() > 0.98


def test_another_picture_is_refused(tmp_path):
    save(tmp_path / "a.jpg", np.full((40, 30, 3), (250, 20, 200), np.uint8))
    with pytest.raises(DataError, match="none of the part colours"):
        densepose.read_colours(tmp_path / "a.jpg", ORIGIN)


def test_mirror_exchanges_the_sides():
    assert np.array_equal(densepose.MIRROR[densepose.MIRROR], np.arange(25))
    exchanged = {0: 0, 1: 1, 2: 2, 3: 4, 7: 8, 9: 10, 15: 16, 20: 19, 23: 24}
    for part, other in exchanged.items():
        assert densepose.MIRROR[part] == other


def test_both_data_sets_give_the_same_picture(tmp_path):
    """Colours in VITON-HD, labels in DressCode's `dense`: samples carry colours on black."""
    seen = []
    for name, write in (("viton_hd", write_viton_hd), ("dresscode", write_dresscode)):
        folder = open_folder(config(name, write(tmp_path / name), densepose=True))
        seen.append(TryOnDataset(folder, "train", "paired")[0].densepose)
    expected = densepose.draw_parts(figure(0)["parts"]).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(seen[1].numpy(), expected, atol=1e-6)
    agree = abs(seen[0].numpy() - expected).max(0) < 1e-6
    assert agree.mean() > 0.9  # at 96x72 JPEG moves part borders


def test_pictures_win_over_labels_only_where_all_categories_have_them(tmp_path):
    write_dresscode(tmp_path, count=1)
    parts = np.where(figure(0)["parse"] > 0, np.uint8(5), np.uint8(0))
    for identity in ("000000", "000001"):
        save(tmp_path / f"upper_body/image-densepose/{identity}_0.jpg", densepose.draw_parts(parts))
    everything = open_folder(config("dresscode", tmp_path, densepose=True))
    assert everything.place("densepose", "train", "paired").folder == "dense"
    notes = [problem.message for problem in check_folder(everything.config)]
    absent = "image-densepose/ is absent in lower_body and dresses, so no category reads it"
    assert f"paired: DensePose picture: {absent}" in notes
    upper = open_folder(config("dresscode", tmp_path, densepose=True, category="upper_body"))
    assert upper.place("densepose", "train", "paired").folder == "image-densepose"
    assert (TryOnDataset(upper, "train", "paired").record(0).densepose == 5).any()


def test_labels_are_read_as_png_where_there_is_a_jpeg_too(tmp_path):
    write_dresscode(tmp_path, count=1)
    picture = tmp_path / "dresses/dense/000004_5.jpg"
    save(picture, densepose.draw_parts(figure(4)["parts"]))
    settings = config("dresscode", tmp_path, densepose=True, category="dresses")
    record = TryOnDataset(open_folder(settings), "train", "paired").record(0)
    assert np.array_equal(record.densepose, figure(4)["parts"])
    problems = check_folder(settings)
    assert {problem.severity for problem in problems} == {"note"}
    words = f"DensePose picture: 1 files are not read, .*: {picture} beside 000004_5.png"
    assert any(re.match(words, problem.message) for problem in problems)


def test_categories_without_the_folder_are_named(tmp_path):
    write_dresscode(tmp_path, count=1)
    for category in ("lower_body", "dresses"):
        shutil.rmtree(tmp_path / category / "dense")
    words = r"dense/ is absent in lower_body and dresses: add it, or choose another data\.category"
    with pytest.raises(DataError, match=words):
        folder = open_folder(config("dresscode", tmp_path, densepose=True))
        TryOnDataset(folder, "train", "paired")
    upper = config("dresscode", tmp_path, densepose=True, category="upper_body")
    assert len(TryOnDataset(open_folder(upper), "train", "paired")) == 1


def test_absent_folder_is_an_error_only_when_asked_for(tmp_path):
    write_viton_hd(tmp_path, train=1, test=1)
    for path in sorted((tmp_path / "train/image-densepose").iterdir()):
        path.unlink()
    (tmp_path / "train/image-densepose").rmdir()
    TryOnDataset(open_folder(config("viton_hd", tmp_path)), "train", "paired")
    with pytest.raises(DataError, match=r"data\.densepose=true .*image-densepose/"):
        TryOnDataset(open_folder(config("viton_hd", tmp_path, densepose=True)), "train", "paired")
