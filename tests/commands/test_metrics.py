"""`vton metrics` on folders of files, alone and shared by real processes."""

import json
import multiprocessing
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from PIL import Image

from tests.metrics.dressed import TinyExtractor
from tests.metrics.tiny_vision import (
    clip_config,
    dinov2_config,
    write_networks,
    write_vton_iqa,
)
from vton import cli
from vton.commands import metrics_arguments
from vton.commands.metrics import read, score_folders
from vton.config import EvalConfig
from vton.metrics import inception, vision
from vton.metrics.matching import Folders, read_list, read_prompts
from vton.metrics.modules import FrechetDinoDistance, GarmentSimilarity, TryOnQuality
from vton.metrics.pixelwise import ssim
from vton.metrics.protocol import protocol
from vton.metrics.results import digest_of_ids

COUNT = 7
CHEAP = ("--metrics", "ssim,psnr")
EVERYWHERE = ["ssim", "psnr", "lpips_random", "fid_random", "kid_random"]
EVERYWHERE += ["fd_dinov2_random", "cmmd_random"]
OF_GARMENTS = ["m_dino_true_mask_random", "m_clip_i_true_mask_random"]
OF_GARMENTS += ["ssim_edge", "psnr_texture", "lpips_texture_random"]


def write(
    folder: Path, names, seed: int = 0, size=(64, 48), suffix=".png", noise: float = 0.0
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        rng = np.random.default_rng((seed, index))
        coarse = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(float)
        grain = np.random.default_rng((9, index)).normal(size=pixels.shape) * noise
        Image.fromarray((pixels + grain).clip(0, 255).round().astype(np.uint8)).save(
            folder / f"{name}{suffix}"
        )
    return folder


def ids(count=COUNT):
    return [f"{index:05d}_00" for index in range(count)]


@pytest.fixture
def pair(tmp_path):
    return write(tmp_path / "mine", ids(), noise=20), write(tmp_path / "truth", ids())


def run(capsys, pred, target, *options) -> list[dict]:
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["metrics", "--pred", str(pred), "--target", str(target), *map(str, options), "--json"]
        )
    done = capsys.readouterr()
    assert not stop.value.code, done.err
    return json.loads(done.out)


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["metrics", *map(str, arguments)])
    done = capsys.readouterr()
    assert stop.value.code == 2 and "Traceback" not in done.err
    return done.err


def test_rows_hold_what_the_pictures_give(capsys, pair, tmp_path):
    pred, target = pair
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    rows = run(capsys, pred, target, *CHEAP, "--out", tmp_path / "rows.json", "--mask-rule", "hull")
    after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    (row,) = rows
    assert [row[key] for key in ("model", "data", "order", "region", "protocol", "n")] == [
        "mine",
        "truth",
        "paired",
        "image",
        "exact",
        COUNT,
    ]
    x, y = (torch.stack([read(folder / f"{name}.png") for name in ids()]) / 255 for folder in pair)
    assert row["metrics"]["ssim"] == pytest.approx(
        ssim(x, y, None, protocol("exact")).mean().item(), abs=1e-12
    )
    assert row["provenance"]["mask"] == "hull" and row["provenance"]["metrics"]["changes"] == []
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


def scored(rank: int, world: int, root: Path) -> None:
    """One of several processes, for each batch size; the first writes the rows."""
    torch.set_num_threads(1)
    inception.Inception = TinyExtractor
    vision.KINDS = {
        "dinov2": vision.KINDS["dinov2"]._replace(random=dinov2_config, random_side=98),
        "clip": vision.KINDS["clip"]._replace(random=clip_config, random_side=84),
    }
    if world > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{root}/meet{world}", rank=rank, world_size=world
        )
    truth = root / "truth"
    asked = Folders(root / "mine", truth, mask=root / "mask", garment=truth)
    metrics = ("ssim", "psnr", "lpips", "fid", "kid", "fd_dinov2", "cmmd")
    of_garments = ("m_dino", "m_clip_i", "ssim_edge", "psnr_texture", "lpips_texture")
    for batch_size in (1, 8):
        config = EvalConfig(metrics=metrics + of_garments, batch_size=batch_size)
        rows = score_folders(asked, "paired", config, "cpu", model="m", data="d", mask_rule="")
        if rank == 0:
            found = []
            for row in rows:
                facts = row.provenance
                numbers = [row.metrics, facts["intervals"], facts["deviations"]]
                found.append([row.region, row.n, facts["pairs_sha256"], numbers])
            (root / f"rows{world}-{batch_size}.json").write_text(json.dumps(found))
    if world > 1:
        distributed.destroy_process_group()


def test_processes_and_batch_sizes_cannot_be_seen_in_any_number(tmp_path):
    """21 pairs by 1, 2 and 3 processes (gloo) in batches of 1 and 8: each pair once, and the same
    bits, since every picture passes the networks alone and sums are exact. The bar is 1e-6, and
    1e-5 relative for FID and KID.
    """
    write(tmp_path / "mine", ids(21), noise=20), write(tmp_path / "truth", ids(21))
    mask = np.zeros((64, 48), dtype=np.uint8)
    mask[10:50, 8:40] = 255
    (tmp_path / "mask").mkdir()
    for name in ids(21):
        Image.fromarray(mask).save(tmp_path / "mask" / f"{name}.png")
    # As loaders start their workers: with one thread each it is safe.
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=scored, args=(rank, world, tmp_path))
        for world in (1, 2, 3)
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * len(workers)
    first, *others = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rows*.json"))]
    assert [(region, n, digest) for region, n, digest, _ in first] == [
        (region, 21, digest_of_ids(ids(21))) for region in ("image", "garment")
    ]
    assert len(others) == 5 and all(rows == first for rows in others)
    image, garment = (numbers[0] for *_, numbers in first)
    assert set(image) == set(EVERYWHERE) and set(garment) == set(EVERYWHERE + OF_GARMENTS)


def test_every_row_has_intervals_and_another_method_is_compared_pair_by_pair(
    capsys, pair, tmp_path, monkeypatch
):
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    pred, target = pair
    other = write(tmp_path / "theirs", ids(), noise=21)
    asked = ("--metrics", "ssim,psnr,fid,kid")
    mine, theirs = run(capsys, pred, target, *asked, "--against", other)
    for row in (mine, theirs):
        assert set(row["provenance"]["intervals"]) == set(row["metrics"])
        for metric, (low, high) in row["provenance"]["intervals"].items():
            assert low < row["metrics"][metric] < high
    against = mine["provenance"]["against"]
    assert against["model"] == "theirs" and set(against["differences"]) == set(mine["metrics"])
    for metric, found in against["differences"].items():
        expected = mine["metrics"][metric] - theirs["metrics"][metric]
        assert found["difference"] == pytest.approx(expected) and found["paired"]
        low, high = found["interval"]
        assert found["within_noise"] == (low <= 0 <= high)
    # 20 and 21 grey levels of noise are told apart on seven pairs, as both have the same grain.
    assert not against["differences"]["psnr"]["within_noise"]
    folders = ("--pred", pred, "--target", target, "--against", other)
    with pytest.raises(SystemExit):
        cli.main(["metrics", *map(str, folders), *asked, "--intervals"])
    printed = capsys.readouterr().out
    assert "mine minus theirs" in printed and "better" in printed and "[" in printed
    assert max(map(len, printed.splitlines())) <= 80 and "…" not in printed


def test_two_folders_of_one_name_keep_their_rows_apart(capsys, tmp_path, monkeypatch):
    target = write(tmp_path / "truth", ids(5))
    write(tmp_path / "mine" / "out", ids(5), noise=20)
    theirs = write(tmp_path / "theirs" / "out", ids(5), noise=30)
    monkeypatch.chdir(tmp_path / "theirs")
    mine, other = run(capsys, "../mine/out", target, *CHEAP, "--against", "out")
    assert (mine["model"], other["model"]) == ("out", str(theirs))
    assert mine["provenance"]["against"]["differences"]["psnr"]["difference"] > 1
    assert "against" not in other["provenance"]
    monkeypatch.chdir(theirs)
    (row,) = run(capsys, ".", "../../truth", *CHEAP)
    assert (row["model"], row["data"]) == ("out", "truth")


@pytest.mark.parametrize(
    ("protocol", "remark"),
    [
        ("exact", "3 predictions are JPEG files: what compression changed counts"),
        ("ladi_compat", "3 predictions are JPEG files, and ladi_compat compresses them again"),
    ],
)
def test_predictions_in_jpeg_are_said_and_counted(capsys, tmp_path, protocol, remark):
    target = write(tmp_path / "truth", ids(3), suffix=".jpg")
    lossy = write(tmp_path / "lossy", ids(3), suffix=".jpg")
    options = ("--protocol", protocol, "--size", "64x48", "--metrics", "psnr")
    arguments = ["--pred", lossy, "--target", target, *options, "--json"]
    with pytest.raises(SystemExit):
        cli.main(["metrics", *map(str, arguments)])
    done = capsys.readouterr()
    assert remark in done.err
    assert json.loads(done.out)[0]["provenance"]["jpeg_predictions"] == 3
    sound = write(tmp_path / "sound", ids(3))
    assert run(capsys, sound, target, *options)[0]["provenance"]["jpeg_predictions"] == 0


def test_files_match_by_name_whatever_the_suffix_and_order(capsys, tmp_path):
    target = write(tmp_path / "truth", ids(3), suffix=".jpg")
    plain = write(tmp_path / "plain", ids(3), noise=20)
    paired = write(tmp_path / "named_by_pair", [f"{name}__{name}" for name in ids(3)], noise=20)
    assert (
        run(capsys, plain, target, *CHEAP)[0]["metrics"]
        == run(capsys, paired, target, *CHEAP)[0]["metrics"]
    )
    write(target, ["00099_00"], suffix=".jpg")
    (tmp_path / "list.txt").write_text("".join(f"{name}.jpg {ids(3)[0]}.jpg\n" for name in ids(2)))
    assert run(capsys, plain, target, *CHEAP, "--list", tmp_path / "list.txt")[0]["n"] == 2


def test_two_naming_schemes_of_the_same_pictures_have_the_same_rows(capsys, tmp_path, monkeypatch):
    """As VTON-IQA publishes its 14 sets, and as this project names files: pairs agree."""
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    target = write(tmp_path / "truth", ids(5), suffix=".jpg")
    others = ids(5)[1:] + ids(5)[:1]  # every person in the next one's garment
    theirs = [f"{person}_{garment}" for person, garment in zip(ids(5), others, strict=True)]
    ours = [name.replace("_00_", "_00__") for name in theirs]
    first = write(tmp_path / "theirs", theirs, seed=1, suffix=".jpg")
    second = tmp_path / "ours"
    second.mkdir()
    for their, our in zip(theirs, ours, strict=True):
        (second / f"{our}.jpg").write_bytes((first / f"{their}.jpg").read_bytes())
    asked = ("--order", "unpaired", "--metrics", "fid,kid", "--against", second)
    mine, other = run(capsys, first, target, *asked)
    assert mine["metrics"] == other["metrics"] and mine["n"] == 5
    digest = digest_of_ids(ours)
    assert mine["provenance"]["pairs_sha256"] == other["provenance"]["pairs_sha256"] == digest
    found = mine["provenance"]["against"]["differences"]["fid_random"]
    assert found["paired"] and found["within_noise"] and found["difference"] == 0

    # Scored as if these were the garments that people wear, every number would be wrong.
    message = refusal(capsys, "--pred", first, "--target", target, *CHEAP)
    assert f"{theirs[0]}.jpg: its name says garment {others[0]}" in message
    assert "score such predictions with --order unpaired" in message
    worn = write(tmp_path / "worn", [f"{name}_{name}" for name in ids(5)], noise=20)
    plain = write(tmp_path / "plain", ids(5), noise=20)
    (row,) = run(capsys, worn, target, *CHEAP)
    (same,) = run(capsys, plain, target, *CHEAP)
    assert row["metrics"] == same["metrics"]
    assert row["provenance"]["pairs_sha256"] == same["provenance"]["pairs_sha256"]


def test_the_root_of_a_data_set_stands_for_its_test_split(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    root = tmp_path / "DressCode"
    persons = {"upper_body": ["000003", "000004", "000005"], "dresses": ["000006", "000007"]}
    for seed, (category, numbers) in enumerate(persons.items()):
        write(
            root / category / "images", [f"{number}_0" for number in numbers], seed, suffix=".jpg"
        )
        # Garments and the training split lie in the same folder.
        stray = [f"{number}_1" for number in numbers] + ["000001_0", "000001_1"]
        write(root / category / "images", stray, seed + 10, suffix=".jpg")
        lines = [
            f"{person}_0.jpg\t{garment}_1.jpg\n"
            for person, garment in zip(numbers, numbers[1:] + numbers[:1], strict=True)
        ]
        (root / category / "test_pairs_unpaired.txt").write_text("".join(lines))
    by_pair = [
        f"{person}_0_{garment}_1"
        for numbers in persons.values()
        for person, garment in zip(numbers, numbers[1:] + numbers[:1], strict=True)
    ]
    flat = write(tmp_path / "flat", by_pair, 5)
    asked = ("--order", "unpaired", "--metrics", "fid,kid")
    rows = run(capsys, flat, root, *asked)
    found = [(row["category"], row["n"]) for row in rows]
    assert found == [("all", 5), ("dresses", 2), ("upper_body", 3)]
    assert rows[0]["provenance"]["targets"]["n"] == 5

    by_person = tmp_path / "by_person"  # named by person alone: the list says the garment
    for name in by_pair:
        category = "upper_body" if name[:8] < "000006_0" else "dresses"
        path = by_person / category / f"{name[:8]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((flat / f"{name}.png").read_bytes())
    again = run(capsys, by_person, root, *asked)
    for row, other in zip(rows, again, strict=True):
        assert row["metrics"] == other["metrics"]
        assert row["provenance"]["pairs_sha256"] == other["provenance"]["pairs_sha256"]

    upper = ("--list", root / "upper_body" / "test_pairs_unpaired.txt")
    (row,) = run(capsys, flat, root, *asked, *upper)
    assert row["n"] == 3 and row["metrics"] == rows[2]["metrics"]

    for category in persons:
        (root / category / "test_pairs_unpaired.txt").unlink()
    message = refusal(capsys, "--pred", flat, "--target", root, *asked)
    assert "without its test_pairs_unpaired.txt; name the targets with --list" in message

    test = tmp_path / "zalando" / "test"
    write(test / "image", ids(3), suffix=".jpg"), write(test / "cloth", ids(3), 1, suffix=".jpg")
    worn = write(tmp_path / "worn", [f"{name}_{name}" for name in ids(3)], noise=20)
    (row,) = run(capsys, worn, test.parent, *CHEAP)
    assert row["n"] == 3


def test_targets_of_another_size_are_resized_as_the_protocol_says(capsys, tmp_path):
    pred, target = (
        write(tmp_path / "mine", ids(3), noise=5),
        write(tmp_path / "truth", ids(3), size=(128, 96)),
    )
    values = {
        name: run(capsys, pred, target, *CHEAP, "--protocol", name, "--size", "64x48")[0][
            "metrics"
        ]["psnr"]
        for name in ("exact", "ladi_compat", "catvton_compat")
    }
    assert len(set(values.values())) == 3
    (row,) = run(capsys, pred, target, *CHEAP)
    targets = row["provenance"]["targets"]
    assert row["provenance"]["size"] == [64, 48]
    assert (targets["n"], targets["size"]) == (3, [128, 96])


def test_unpaired_pictures_are_compared_as_sets(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    pred, target = (
        write(tmp_path / "mine", ["a", "b", "c"], seed=1),
        write(tmp_path / "truth", ids(4)),
    )
    (row,) = run(capsys, pred, target, "--order", "unpaired")
    assert (row["order"], row["n"], set(row["metrics"])) == (
        "unpaired",
        3,
        {"fid_random", "kid_random"},
    )
    unpaired = ("--target", target, "--order", "unpaired")
    assert "unpaired pictures have no target" in refusal(capsys, "--pred", pred, *unpaired, *CHEAP)
    alone = write(tmp_path / "alone", ["a"], seed=1)
    assert f"FID and KID need two pictures on each side: 1 in {alone}, 4 in" in refusal(
        capsys, "--pred", alone, *unpaired
    )


def test_what_lacks_its_network_leaves_a_row_that_says_so(capsys, pair, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(dict.fromkeys(ids(), "a shirt")))
    (row,) = run(capsys, *pair, "--metrics", "image_reward", "--prompts", prompts)
    assert (row["metrics"], row["n"]) == ({}, COUNT) and "image_reward" in row["provenance"][
        "absent"
    ]


def test_folders_of_categories_give_rows_per_category(capsys, tmp_path):
    for side, noise in (("mine", 20), ("truth", 0)):
        write(tmp_path / side / "dresses", ids(2), noise=noise)
        write(tmp_path / side / "upper_body", ids(3), noise=noise)
    rows = run(capsys, tmp_path / "mine", tmp_path / "truth", *CHEAP)
    assert [(row["category"], row["n"]) for row in rows] == [
        ("all", 5),
        ("dresses", 2),
        ("upper_body", 3),
    ]


def test_no_picture_is_left_out_silently(capsys, pair, tmp_path):
    pred, target = pair
    write(pred, [ids()[0]], suffix=".webp"), write(pred, [ids()[1]], suffix=".gif")
    said = refusal(capsys, "--pred", pred, "--target", target, *CHEAP)
    assert f"{pred / ids()[0]}.webp: 2 of the pictures of {pred} are none of .jpg" in said
    assert "convert them, or take them out" in said and len(said.splitlines()) == 1
    for side in ("mine2", "truth2"):
        write(tmp_path / side / "dresses", ids(2))
    stray = write(tmp_path / "mine2", ["stray"])
    said = refusal(capsys, "--pred", stray, "--target", tmp_path / "truth2", *CHEAP)
    assert f"{stray / 'stray'}.png: 1 pictures lie beside the folders dresses" in said
    assert len(said.splitlines()) == 1
    (stray / "stray.png").rename(stray / "stray.txt")
    assert run(capsys, stray, tmp_path / "truth2", *CHEAP)[0]["n"] == 2


def test_a_place_where_nothing_can_be_written_is_refused_before_scoring(
    capsys, pair, tmp_path, monkeypatch
):
    pred, target = pair
    monkeypatch.setattr(metrics_arguments, "score_folders", lambda *_, **__: pytest.fail("scored"))
    (tmp_path / "file").touch()
    for out, problem in [(tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "File exists")]:
        said = refusal(capsys, "--pred", pred, "--target", target, "--out", out, *CHEAP)
        assert str(out) in said and problem in said and len(said.splitlines()) == 1


def test_a_listed_person_in_two_garments(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    target = write(tmp_path / "truth", ids(3), suffix=".jpg")
    person, first, second = ids(3)
    pairs = [(person, first), (person, second), (first, second), (person, first)]
    listed = tmp_path / "pairs.txt"
    listed.write_text("".join(f"{one}.jpg\t{other}.jpg\n" for one, other in pairs))
    assert read_list(listed) == {person: (first, second), first: (second,)}
    asked = ("--target", target, "--order", "unpaired", "--metrics", "fid", "--list", listed)
    by_pair = write(tmp_path / "pairs", [f"{person}__{first}", f"{person}__{second}", first])
    (row,) = run(capsys, by_pair, *asked[1:])
    digest = digest_of_ids([f"{one}__{other}" for one, other in pairs[:3]])
    assert row["n"] == 3 and row["provenance"]["pairs_sha256"] == digest
    by_person = write(tmp_path / "persons", [person, first])
    said = refusal(capsys, "--pred", by_person, *asked)
    assert f"{person}.png: its name does not say which of the listed garments it shows" in said
    assert f"{first}, {second}" in said and len(said.splitlines()) == 1


def test_a_list_of_names_with_blanks_and_prompts_with_a_mark(tmp_path):
    (tmp_path / "list.txt").write_text("my photo.jpg\tshirt.png\nb.jpg\n\nc d.jpg\te f\n")
    expected = {"my photo": ("shirt",), "b": (), "c d": ("e f",)}
    assert read_list(tmp_path / "list.txt") == expected
    (tmp_path / "prompts.json").write_text('{"a": "a shirt"}', encoding="utf-8-sig")
    assert read_prompts(tmp_path / "prompts.json") == {"a": "a shirt"}


def test_repainting_pastes_the_target_and_is_named_where_it_is_missing(capsys, pair, tmp_path):
    pred, target = pair
    masks, pasted = tmp_path / "painted", tmp_path / "pasted"
    masks.mkdir()
    pasted.mkdir()
    levels = np.zeros((64, 48), np.uint8)
    levels[20:40, 10:30] = 255
    for name in ids():
        Image.fromarray(levels).save(masks / f"{name}_mask.png")
        there = Image.open(target / f"{name}.png")
        there.paste(Image.open(pred / f"{name}.png"), mask=Image.fromarray(levels))
        there.save(pasted / f"{name}.png")
    (row,) = run(capsys, pred, target, *CHEAP, "--repaint-mask", masks)
    (expected,) = run(capsys, pasted, target, *CHEAP)
    assert row["metrics"] == expected["metrics"]
    assert row["provenance"]["metrics"]["changes"] == ["repaint=True"]
    (row,) = run(capsys, pred, target, *CHEAP, "--protocol", "catvton_compat", "--size", "64x48")
    assert row["provenance"]["metrics"]["changes"] == ["size=(64, 48)", "repaint=False"]


def test_every_bad_picture_is_named_with_its_path(capsys, pair):
    pred, target = pair
    options = ("--pred", pred, "--target", target, *CHEAP)
    (pred / f"{ids()[3]}.png").write_bytes(b"")
    write(pred, [ids()[1]], size=(32, 32))
    message = refusal(capsys, *options)
    assert (
        f"{pred / ids()[3]}.png: not readable" in message
        and f"{pred / ids()[1]}.png: 32x32" in message
    )
    (pred / f"{ids()[0]}.png").unlink()
    write(pred, ["stray"])
    message = refusal(capsys, *options)
    assert (
        f"{pred / ids()[0]}.png: missing" in message
        and f"{pred / 'stray'}.png: no picture" in message
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--size", "64"], "--size 64"),
        (["--metrics", "ssim,fidd"], "fidd: no such metric. Did you mean: 'fid'?"),
        (["--metrics", "iou"], "iou: no such metric. Known: ssim, "),
        (["--protocol", "lady_compat"], "ladi_compat"),
        (["--metrics", "cami_u"], "cami_u needs --garment"),
        (["--mask", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_requests_are_one_line(capsys, pair, options, expected):
    message = refusal(capsys, "--pred", pair[0], "--target", pair[1], *options)
    assert expected in message and len(message.splitlines()) == 1


def test_unpaired_garments_are_scored_where_masks_say_they_are(capsys, tmp_path, monkeypatch):
    """No truth is needed, and the name of the metric needs no excuse."""
    weights = write_networks(tmp_path / "weights")
    write_vton_iqa(weights)
    target = write(tmp_path / "truth", ids(5), size=(128, 96), suffix=".jpg")
    garments = ids(5)[1:] + ids(5)[:1]
    names = [f"{person}_{garment}" for person, garment in zip(ids(5), garments, strict=True)]
    pred = write(tmp_path / "mine", names, 1, size=(128, 96))
    shop = write(tmp_path / "cloth", ids(5), 2, size=(128, 96), suffix=".jpg")
    mask = np.zeros((128, 96), dtype=np.uint8)
    mask[40:90, 10:90] = 255
    (tmp_path / "masks").mkdir()
    for name in names:
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    folders = ("--garment", shop, "--pred-mask", tmp_path / "masks", "--weights", weights)
    asked = ("--order", "unpaired", "--metrics", "fd_dinov2,cmmd,m_dino,m_clip_i,vton_iqa")
    garment, image = run(capsys, pred, target, *asked, *folders)
    assert set(image["metrics"]) == {"fd_dinov2", "cmmd", "vton_iqa"} and image["n"] == 5
    assert set(garment["metrics"]) == {"m_dino", "m_clip_i"} and garment["n"] == 5
    for row in (image, garment):
        assert set(row["provenance"]["intervals"]) == set(row["metrics"])

    def stack(folder, names, suffix):
        return torch.stack([read(folder / f"{name}{suffix}") for name in names])

    pictures, worn = stack(pred, names, ".png"), torch.from_numpy(mask)[None, None] > 0
    of_shop, persons = stack(shop, garments, ".jpg"), stack(target, ids(5), ".jpg")
    similarity = GarmentSimilarity("clip_i", weights=str(weights))
    similarity.update(pictures, worn.expand(5, -1, -1, -1), of_shop, names)
    assert garment["metrics"]["m_clip_i"] == pytest.approx(similarity.compute().item(), abs=1e-9)
    quality = TryOnQuality(weights=str(weights))
    quality.update(pictures, persons, of_shop, names)
    assert image["metrics"]["vton_iqa"] == pytest.approx(quality.compute().item(), abs=1e-9)
    distance = FrechetDinoDistance(weights=str(weights))
    distance.update(pictures, names, real=False)
    distance.update(persons, ids(5), real=True)
    assert image["metrics"]["fd_dinov2"] == pytest.approx(distance.compute().item(), abs=1e-6)

    # By the person's name alone, their own garment would be taken for the one in the picture.
    by_person = write(tmp_path / "by_person", ids(5), 1, size=(128, 96))
    options = ("--target", target, "--order", "unpaired", "--garment", shop, "--weights", weights)
    score = ("--metrics", "vton_iqa")
    message = refusal(capsys, "--pred", by_person, *options, *score)
    assert "its name says no garment; give --list a file" in message
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{a}.jpg {b}.jpg\n" for a, b in zip(ids(5), garments, strict=True)))
    (row,) = run(capsys, by_person, target, *options[2:], *score, "--list", pairs)
    assert row["metrics"]["vton_iqa"] == pytest.approx(image["metrics"]["vton_iqa"], abs=1e-9)
    nameless = write(tmp_path / "nameless", ["a", "b"], 1, size=(128, 96))
    write(shop, ["a", "b"], 3, size=(128, 96), suffix=".jpg")
    message = refusal(capsys, "--pred", nameless, *options, *score)
    assert "a.png: its name says no person of" in message

    without = ("--pred", pred, "--target", target, *asked, "--garment", shop)
    assert "m_dino needs --pred-mask" in refusal(capsys, *without)


def masks_of(folder: Path, names, change=lambda mask: mask) -> Path:
    folder.mkdir()
    mask = np.zeros((64, 48), np.uint8)
    mask[16:48, 12:36] = 255
    for name in names:
        Image.fromarray(change(mask)).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("option", ["--mask", "--repaint-mask"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda mask: mask // 255, "is empty, its largest value is 1 .* Masks hold 0 and 255"),
        (lambda mask: np.dstack([mask * 0] * 3 + [mask]), "is a cut-out: its transparency"),
        (lambda mask: np.dstack([mask, mask // 2, mask * 0]), "is coloured over"),
        (lambda mask: mask * 0 + 255, "inverted mask"),
    ],
)
def test_masks_are_read_as_in_data_sets(capsys, pair, tmp_path, option, change, expected):
    pred, target = pair
    masks = masks_of(tmp_path / "masks", ids(), change)
    said = refusal(capsys, "--pred", pred, "--target", target, *CHEAP, option, masks)
    assert re.search(expected, said), said
    assert f"{option} picture" in said and len(said.splitlines()) == 1


def test_empty_masks_are_counted_and_said(capsys, pair, tmp_path):
    pred, target = pair
    masks = masks_of(tmp_path / "masks", ids())
    nothing = Image.fromarray(np.zeros((64, 48), np.uint8))
    nothing.save(masks / f"{ids()[2]}.png")
    arguments = ["--pred", pred, "--target", target, *CHEAP, "--mask", masks, "--json"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["metrics", *map(str, arguments)])
    done = capsys.readouterr()
    assert not stop.value.code
    counts = {row["region"]: row["n"] for row in json.loads(done.out)}
    assert counts == {"image": COUNT, "garment": COUNT - 1}
    assert f"1 masks of {masks} are empty" in done.err and ids()[2] in done.err
    for name in ids():
        nothing.save(masks / f"{name}.png")
    assert f"all {COUNT} masks are empty" in refusal(capsys, *arguments[:-1])
    said = refusal(capsys, "--pred", pred, "--target", target, *CHEAP, "--repaint-mask", masks)
    assert "is empty" in said  # nothing painted: every picture would be its target


def test_whatever_cannot_be_computed_has_its_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    pred, target = write(tmp_path / "p", ids(1), noise=9), write(tmp_path / "t", ids(1))
    arguments = ["--pred", pred, "--target", target, "--metrics", "psnr", "fid", "kid"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["metrics", *map(str, arguments)])
    out = " ".join(capsys.readouterr().out.split())
    assert not stop.value.code
    for metric in ("fid_random", "kid_random"):
        assert f"{metric} is absent: it needs two pictures on each side, here are 1 and 1." in out
    pred, target = write(tmp_path / "p2", ids(3), noise=9), write(tmp_path / "t2", ids(3))
    rows = run(capsys, pred, target, "--order", "unpaired", "--metrics", "ssim", "fid")
    assert "no target to compare with" in rows[0]["provenance"]["absent"]["ssim"]


def test_the_reference_is_counted_and_what_has_no_prediction_named(capsys, tmp_path, monkeypatch):
    """DressCode's folder of images holds garments as well as persons."""
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    persons = ["000001_0", "000002_0", "000003_0"]
    garments = [name.replace("_0", "_1") for name in persons]
    target = write(tmp_path / "images", [*persons, *garments])
    pred = write(tmp_path / "pred", persons, noise=9)
    arguments = ["--pred", pred, "--target", target, "--order", "unpaired", "--metrics", "fid"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["metrics", *map(str, arguments), "--json"])
    done = capsys.readouterr()
    assert not stop.value.code
    (row,) = json.loads(done.out)
    stored = row["provenance"]["targets"]
    assert stored["n"] == 6
    assert stored["sha256"] == digest_of_ids([*persons, *garments])
    assert stored["without_prediction"] == {"n": 3, "first": garments}
    assert f"FID compares with 6 pictures of {target}" in done.err
    assert "3 of them have no prediction: 000001_1, 000002_1, 000003_1" in done.err
    assert "--list" in done.err


def test_padded_squares_are_said_to_be_distorted(capsys, tmp_path):
    pred = write(tmp_path / "p", ids(2), size=(64, 64))
    target = write(tmp_path / "t", ids(2), size=(64, 48))
    arguments = ["--pred", pred, "--target", target, *CHEAP]
    with pytest.raises(SystemExit):
        cli.main(["metrics", *map(str, arguments)])
    said = capsys.readouterr().err
    assert "these shapes differ, so the pictures are compared distorted" in said
    assert "crop them first" in said and "--size 64x48" in said
