from dataclasses import replace

import pytest
import torch

from vton.metrics import resampling
from vton.metrics.results import Row
from vton.report.noise import compared, difference, in_words, interval
from vton.report.summary import over_seeds
from vton.report.tables import grouped, table_markdown


def scores(seed, mean, count=40, common=0.0):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(count, dtype=torch.float64, generator=generator) * 0.1
    shared = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    return mean + own + common * shared


def row(model, values, metric="psnr", **facts):
    """A row as `compute_rows` writes it."""
    deviations = resampling.deviations_of_means(values)
    mean = values.mean().item()
    details = {
        "pairs_sha256": "p",
        "metrics": {"protocol": {"version": 1}, "networks": {}},
        "deviations": {metric: resampling.as_text(deviations)},
        "intervals": {metric: resampling.interval(mean, deviations)},
        "training": {"seed": 0},
    }
    return Row(
        model,
        "synthetic",
        "test",
        "paired",
        "garment",
        "all",
        "exact",
        len(values),
        {metric: mean},
        details | facts,
    )


def test_a_difference_of_the_same_pairs_is_known_better():
    """What makes a pair hard for both cancels."""
    a, b = scores(0, 20.0, common=2.0), scores(1, 20.3, common=2.0)
    same = difference(row("a", a), row("b", b), "psnr")
    other = difference(row("a", a), row("b", b, pairs_sha256="other"), "psnr")
    assert same.paired and not other.paired and same.value == pytest.approx((a - b).mean().item())
    assert not same.within_noise and other.within_noise
    alone = resampling.deviations_of_means(a - b)
    expected = resampling.half_width([resampling.source(alone)])
    assert same.half == pytest.approx(expected, rel=0.02)


def test_training_seeds_are_noise_too():
    facts = {"spread": {"psnr": 0.5}, "seeds": [0, 1]}
    a, b = scores(0, 20.0, common=1.0), scores(1, 20.3, common=1.0)
    assert not difference(row("a", a), row("b", b), "psnr").within_noise
    assert difference(row("a", a, **facts), row("b", b), "psnr").within_noise
    low, high = interval(row("a", a, **facts), "psnr")
    assert high - low > 3 * (interval(row("a", a), "psnr")[1] - a.mean().item())


def test_the_mean_over_seeds_keeps_what_resampling_says():
    runs = [scores(seed, 20.0, common=1.0) for seed in (0, 1)]
    rows = [
        row("a", values, training={"seed": seed}) for seed, values in zip((0, 1), runs, strict=True)
    ]
    (mean,) = over_seeds(rows)
    kept = resampling.from_text(mean.provenance["deviations"]["psnr"])
    exact = resampling.deviations_of_means((runs[0] + runs[1]) / 2)
    assert torch.allclose(kept, exact, atol=2e-3)
    low, high = mean.provenance["intervals"]["psnr"]
    assert low < mean.metrics["psnr"] < high
    bare = replace(
        rows[1],
        provenance={"training": {"seed": 1}}
        | {key: rows[1].provenance[key] for key in ("pairs_sha256", "metrics")},
    )
    (mean,) = over_seeds([rows[0], bare])
    assert not {"deviations", "intervals"} & mean.provenance.keys()


def test_words_say_which_methods_cannot_be_told_apart():
    rows = [
        row("gardiff", scores(0, 20.0)),
        row("idm_vton", scores(1, 20.01)),
        row("imagdressing", scores(2, 21.0)),
        row("gardiff[shuffled]", scores(3, 20.0)),
        row("baseline/mean_colour", scores(4, 15.0)),
    ]
    (sentence,) = in_words(grouped(rows))
    assert sentence.startswith("paired, garment, psnr: within noise (95 %) are ")
    assert "gardiff and idm_vton (" in sentence and "gardiff and gardiff[shuffled] (" in sentence
    assert "idm_vton and gardiff[shuffled]" not in sentence  # another model's control
    assert "imagdressing" not in sentence and sentence.endswith("All other differences are larger.")
    (sentence,) = in_words(grouped([rows[0], rows[2]]))
    assert sentence == "paired, garment, psnr: every difference is larger than noise."


def test_rows_of_before_intervals_say_nothing():
    old = [replace(row(name, scores(0, 20.0)), provenance={"pairs_sha256": "p"}) for name in "ab"]
    assert in_words(grouped(old)) == []
    assert difference(*old, "psnr") is None and interval(old[0], "psnr") is None
    assert "No intervals are known for a, b" in table_markdown(old, intervals=True)
    assert "[" not in table_markdown(old)
    text = table_markdown([replace(each, n=3) for each in old], intervals=True)
    assert "Fewer than 4 pairs give no interval (a, b)." in text and "Evaluate again" not in text


def test_tables_show_intervals_on_request():
    one = row("a", scores(0, 20.0))
    low, high = one.provenance["intervals"]["psnr"]
    text = table_markdown([one], intervals=True)
    assert f"{one.metrics['psnr']:.2f} [{low:.2f}, {high:.2f}]" in text
    assert "95 % interval over resampled pairs" in text


def test_two_models_side_by_side():
    rows = [row("a", scores(0, 20.0)), row("b", scores(1, 22.0)), row("c", scores(2, 20.0))]
    (found,) = compared(rows, "a", "b")
    found.keep()
    stored = rows[0].provenance["against"]
    assert stored["model"] == "b" and not stored["differences"]["psnr"]["within_noise"]
    low, high = stored["differences"]["psnr"]["interval"]
    assert low < stored["differences"]["psnr"]["difference"] < high < 0
