from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.photos import people
from vton.data import densepose, labels, pose
from vton.data.sample import JOINTS
from vton.data.synthetic.writing import RENDERER_VERSION
from vton.errors import UserError
from vton.photos.parser import network as networks
from vton.photos.parser import training as trainings
from vton.photos.parser import varied as variations
from vton.photos.parser.network import HEIGHT, SHIPPED, WIDTH, SmallParser, facts, load, read, save
from vton.photos.parser.rendered import KINDS, Rendered, joints_of
from vton.photos.parser.training import Plan, Training, collate, digest_of, train
from vton.photos.parser.varied import CLOTH, Draws, Examples, heat, varied
from vton.photos.small import one_garment_each


def test_a_file_gives_the_network_back(tmp_path):
    torch.manual_seed(0)
    network = SmallParser().eval()
    save(network, tmp_path / "parser", {"seed": 5})
    again = load(tmp_path / "parser")
    picture = torch.rand(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        ours, theirs = network(picture), again(picture)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)  # stored in half precision
    assert facts(tmp_path / "parser") == {"seed": 5}
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no file of the small parser"):
        load(tmp_path / "broken")


def test_a_mirrored_picture_is_read_as_the_mirror_image():
    photo = people.photo(0)
    (straight,) = read(networks.shipped(), [photo])
    (mirrored,) = read(networks.shipped(), [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    swapped = mirrored.labels[torch.from_numpy(labels.MIRROR).long()].flip(2)
    torch.testing.assert_close(straight.labels.exp(), swapped.exp(), atol=1e-4, rtol=0)
    back = pose.mirror(np.column_stack([mirrored.joints[:, :2], np.ones(JOINTS)]))
    sure = straight.joints[:, 2] > 0.5
    np.testing.assert_allclose(straight.joints[sure, :2], back[sure, :2], atol=1e-4)


def test_what_it_says_of_people_it_has_not_seen():
    """Floors well below what `docs/photos.md` measures: 8 people here, 40 there."""
    right = errors = np.zeros(0)
    for place in range(8):
        drawing, person = people.person(place), people.scene(place).person
        (reading,) = read(networks.shipped(), [Image.fromarray(drawing.picture)])
        truth = np.asarray(
            Image.fromarray(drawing.parse).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
        )
        right = np.append(right, reading.labels.argmax(0).numpy() == truth)
        joints = joints_of(person)
        seen = joints[:, 2] > 0
        errors = np.append(errors, np.abs(reading.joints - joints)[seen, :2].max(1))
    assert right.mean() > 0.88
    assert errors.mean() < 0.03


# ---- what it learns from ----


def test_examples_depend_on_seed_and_number_alone():
    first, again = Rendered(1, 40, (32, 24)), Rendered(1, 40, (32, 24))
    for index in (0, 3, 17):
        one, other = first.example(index), again.example(index)
        for name in ("picture", "parse", "parts", "joints"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
    assert not np.array_equal(
        first.example(0).picture, Rendered(2, 40, (32, 24)).example(0).picture
    )


def test_examples_are_of_every_kind():
    examples = [Rendered(1, 40, (32, 24)).example(index) for index in range(40)]
    assert set(KINDS) == {"viton_hd", "dresscode", "free", "two", "product", "none"}
    assert any(len(example.joints) == 2 for example in examples)
    alone = [example for example in examples if not example.joints[..., 2].any()]
    assert any(example.parse.any() for example in alone)  # a garment without a person
    assert sum(bool(example.parts.any()) for example in examples) > 25


def test_annotations_move_with_their_pixels():
    """Every joint is a dot of its own colour, and its cell has a label and a part of its own."""
    height, width, count = 128, 96, 12
    generator = torch.Generator().manual_seed(0)
    picture = torch.zeros(count, 3, height, width)
    parse = torch.zeros(count, height, width, dtype=torch.int64)
    joints = torch.zeros(count, 1, JOINTS, 3)
    chosen = (pose.RIGHT_WRIST, pose.LEFT_KNEE)
    for row in range(count):
        for joint, label, low in zip(
            chosen, (labels.RIGHT_ARM, labels.LEFT_LEG), (30, 85), strict=True
        ):
            y, x = (torch.randint(15, (2,), generator=generator) + torch.tensor([low, 40])).tolist()
            parse[row, y - 3 : y + 4, x - 3 : x + 4] = label
            joints[row, 0, joint] = torch.tensor([(x + 0.5) / width, (y + 0.5) / height, 1])
    moved = varied(Examples(picture, parse, parse.clone(), joints), generator)
    for row in range(count):
        for joint in range(JOINTS):
            x, y, valid = moved.joints[row, 0, joint].tolist()
            if not valid:
                continue
            label = moved.parse[row, int(y * height), int(x * width)].item()
            # A mirrored wrist is the other side's, with the other side's label.
            sides = {
                pose.RIGHT_WRIST: labels.RIGHT_ARM, pose.LEFT_WRIST: labels.LEFT_ARM,
                pose.RIGHT_KNEE: labels.RIGHT_LEG, pose.LEFT_KNEE: labels.LEFT_LEG,
            }  # fmt: skip
            assert label == sides[joint]
    assert moved.joints[..., 2].sum() >= count
    assert moved.picture.min() >= 0 and moved.picture.max() <= 1


def test_a_top_that_ends_elsewhere_ends_there_in_picture_and_labels(monkeypatch):
    """Trunk and legs are cut at a line, sleeves and skin stay what they are."""
    monkeypatch.setattr(variations, "NEW_HEM", 1.0)
    data = Rendered(1, 60, (HEIGHT, WIDTH))
    examples = [data.example(index) for index in range(60)]
    # Of one person, whose trunk is in the picture.
    trunk = [pose.NECK, pose.RIGHT_HIP, pose.LEFT_HIP]
    examples = [
        example
        for example in examples
        if len(example.joints) == 1 and example.joints[0, trunk, 2].all()
    ]
    batch = collate(examples)
    draw = Draws(torch.Generator().manual_seed(0), len(examples))
    moved = variations._new_hem(batch, draw)
    cloth = torch.tensor(CLOTH)
    assert torch.equal(torch.isin(moved.parse, cloth), torch.isin(batch.parse, cloth))
    assert not (moved.parse == labels.DRESS).any()
    bare = ~torch.isin(batch.parse, cloth)
    assert torch.equal(moved.parse[bare], batch.parse[bare])
    assert torch.equal(moved.picture.mul(bare[:, None]), batch.picture.mul(bare[:, None]))
    ends = []
    for row, example in enumerate(examples):
        neck, hips = example.joints[0, pose.NECK, 1], example.joints[0, trunk[1:], 1].mean()
        column = round(float(example.joints[0, pose.NECK, 0]) * WIDTH)
        below = torch.isin(moved.parse[row, :, column], torch.tensor([labels.PANTS, labels.SKIRT]))
        if below.any():
            ends.append((below.nonzero()[0].item() / HEIGHT - neck) / (hips - neck))
    assert len(ends) > 20 and min(ends) < 0.75 and max(ends) > 1.25
    assert len(np.unique(np.round(ends, 2))) > 15


def test_heat_has_one_peak_a_person_and_says_what_is_absent():
    joints = torch.zeros(1, 2, JOINTS, 3)
    joints[0, 0, 0] = torch.tensor([0.25, 0.5, 1])
    joints[0, 1, 0] = torch.tensor([0.75, 0.5, 1])
    target = heat(joints, (16, 12), 0.9)
    torch.testing.assert_close(target.sum(2), torch.ones(1, JOINTS))
    assert target[0, 1, 0] == 1 and target[0, 0, 0] == 0
    cells = target[0, 0, 1:].view(16, 12)
    torch.testing.assert_close(cells, cells.flip(1))
    assert cells[:, :6].sum() == pytest.approx(0.5, abs=1e-3)


def test_pictures_of_one_and_two_people_make_a_batch():
    data = Rendered(1, 40, (32, 24))
    batch = collate([data.example(index) for index in range(40)])
    assert batch.joints.shape[1] == 2 and batch.parts.max() < densepose.COUNT


# ---- the training ----

SHORT = Plan(seed=3, pictures=24, steps=5, batch=4)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_training_that_was_stopped_writes_the_same_bytes(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(trainings, "SAVED_EVERY", 2)
    whole = train(tmp_path / "whole", SHORT)
    assert load(tmp_path / "whole").training is False
    real = Training.advance
    steps = []

    def advance(self):
        if self.step == 3 and len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(self.step)
        real(self)

    monkeypatch.setattr(Training, "advance", advance)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parser", SHORT)
    assert (tmp_path / "parser.state").exists() and not (tmp_path / "parser").exists()
    assert train(tmp_path / "parser", SHORT) == whole
    assert steps == [0, 1, 2, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parser", "whole"]
    assert train(tmp_path / "other", replace(SHORT, seed=4)) != whole


def test_a_state_of_another_plan_is_not_continued(tmp_path):
    data = Rendered(3, 8, (HEIGHT, WIDTH))
    examples = [data.example(index) for index in range(8)]
    begun = Training(SHORT, examples)
    begun.advance()
    begun.save_state(tmp_path / "state")
    same, other = Training(SHORT, examples), Training(replace(SHORT, seed=4), examples)
    same.resume(tmp_path / "state")
    other.resume(tmp_path / "state")
    assert (same.step, other.step) == (1, 0)


def test_the_shipped_file_is_small_and_says_how_it_was_trained():
    """The command would train the same again: from the same pictures on every machine, to the same
    bytes on a processor and with a torch like those it names.
    """
    assert SHIPPED.stat().st_size < 2_000_000
    told = facts()
    plan = Plan()
    assert {key: told[key] for key in asdict(plan)} == asdict(plan)
    assert told["renderer"] == RENDERER_VERSION and told["torch"] and told["processor"]
    data = Rendered(plan.seed, plan.pictures, (HEIGHT, WIDTH))
    first = [data.example(index) for index in range(trainings.COMPARED)]
    assert told["examples"] == digest_of(first)


def _maps(**shares):
    """(22, 8, 6) log-probabilities; shares: of labels, in the upper and in the lower half."""
    maps = torch.full((labels.COUNT, 8, 6), 1e-3)
    for name, (above, below) in shares.items():
        maps[getattr(labels, name.upper()), :4] = above
        maps[getattr(labels, name.upper()), 4:] = below
    return maps.log()


def _upright():
    joints = np.zeros((JOINTS, 3), np.float32)
    for joint, height in ((2, 0.1), (5, 0.1), (8, 0.6), (11, 0.6)):
        joints[joint] = 0.5, height, 1
    return joints


def test_nobody_wears_a_top_and_a_dress():
    """A dress below a top is a skirt, one above it the top; and trousers are no half skirt."""
    top = _maps(upper=(0.5, 0.1), dress=(0.3, 0.5), skirt=(0.1, 0.2), pants=(0.0, 0.15))
    chosen = one_garment_each(top, _upright()).argmax(0)
    assert (chosen[:4] == labels.UPPER).all() and (chosen[5:] == labels.SKIRT).all()
    dress = _maps(upper=(0.3, 0.1), dress=(0.5, 0.3), skirt=(0.1, 0.4))
    assert (one_garment_each(dress, _upright()).argmax(0) == labels.DRESS).all()
    trousers = _maps(upper=(0.9, 0.1), pants=(0.05, 0.42), skirt=(0.02, 0.4), background=(0, 0.1))
    chosen = one_garment_each(trousers, np.zeros((JOINTS, 3))).argmax(0)
    assert (chosen[4:] == labels.PANTS).all()
    total = one_garment_each(top, _upright()).exp().sum(0)
    torch.testing.assert_close(total, top.exp().sum(0), atol=1e-3, rtol=0)
