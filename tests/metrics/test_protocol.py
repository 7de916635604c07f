"""What each protocol does to pictures, against Pillow, scipy and the tools that the papers used."""

import io

import numpy as np
import pytest
import torch
from cleanfid import fid as clean_fid
from cleanfid.resize import build_resizer, make_resizer
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.metrics import structural_similarity

from tests.metrics.dressed import Remembered, TinyExtractor, dressed_batches, rows_of_one
from vton.commands.scoring import load_targets
from vton.config import EvalConfig
from vton.metrics import inception, pixelwise, prepare
from vton.metrics.extractors import Extractors
from vton.metrics.protocol import PROTOCOLS, changes, configured, protocol
from vton.metrics.scorer import Scorer
from vton.metrics.target import Prediction

FAST = ("ssim", "psnr", "lpips", "fid", "kid")


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth colours with grain, uint8 (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 5, 4, generator=generator), (height, width), mode="bicubic"
    )
    grain = 0.05 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + grain).clamp(0, 1) * 255).round().to(torch.uint8)[0]


def pillow(tensor: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(tensor.numpy().transpose(1, 2, 0)))


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format="jpeg", quality=quality)
    return Image.open(file)


SIZE = (384, 512)  # width, height, as Pillow has them
# Of the stored truth and of a prediction of 96 x 128: what is compared.
BY_HAND = {
    "exact": (lambda t: t.resize((96, 128), Image.Resampling.BICUBIC), lambda p: p),
    "ladi_compat": (
        lambda t: t.resize(SIZE, Image.Resampling.BILINEAR),
        lambda p: through_jpeg(p.resize(SIZE, Image.Resampling.BILINEAR), 95),
    ),
    "catvton_compat": (
        lambda t: through_jpeg(t.resize(SIZE, Image.Resampling.LANCZOS), 75),
        lambda p: through_jpeg(p.resize(SIZE, Image.Resampling.LANCZOS), 75),
    ),
    "hrviton_compat": (lambda t: t.resize((96, 128), Image.Resampling.BILINEAR), lambda p: p),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pictures_are_prepared_as_the_named_script_prepares_them(name):
    used, stored, predicted = protocol(name), picture(200, 150), picture(128, 96, seed=1)
    size = used.size or (128, 96)
    truth, prediction = BY_HAND[name]
    np.testing.assert_array_equal(pillow(prepare.truth(stored, size, used)), truth(pillow(stored)))
    np.testing.assert_array_equal(
        pillow(prepare.prediction(predicted, size, used, None, None)), prediction(pillow(predicted))
    )


def test_repainting_is_hard_or_catvtons_blend():
    painted, person = picture(100, 80), picture(100, 80, seed=1)
    mask = torch.zeros(1, 100, 80, dtype=torch.bool)
    mask[:, 30:70, 20:60] = True
    hard = prepare.repaint(painted, person, mask, feathered=False)
    assert torch.equal(hard, torch.where(mask, painted, person))
    levels = Image.fromarray(mask[0].numpy().astype(np.uint8) * 255)
    blurred = levels.filter(ImageFilter.GaussianBlur(3))  # 100 // 50 + 1
    share = np.asarray(blurred)[..., None] / 255
    blend = np.asarray(pillow(person)) * (1 - share) + np.asarray(pillow(painted)) * share
    feathered = prepare.repaint(painted, person, mask, feathered=True)
    np.testing.assert_array_equal(pillow(feathered), blend.astype(np.uint8))


def test_grey_ssim_is_scikit_images():
    x, y = picture(40, 32), picture(40, 32, seed=1) // 2 + picture(40, 32) // 2
    grey = [np.asarray(pillow(p).convert("L")) for p in (x, y)]
    theirs = structural_similarity(
        *grey, data_range=255, gaussian_weights=True, use_sample_covariance=False
    )
    ours = pixelwise.ssim(x[None] / 255, y[None] / 255, None, protocol("hrviton_compat"))
    assert ours.item() == pytest.approx(theirs, abs=1e-7)  # 1/255 is rounded to float32
    assert (
        abs(
            ours.item()
            - pixelwise.ssim(x[None] / 255, y[None] / 255, None, protocol("exact")).item()
        )
        > 1e-3
    )


@pytest.mark.parametrize("size", [(80, 60), (400, 300)])
def test_inception_sees_what_clean_fid_and_torch_fidelity_make_of_a_picture(size):
    source = picture(*size)
    clean = build_resizer("clean")(source.permute(1, 2, 0).numpy()).transpose(2, 0, 1)
    resized = inception.resize_to_square(source[None], 299, "clean_fid")[0]
    np.testing.assert_allclose(resized, clean, atol=1e-2)  # of 255 levels

    rows, columns = (np.arange(149) * (length / 149) for length in size)
    pixels = source.double().numpy()
    padded = np.pad(pixels, ((0, 0), (0, 1), (0, 1)), mode="edge")
    expected = ndimage.map_coordinates(
        padded[0], np.meshgrid(rows, columns, indexing="ij"), order=1
    )
    np.testing.assert_allclose(
        inception.resize_to_square(source[None], 149, "torch_fidelity")[0, 0], expected, atol=1e-2
    )
    three = [
        inception.resize_to_square(source[None], 149, style)
        for style in ("torchmetrics", "clean_fid", "torch_fidelity")
    ]
    assert min((three[i] - three[j]).abs().mean() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.05


def test_fid_and_kid_of_ladi_compat_are_clean_fids_of_the_same_pictures(monkeypatch):
    """Its resizer and distances on JPEGs of predictions and the stored truths, all through one
    extractor of 6 features.

    1e-3 relative: pictures of 8 bits that differ by 0.01 at most, and nearly singular covariances.
    """
    monkeypatch.setattr(inception, "Inception", lambda: TinyExtractor(6))
    config = EvalConfig(protocol="ladi_compat", metrics=("fid", "kid"), size=(64, 48))
    extractors = Extractors(config)
    batches = dressed_batches(16, size=8)
    predicted = Remembered(batches, lambda p: p // 2 + 40)
    row = rows_of_one(extractors, batches, predicted)[0]

    side = extractors.inception_side
    resize = make_resizer("PIL", False, "bicubic", (side, side))

    @torch.inference_mode()
    def features(images):
        squares = np.stack([resize(np.asarray(image)) for image in images]).transpose(0, 3, 1, 2)
        return extractors.inception(torch.from_numpy(squares)).numpy()

    x = features(through_jpeg(pillow(p), 95) for p in predicted.pictures.values())
    y = features(pillow(p) for p in Remembered(batches).pictures.values())
    moments = []
    for side in (x, y):
        moments += [side.mean(0), np.cov(side, rowvar=False)]
    assert row.metrics["fid_random"] == pytest.approx(
        clean_fid.frechet_distance(*moments), rel=1e-3
    )
    assert row.metrics["kid_random"] == pytest.approx(
        clean_fid.kernel_distance(x, y, num_subsets=1), rel=1e-3
    )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_scores_and_signs_its_rows(name, monkeypatch):
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    extractors = Extractors(EvalConfig(protocol=name, metrics=FAST, size=(64, 48)))
    batches = dressed_batches(3, size=3)
    rows = rows_of_one(extractors, batches, Remembered(batches, lambda p: (p // 2) + 40))
    assert rows
    lpips = "lpips_squeeze_random" if name == "catvton_compat" else "lpips_random"
    for row in rows:
        assert (row.protocol, row.n) == (name, 3)
        assert set(row.metrics) == {"ssim", "psnr", lpips, "fid_random", "kid_random"}
        assert np.isfinite(list(row.metrics.values())).all() and row.metrics["ssim"] < 0.99
        assert row.provenance["metrics"]["changes"] == ["size=(64, 48)"]
        assert row.provenance["metrics"]["protocol"]["name"] == name


def test_originals_are_what_protocols_with_their_own_resize_start_from(monkeypatch):
    """A stored truth of four times the size: FID's reference is that picture, the comparison a
    filtered one.
    """
    monkeypatch.setattr(inception, "Inception", TinyExtractor)
    (batch,) = dressed_batches(2, size=2)
    asked = []

    class Pairs:
        """A data set whose pictures are stored at another size than its samples."""

        def originals(self, index):
            asked.append(index)
            return picture(256, 192, seed=index), picture(256, 192, seed=index)

    def score(name):
        scorer = Scorer(Extractors(EvalConfig(protocol=name, metrics=("psnr", "fid"))))
        targets = load_targets(batch, Pairs(), scorer)
        scorer.update_reference(targets)
        small = []
        for index in batch.index:
            small.append(prepare.resize(picture(256, 192, seed=index), (64, 48), "bilinear"))
        scorer.update(targets, {"m": Prediction(torch.stack(small))})
        return scorer

    scorer = score("hrviton_compat")
    perfect = scorer.measured.tallies["paired", "m"]
    assert perfect.scores["image"]["psnr"] == dict.fromkeys(batch.pair_id, 100.0)
    stored = picture(256, 192)[None]
    square = inception.resize_to_square(stored, scorer.extractors.inception_side, "torch_fidelity")
    with torch.inference_mode():
        expected = scorer.extractors.inception(square.contiguous(memory_format=torch.channels_last))
    reference = scorer.measured.reference.regions["image"]
    torch.testing.assert_close(reference[batch.person_id[0]], expected[0])
    assert asked
    asked.clear()
    score("exact")
    assert not asked


def test_changed_settings_are_named():
    assert changes(configured(EvalConfig())) == []
    assert changes(configured(EvalConfig(lpips_net="alex", kid_subsets=100, repaint=False))) == []
    changed = configured(EvalConfig(protocol="catvton_compat", repaint=False, kid_subset_size=50))
    assert changed.lpips_net == "squeeze"
    assert changes(changed) == ["repaint=False", "kid_subset_size=50"]
