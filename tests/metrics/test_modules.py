"""The torchmetrics classes: values of direct library calls, and exact over processes."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from PIL import Image
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision import transforms
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection, Dinov2Model

from tests.metrics.tiny_vision import pictures, write_networks, write_vton_iqa
from vton.metrics import vision
from vton.metrics.modules import (
    ClipDiscrepancy,
    FrechetDinoDistance,
    GarmentParts,
    GarmentSimilarity,
    TryOnQuality,
)
from vton.weights.metric_networks import VISION

COUNT = 7
IDS = [f"{index:05d}_00" for index in range(COUNT)]
IMAGENET = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_vton_iqa(folder)
    return str(write_networks(folder))


def as_images(tensors):
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in tensors]


def two_sets():
    return pictures(COUNT, noise=30), pictures(COUNT)


def filled(metric):
    made, real = two_sets()
    metric.update(real, IDS, real=True)
    metric.update(made, IDS, real=False)
    return metric


@torch.no_grad()
def test_fd_dinov2_is_torchmetrics_frechet_distance_of_transformers_features(weights):
    network = Dinov2Model.from_pretrained(Path(weights) / VISION["dinov2"]).eval()
    # dgm-eval's preparation, by torchvision
    prepare = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            IMAGENET,
        ]
    )

    class Features(nn.Module):
        num_features = 24

        def forward(self, prepared):
            return network(pixel_values=prepared).last_hidden_state[:, 0]

    expected = FrechetInceptionDistance(feature=Features(), normalize=False)
    expected.set_dtype(torch.float64)
    made, real = two_sets()
    expected.update(torch.stack(list(map(prepare, as_images(real)))), real=True)
    expected.update(torch.stack(list(map(prepare, as_images(made)))), real=False)
    metric = filled(FrechetDinoDistance(weights=weights))
    assert metric.name == "fd_dinov2" and not metric.higher_is_better
    found = metric.compute().item()
    assert found > 1e-3
    assert found == pytest.approx(expected.compute().item(), abs=1e-6)


@torch.no_grad()
def test_cmmd_is_the_papers_formula_of_transformers_embeddings(weights):
    network = CLIPVisionModelWithProjection.from_pretrained(Path(weights) / VISION["clip"]).eval()
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)

    def embedded(images):
        squares = []
        for image in images:  # 96 x 128: the authors cut out the middle square
            square = image.crop((0, 16, 96, 112)).resize((84, 84), Image.Resampling.BICUBIC)
            squares.append(processor(square, return_tensors="pt").pixel_values)
        embedding = network(pixel_values=torch.cat(squares)).image_embeds.double().numpy()
        return embedding / np.linalg.norm(embedding, axis=1, keepdims=True)

    x, y = (embedded(as_images(some)) for some in two_sets())

    def mean_kernel(a, b):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / 200) for q in b] for p in a])

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    metric = filled(ClipDiscrepancy(weights=weights))
    assert metric.name == "cmmd"
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6) and expected > 1e-3


def worn_and_shop():
    """Pictures, garments, and where either shows the garment: wide here, tall there."""
    worn, shop = (torch.zeros(COUNT, 1, 128, 96, dtype=torch.bool) for _ in range(2))
    worn[:, :, 40:90, 10:90] = True
    shop[:, :, 10:110, 30:70] = True
    return pictures(COUNT, noise=20), worn, pictures(COUNT, seed=1), shop


def white_square(image, box):
    crop = image.crop(box)
    side = max(crop.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square


@torch.no_grad()
@pytest.mark.parametrize("name", ["dino", "clip_i"])
def test_garment_similarity_is_the_cosine_of_transformers_features(weights, name):
    if name == "dino":
        side, folder = 224, VISION["dinov2"]
        network = Dinov2Model.from_pretrained(Path(weights) / folder).eval()
        normalise = IMAGENET
    else:
        side, folder = 84, VISION["clip"]
        network = CLIPVisionModelWithProjection.from_pretrained(Path(weights) / folder).eval()
        processor = CLIPImageProcessor()
        normalise = transforms.Normalize(processor.image_mean, processor.image_std)

    def features(square):
        resized = square.resize((side, side), Image.Resampling.BICUBIC)
        output = network(pixel_values=normalise(transforms.ToTensor()(resized))[None])
        return output.last_hidden_state[:, 0] if name == "dino" else output.image_embeds

    made, worn, garments, shop = worn_and_shop()
    expected = []
    for picture, garment in zip(as_images(made), as_images(garments), strict=True):
        x = features(white_square(picture, (10, 40, 90, 90)))
        y = features(white_square(garment, (30, 10, 70, 110)))
        expected.append(torch.cosine_similarity(x.double(), y.double()).item())
    metric = GarmentSimilarity(name, weights=weights)
    metric.update(made, worn, garments, IDS, shop)
    assert metric.name == f"m_{name}"
    assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-6)
    metric.reset()
    same = made.clone()
    metric.update(made, worn, same, IDS, worn)
    assert metric.compute().item() == pytest.approx(1, abs=1e-6)


def test_a_garments_edge_and_inside_are_separate():
    truth = pictures(COUNT)
    masks = torch.zeros(COUNT, 1, 128, 96, dtype=torch.bool)
    masks[:, :, 30:100, 20:80] = True
    masks[0] = False
    masks[0, :, 30:100, 40:45] = True  # narrower than two edges of 3 px
    inside = torch.zeros_like(masks)
    inside[1:, :, 33:97, 23:77] = True
    fine = torch.where(inside, truth, 255 - truth)  # wrong at the edge, and outside the mask
    metric = GarmentParts("psnr")
    metric.update(fine, truth, masks, IDS)
    found = metric.compute()
    assert found["texture"] == metric.protocol.psnr_cap  # the mean over six of seven
    edge = masks & ~inside
    errors = ((fine.double() - truth) / 255).square().mean(1, keepdim=True)
    expected = [-10 * errors[row][edge[row]].mean().log10() for row in range(COUNT)]
    assert found["edge"].item() == pytest.approx(np.mean(expected), abs=1e-5)

    thin = GarmentParts("ssim")
    thin.update(fine[:1], truth[:1], masks[:1], IDS[:1])
    assert set(thin.compute()) == {"edge"}
    cut_off = torch.ones(1, 1, 128, 96, dtype=torch.bool)  # by the picture's border: no edge
    whole = GarmentParts("ssim")
    whole.update(fine[1:2], truth[1:2], cut_off, IDS[:1])
    assert set(whole.compute()) == {"texture"}


def test_without_weights_names_say_so_and_values_repeat(monkeypatch):
    monkeypatch.setenv("VTON_METRIC_WEIGHTS", "")
    before = torch.get_rng_state()
    first, second = (filled(FrechetDinoDistance()) for _ in range(2))
    assert first.name == "fd_dinov2_random" and first.compute() == second.compute()
    assert ClipDiscrepancy().name == "cmmd_random"
    assert GarmentSimilarity("clip_i").name == "m_clip_i_random"
    assert GarmentParts("lpips").name == "lpips_edge_random"
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"vton_iqa needs iqa \(vton_iqa in the folder"):
        TryOnQuality()


def test_too_few_pictures_are_an_error(weights):
    metric = FrechetDinoDistance(weights=weights)
    metric.update(pictures(1), ["a"], real=True)
    with pytest.raises(ValueError, match="two pictures in each set, got 0 and 1"):
        metric.compute()
    with pytest.raises(ValueError, match="no pair"):
        GarmentSimilarity(weights=weights).compute()


def test_they_are_members_of_a_collection_and_forget_on_reset(weights):
    metrics = MetricCollection(
        {"fd": FrechetDinoDistance(weights=weights), "cmmd": ClipDiscrepancy(weights=weights)},
        compute_groups=False,
    )
    made, real = two_sets()
    metrics.update(real, IDS, real=True)
    metrics.update(made, IDS, real=False)
    found = metrics.compute()
    assert found["fd"] > 0 and found["cmmd"] > 0
    metrics.reset()
    metrics.update(made, IDS, real=True)
    metrics.update(made, IDS, real=False)
    assert metrics.compute()["fd"].abs() < 1e-6


def computed(rank: int, world: int, root: Path, weights: str) -> None:
    """Every class over the share of one of several processes, one picture of it twice."""
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{root}/meet{world}", rank=rank, world_size=world
        )
    made, real = two_sets()
    worn_pictures, worn, garments, shop = worn_and_shop()
    metrics = {
        "fd": FrechetDinoDistance(weights=weights),
        "cmmd": ClipDiscrepancy(weights=weights),
        "dino": GarmentSimilarity("dino", weights=weights),
        "clip": GarmentSimilarity("clip_i", weights=weights),
        "parts": GarmentParts("lpips", weights=weights),
        "iqa": TryOnQuality(weights=weights),
    }
    # The last of three processes has no picture; the first repeats one, as samplers do.
    working = min(world, 2)
    places = list(range(COUNT))[rank::working] if rank < working else []
    for place in places + places[:1]:
        one, name = slice(place, place + 1), IDS[place : place + 1]
        for metric in ("fd", "cmmd"):
            metrics[metric].update(made[one], name, real=False)
            metrics[metric].update(real[one], name, real=True)
        for metric in ("dino", "clip"):
            shown = (worn_pictures[one], worn[one], garments[one])
            metrics[metric].update(*shown, name, shop[one])
        metrics["parts"].update(made[one], real[one], worn[one], name)
        metrics["iqa"].update(made[one], real[one], garments[one], name)
    found = {}
    for name, metric in metrics.items():
        value = metric.compute()
        parts = value if isinstance(value, dict) else {"": value}
        for part, number in parts.items():
            found[f"{name}{part}"] = number.item()
    (root / f"found{world}-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        distributed.destroy_process_group()


def test_every_class_is_exact_over_one_two_and_three_processes(tmp_path, weights):
    """Seven pairs; one process of three has none, and one pair comes twice."""
    assert vision.KINDS  # imported before the fork
    context = multiprocessing.get_context("fork")
    for world in (1, 2, 3):
        workers = [
            context.Process(target=computed, args=(rank, world, tmp_path, weights))
            for rank in range(world)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * world
    first, *others = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("found*"))]
    assert set(first) == {"fd", "cmmd", "dino", "clip", "partsedge", "partstexture", "iqa"}
    assert len(others) == 5 and all(found == first for found in others)
