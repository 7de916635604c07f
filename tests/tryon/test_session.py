import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vton
from tests.photos import people
from tests.photos.test_reading import wide_profile
from tests.running import command
from tests.tryon.runs import tiny_run
from vton.commands.tryon import output_files, save
from vton.config import ConfigError
from vton.data.dataset import TryOnDataset
from vton.errors import UserError
from vton.photos.backends import Networks
from vton.photos.errors import PhotoError
from vton.runs.cascade import load_stage
from vton.runs.folder import RunFolder
from vton.tryon import TryOn
from vton.tryon.prepared import PreparedFolder
from vton.tryon.session import for_photos, with_mask


@pytest.fixture(scope="module")
def run(tmp_path_factory, rendered):
    return tiny_run(tmp_path_factory.mktemp("runs"), rendered)


@pytest.fixture(scope="module")
def try_on(run):
    return TryOn(run.path)


@pytest.fixture(scope="module")
def person(try_on):
    return try_on.person(people.photo(1))


@pytest.fixture(scope="module")
def garments(try_on):
    return [try_on.garment(people.garment(place)[0]) for place in (2, 3)]


def test_it_is_imported_by_the_packages_name_without_torch_for_others():
    assert vton.TryOn is TryOn
    with pytest.raises(AttributeError, match="no attribute 'TryOut'"):
        vton.TryOut  # noqa: B018


def test_only_the_repainted_region_of_the_photo_changes(try_on, person, garments):
    (drawn,) = try_on.draw(person, garments[:1])
    photo = np.asarray(person.photo)
    pasted = np.asarray(drawn.picture)
    assert pasted.shape == photo.shape and drawn.frame.size == (48, 64)
    changed = (pasted != photo).any(2)
    near = Image.fromarray(person.mask).resize(person.photo.size)
    assert changed[np.asarray(near)].mean() > 0.9
    assert not changed[: round(0.1 * len(changed))].any()


def test_a_large_photo_keeps_its_resolution(try_on, garments):
    photo = people.photo(1, (0.22, 0.62, 0.35)).resize((1536, 2048))
    person = try_on.person(photo)
    assert person.frame.height < 1900
    (drawn,) = try_on.draw(person, garments[:1])
    assert drawn.picture.size == (1536, 2048)
    same = (np.asarray(drawn.picture) == np.asarray(photo)).all(2)
    assert same.mean() > 0.6 and not same.all()


def test_it_draws_in_the_precision_of_evaluation(run):
    """As a run of a GPU in bf16 is drawn on a CPU: in float32."""
    path = run.config
    stored = path.read_text()
    trained_in_bf16 = stored.replace("precision: fp32", "precision: bf16")
    try:
        path.write_text(trained_in_bf16.replace("precision: null", "precision: fp32"))
        assert load_stage(run).config.train.precision == "bf16"
        (module,) = TryOn(run.path).modules
    finally:
        path.write_text(stored)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_seeds_count_and_a_picture_does_not_depend_on_its_batch(try_on, person, garments):
    alone = [try_on.draw(person, [garment], seed=4)[0] for garment in garments]
    together = try_on.draw(person, garments, seed=4)
    for one, other in zip(alone, together, strict=True):
        difference = np.abs(np.asarray(one.frame).astype(int) - np.asarray(other.frame))
        assert difference.max() <= 2 and one.seed == other.seed == 4
    three = try_on.draw(person, garments[:1], seed=3, count=3)
    assert [one.seed for one in three] == [3, 4, 5]
    assert three[1].frame.tobytes() == alone[0].frame.tobytes()
    assert three[0].frame.tobytes() != three[1].frame.tobytes()


def test_steps_and_guidance_are_those_asked_for(try_on, person, garments):
    seen = []
    try_on.draw(person, garments[:1], steps=5, watch=lambda done, total: seen.append((done, total)))
    assert seen == [(step + 1, 5) for step in range(5)]
    assert try_on.total_steps() == 3 and try_on.total_steps(count=2, steps=7) == 14
    plain = try_on.draw(person, garments[:1])[0].frame
    guided = try_on.draw(person, garments[:1], guidance=4.0)[0].frame
    assert plain.tobytes() != guided.tobytes()
    assert plain.tobytes() == try_on.draw(person, garments[:1])[0].frame.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0}, {"count": 17}, {"seed": -1}, {"seed": 2**31}, {"seed": 2**31 - 1, "count": 2},
        {"steps": 0}, {"guidance": -1.0}, {"count": 1.5}, {"seed": 0.5}, {"seed": "1"},
        {"steps": 2.5}, {"steps": "2"}, {"guidance": "2"}, {"captions": ["a top", "a shirt"]},
    ],
)  # fmt: skip
def test_numbers_out_of_bounds(try_on, person, garments, wrong):
    with pytest.raises(ConfigError):
        try_on.draw(person, garments[:1], **wrong)


def test_the_last_seed_that_the_message_names_is_one(try_on, person, garments):
    (drawn,) = try_on.draw(person, garments[:1], seed=2**31 - 1, steps=1)
    assert drawn.seed == 2**31 - 1


def test_a_device_that_is_not_here(run):
    for device in ("nowhere", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {device}: not usable here"):
            TryOn(run.path, device=device)


def test_what_watching_raises_stops_the_drawing(try_on, person, garments):
    class Stop(Exception):
        pass

    def watch(done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        try_on.draw(person, garments[:1], steps=50, watch=watch)


def test_pictures_files_and_several_garments(try_on, tmp_path):
    people.photo(1).save(tmp_path / "person.png")
    people.garment(2)[0].save(tmp_path / "garment.png")
    one = try_on(tmp_path / "person.png", str(tmp_path / "garment.png"), seed=1)
    several = try_on(people.photo(1), [people.garment(2)[0], people.garment(3)[0]], seed=1)
    assert len(several) == 2
    difference = np.abs(np.asarray(several[0]).astype(int) - np.asarray(one))
    assert difference.max() <= 4
    assert try_on(people.photo(1), []) == []


def test_a_mask_of_ones_own_decides_what_changes(try_on, garments, tmp_path):
    photo = people.photo(1)
    painted = Image.new("L", photo.size)
    painted.paste(255, (150, 200, 220, 260))
    person = try_on.person(photo, mask=painted)
    painted.save(tmp_path / "mask.png")
    assert np.array_equal(with_mask(person, tmp_path / "mask.png").mask, person.mask)
    picture = try_on.draw(person, garments[:1])[0].picture
    rows, columns = (np.asarray(picture) != np.asarray(photo)).any(2).nonzero()
    assert rows.min() > 180 and rows.max() < 280 and columns.min() > 130 and columns.max() < 240
    with pytest.raises(PhotoError, match="the mask is empty"):
        with_mask(person, Image.new("L", photo.size))
    with pytest.raises(PhotoError, match="the mask is 90x10"):
        with_mask(person, Image.new("L", (90, 10), 255))


def test_a_mask_painted_on_a_reduced_copy_is_placed_as_on_the_photo(try_on):
    """As by a program that shows a large photo smaller; the copy has the frame's proportions."""
    photo = people.photo(1, (0.22, 0.62, 0.35)).resize((1536, 2048))
    person = try_on.person(photo)
    assert person.frame.height < 1900 and person.mask.shape == (512, 384)
    reduced = Image.new("L", (600, 800))
    box = (person.frame.left + 200, person.frame.top + 300, 500, 600)
    left, top = round(box[0] * 600 / 1536), round(box[1] * 600 / 1536)
    reduced.paste(255, (left, top, left + 150, top + 120))
    small = with_mask(person, reduced).mask
    whole = with_mask(person, reduced.resize(photo.size, Image.Resampling.BILINEAR)).mask
    assert np.array_equal(small, whole)
    scale = 1536 / 600 * 384 / person.frame.width
    assert small.sum() == pytest.approx(150 * 120 * scale**2, rel=0.05)
    assert with_mask(person, reduced.resize((599, 799))).mask.any()  # a pixel off
    assert with_mask(person, reduced).warnings == person.warnings
    reduced.paste(255, (0, 760, 600, 800))  # on the ground, below what is drawn
    (warning,) = set(with_mask(person, reduced).warnings) - set(person.warnings)
    assert "of the mask lies outside the part of the photo that is drawn" in warning
    with pytest.raises(PhotoError, match="Paint the mask on the photo itself"):
        with_mask(person, Image.new("L", (600, 780), 255))
    # Of exactly the frame's size it is the frame's.
    own = Image.fromarray(person.mask).convert("L")
    assert np.array_equal(with_mask(person, own).mask, person.mask)


def test_the_commands_mask_is_always_one_of_the_photo(run, try_on, tmp_path):
    """A copy of the photo may well have the size of the frame's mask, which nobody sees there."""
    photo = people.photo(1, (0.22, 0.62, 0.35)).resize((1536, 2048))
    person = try_on.person(photo)
    assert person.frame.height < 1900 and person.mask.shape == (512, 384)
    left, top = round((person.frame.left + 500) / 4), round((person.frame.top + 600) / 4)
    painted = Image.new("L", (384, 512))
    painted.paste(255, (left, top, left + 60, top + 50))
    painted.save(tmp_path / "mask.png")
    photo.save(tmp_path / "person.png")
    people.garment(2)[0].save(tmp_path / "garment.png")
    photos = [str(tmp_path / name) for name in ("person.png", "garment.png")]
    asked = ["--run", str(run.path), "--mask", str(tmp_path / "mask.png"), "--steps", "1"]
    assert command("tryon", *photos, *asked, "--out", str(tmp_path / "out.png")) == 0
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    rows, columns = (drawn != np.asarray(photo)).any(2).nonzero()
    seam = 0.03 * person.frame.height
    assert 4 * top - seam < rows.min() < 4 * top + seam
    assert 4 * (left + 60) - seam < columns.max() < 4 * (left + 60) + seam


def test_a_mask_changes_a_person_that_was_prepared_before(try_on, person, garments):
    painted = Image.new("L", person.photo.size)
    painted.paste(255, (150, 200, 220, 260))
    picture = try_on(person, garments[0], mask=painted, steps=1)
    rows, _ = (np.asarray(picture) != np.asarray(person.photo)).any(2).nonzero()
    assert rows.min() > 180 and rows.max() < 280


def test_other_pictures_in_the_place_of_a_mask_are_refused(try_on, person):
    photo = people.photo(1)
    with pytest.raises(PhotoError, match="it looks like a photograph") as refused:
        with_mask(person, photo)
    assert refused.value.picture == "mask"
    for colour, refuse in (("black", True), ("white", False)):
        strokes = Image.new("RGBA", photo.size)
        strokes.paste(colour, (150, 200, 220, 260))
        if refuse:
            with pytest.raises(PhotoError, match="the mask is a cut-out"):
                with_mask(person, strokes)
        else:
            assert 0 < with_mask(person, strokes).mask.mean() < 0.1


def test_the_command_reads_masks_as_strictly(run, tmp_path, capsys):
    people.photo(1).save(tmp_path / "person.png")
    people.garment(2)[0].save(tmp_path / "garment.png")
    strokes = Image.new("RGBA", people.photo(1).size)
    strokes.paste("black", (150, 200, 220, 260))
    strokes.save(tmp_path / "mask.png")
    photos = [str(tmp_path / name) for name in ("person.png", "garment.png", "mask.png")]
    asked = ["tryon", *photos[:2], "--run", str(run.path), "--out", str(tmp_path / "out.png")]
    assert command(*asked, "--mask", photos[2]) == 2
    assert f"{photos[2]} is a cut-out" in capsys.readouterr().err
    assert command(*asked, "--mask", photos[0]) == 2
    assert "it looks like a photograph" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_pictures_with_a_profile_are_written_alike_in_every_format(try_on, garments):
    photo = people.photo(1)
    photo.info["icc_profile"] = wide_profile()
    person = try_on.person(photo)
    assert "icc_profile" not in person.photo.info
    difference = np.asarray(person.photo)[..., 0].astype(int) - np.asarray(photo)[..., 2]
    assert np.abs(difference).mean() < 3  # red and blue exchanged, as the profile says
    assert "icc_profile" not in try_on.draw(person, garments[:1])[0].picture.info


def test_a_batch_is_what_a_data_set_would_give(try_on, person, garments):
    config = for_photos(try_on.config.data)
    first, second = (
        TryOnDataset(PreparedFolder(person, garment, caption, config), "test", "unpaired")[0]
        for garment, caption in zip(garments, ("a red top", ""), strict=True)
    )
    assert first.garment_caption == "a photo of a red top"
    assert second.garment_caption == "a photo of shirts"  # data.caption_fallback
    assert torch.equal(first.agnostic, second.agnostic)
    assert not torch.equal(first.garment, second.garment)
    assert first.warped_mask.any()  # the geometric warp found shoulders to hang it on


def test_a_cascade_draws_stage_after_stage(tmp_path, rendered, person, garments):
    first = tiny_run(tmp_path, rendered, "tryondiffusion", "model.stage=base")
    assert first.path.exists()
    stage = load_stage(RunFolder(first.path), whole=True)
    try_on = TryOn(stage=stage)
    total = try_on.total_steps()
    seen = []
    drawn = try_on.draw(
        try_on.person(people.photo(1)), garments[:1], watch=lambda done, of: seen.append((done, of))
    )
    assert len(drawn) == 1 and seen[-1] == (total, total)


def test_a_run_that_reads_body_parts_needs_a_network_for_them(tmp_path, rendered, run):
    stage = load_stage(run)
    parts = replace(stage.config.data, densepose=True)
    needy = replace(stage, config=replace(stage.config, data=parts))
    with pytest.raises(UserError, match="--densepose small"):
        TryOn(stage=needy)
    ready = TryOn(stage=needy, networks=Networks.named(densepose="small"))
    assert ready.person(people.photo(1)).densepose.any()


def test_categories_and_runs_that_cannot_be_used(try_on, run, tmp_path):
    with pytest.raises(PhotoError, match="has learned upper_body only, not dresses"):
        try_on.person(people.photo(1), "dresses")
    with pytest.raises(UserError, match="is not a run folder"):
        TryOn(tmp_path / "nothing")


def test_the_command_writes_pictures(run, tmp_path, capsys):
    people.photo(1).save(tmp_path / "person.png")
    people.garment(2)[0].save(tmp_path / "garment.png")
    photos = [str(tmp_path / name) for name in ("person.png", "garment.png")]
    out = tmp_path / "out.png"
    arguments = ["tryon", *photos, "--run", str(run.path), "--out", str(out)]
    assert command(*arguments, "--seed", "5", "--count", "2") == 0
    printed = capsys.readouterr().out
    assert "out_1.png: seed 5" in printed and "out_2.png: seed 6" in printed
    assert Image.open(tmp_path / "out_2.png").size == people.photo(1).size
    assert command(*arguments, "--steps", "0") == 2
    assert "sampler.steps" in capsys.readouterr().err
    assert command("tryon", *photos[::-1], "--run", str(run.path), "--out", str(out)) == 2
    assert "no person was found" in capsys.readouterr().err
    assert not out.exists()
    assert command(*arguments[:-1], str(tmp_path / "out.gif")) == 2
    assert command(*arguments[:-1], str(tmp_path / "none/out.png")) == 2


def test_names_that_are_no_text_are_written_and_printed(run, tmp_path, monkeypatch):
    people.photo(1).save(tmp_path / "person.png")
    people.garment(2)[0].save(tmp_path / "garment.png")
    photos = [str(tmp_path / name) for name in ("person.png", "garment.png")]
    out = tmp_path / os.fsdecode(b"M\xfcller.png")  # in Latin-1, on a disk of today
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", terminal)
    asked = ["--run", str(run.path), "--steps", "1", "--out", str(out)]
    assert command("tryon", *photos, *asked) == 0
    terminal.flush()
    assert b"M\\udcfcller.png: seed 0" in terminal.buffer.getvalue()
    assert Image.open(out).size == people.photo(1).size


def test_the_command_writes_over_nothing_that_it_reads(tmp_path, capsys):
    people.photo(1).save(tmp_path / "me.png")
    people.garment(2)[0].save(tmp_path / "top_1.png")
    before = (tmp_path / "me.png").read_bytes()
    photos = [str(tmp_path / name) for name in ("me.png", "top_1.png")]
    for out, more, read in (
        (photos[0], [], "me.png"),
        (tmp_path / "../" / tmp_path.name / "me.png", [], "me.png"),
        (tmp_path / "top.png", ["--count", "2"], "top_1.png"),
        (tmp_path / "new.png", ["--mask", photos[0]], None),
    ):
        assert command("tryon", *photos, "--run", "none", "--out", str(out), *more) == 2
        told = capsys.readouterr().err
        assert ("would write over" in told) == (read is not None) and (read or "") in told
    assert (tmp_path / "me.png").read_bytes() == before


def test_where_pictures_go(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"is a folder. Name a file in it, such as .*tryon.png"):
        output_files(tmp_path, 1)
    (tmp_path / "old.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        output_files(tmp_path / "old.png", 1)
    with pytest.raises(ConfigError, match="pictures end in"):
        output_files(Path("-"), 1)
    longest = tmp_path / f"{'x' * 251}.png"  # what disks take
    save(people.photo(1), longest)
    assert list(tmp_path.glob("*x.png")) == [longest]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to write in"):
        output_files(tmp_path / "out.png", 1)


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".webp"])
def test_a_picture_that_cannot_be_written_whole_leaves_the_one_before(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    save(people.photo(1), path)
    before = path.read_bytes()
    assert Image.open(path).size == people.photo(1).size
    broken = people.photo(1).copy()
    broken.save = lambda file, kind, **options: Path(file).write_bytes(b"half") and 1 / 0
    with pytest.raises(ZeroDivisionError):
        save(broken, path)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == [path.name]
