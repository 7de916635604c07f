"""The notebooks' numbers and sentences, on made-up rows: 2 seeds, known means, one row missing."""

import html
import math
import re
import shutil
from dataclasses import replace

import pytest
from bs4 import BeautifulSoup

from vton.errors import UserError
from vton.metrics.results import Row, write_results
from vton.report.agreement import directions, winners
from vton.report.measured import RESULTS, read_measured
from vton.report.printed import own_value
from vton.report.published import read_published
from vton.report.views import Ablation, Architectures

MEASURED = {"protocol": {"version": 1}, "networks": {"lpips": "random"}}


@pytest.fixture(scope="module")
def published():
    return read_published()


def row(model, seed=0, ssim=0.5, lpips=0.2, comparison="compare-mine", steps=60, **details):
    """A row as `vton compare` and `vton ablate` write it; the latter names models after rows."""
    provenance = {
        "pairs_sha256": "p",
        "metrics": MEASURED,
        "seed": 7,
        "size": [128, 96],
        "checkpoint_sha256": f"{comparison}{model}{seed}",
    }
    if not model.startswith("baseline/"):
        ablated = re.match(r"(?:ablate-(\w+))?", comparison)[1] or ""
        provenance["training"] = {"seed": seed, "steps": steps, "seconds": 30.0}
        provenance["cost"] = {"step_flops": 2e9}
        provenance["comparison"] = {
            "name": comparison,
            "ablation": ablated,
            "budget": {"kind": "steps", "amount": steps},
            "changes": [],
        }
    return Row(
        model=model,
        data="synthetic",
        split="test",
        order="paired",
        region="garment",
        category="all",
        protocol="exact",
        n=8,
        metrics={"ssim": ssim, "lpips_random": lpips},
        provenance=provenance | details,
    )


@pytest.fixture
def results(tmp_path):
    """A comparison in two folders and an ablation without its base+GFA row."""
    some = [
        row("gardiff", 0, 0.60, 0.10, seconds_per_picture=0.5),
        row("gardiff", 1, 0.64, 0.12),
        row("idm_vton", 0, 0.61, 0.30),
        row("idm_vton", 1, 0.61, 0.34),
        row("gardiff[shuffled]", 0, 0.2, 0.9),
        row("baseline/mean_colour", 0, 0.4, 0.05),
    ]
    other = [
        row("baseline/mean_colour", 0, 0.4 + 1e-9, 0.05),
        row("gardiff", 2, 0.62, 0.11),
    ]
    ablation = {"comparison": "ablate-gardiff-synthetic-tiny"}
    ablated = [
        row("baseline/mean_colour", 0, 0.4, 0.05),
        row("base", 0, 0.30, 0.5, **ablation),
        row("base+AL", 0, 0.25, 0.4, **ablation),
        row("base+GFA+AL", 0, 0.60, 0.1, **ablation),
        row("base+GFA+AL[shuffled]", 0, 0.1, 0.9, **ablation),
        row("mine", 0, 0.6, 0.1, **ablation),
    ]
    write_results(tmp_path / "some" / "results.json", some)
    write_results(tmp_path / "other" / "results.json", other)
    write_results(tmp_path / "third" / "deeper" / "results.json", ablated)
    return tmp_path


def text(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page._repr_html_())))


def test_an_architectures_own_numbers_are_its_own_papers(tmp_path, published):
    """LaDI-VTON and IDM-VTON stand in most of the others' tables too, with other numbers."""
    view = Architectures(published, read_measured(tmp_path))
    page = BeautifulSoup(view.published_claims("viton_hd")._repr_html_(), "html.parser")
    heading, *lines = page.find_all("tr")
    columns = [cell.get_text() for cell in heading.find_all("th")]
    shown = {}
    for line in lines:
        name, *values = (cell.get_text() for cell in line.find_all(["th", "td"]))
        shown[name] = values
    assert list(shown) == [
        *("gardiff", "idm_vton", "imagdressing", "tryondiffusion", "ladi_vton", "leffa", "catvton"),
        *("stableviton", "stableviton (StableVITON with repaint)"),
    ]
    own = published.of_table("idm_vton/viton_hd").query("row == 'IDM-VTON'")
    assert set(shown["idm_vton"]) - {"-"} == {own_value(line) for line in own.itertuples()}
    lpips = columns.index("paired lpips ↓") - 1
    assert shown["stableviton"][lpips] == "0.084"
    assert shown["stableviton (StableVITON with repaint)"][lpips] == "0.073"
    assert set(shown["imagdressing"]) == {"-"}


def test_rows_are_found_in_any_folder_and_a_baseline_stands_once(results):
    measured = read_measured(results)
    comparison = measured.comparison
    assert (comparison["kind"] == "baseline").sum() == 2  # its two metrics, once
    assert comparison["setting"].nunique() == 1
    rows = measured.ablation("gardiff")["row"].unique()
    assert list(rows) == ["base", "base+AL", "base+GFA+AL", "mine"]
    seeds = comparison.query("model == 'gardiff' and metric == 'ssim'")["seed"]
    assert seeds.tolist() == [2, 0, 1]


REPAINTED = MEASURED | {"changes": ["repaint=True"]}
PRETRAINED = {"networks": {"lpips": "pretrained"}}


@pytest.mark.parametrize(
    "change",
    [
        {"data": "viton_hd"},
        {"protocol": "ladi_compat"},
        {"provenance": row("idm_vton", steps=90).provenance},
        {"provenance": row("idm_vton", size=[256, 192]).provenance},
        {"provenance": row("idm_vton", pairs_sha256="q").provenance},
        {"provenance": row("idm_vton", metrics=PRETRAINED).provenance},
        {"provenance": row("idm_vton", metrics=REPAINTED).provenance},
    ],
)
def test_rows_measured_or_trained_otherwise_are_another_setting(tmp_path, published, change):
    write_results(tmp_path / "one" / "results.json", [row("gardiff")])
    write_results(tmp_path / "two" / "results.json", [replace(row("idm_vton"), **change)])
    measured = read_measured(tmp_path)
    assert measured.values["setting"].nunique() == 2
    sentences = text(Architectures(published, measured).who_wins())
    assert "idm_vton is the best" in sentences  # alone, not before gardiff


def trained(model, seed, ssim, **settings):
    """A row of one training whose settings are given beside the usual ones."""
    measured = row(model, seed, ssim)
    measured.provenance["training"] |= settings.pop("training", {})
    measured.provenance |= settings
    return measured


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (trained("gardiff", 1, 0.7, training={"lr": 2e-3}), "training.lr is 0.001 and 0.002 for"),
        (trained("gardiff", 1, 0.7, guidance=7.5), "guidance is 1.0 and 7.5 for gardiff"),
        (trained("gardiff", 1, 0.7, settings_sha256="b"), "a setting that rows do not name"),
        (trained("gardiff", 0, 0.7, checkpoint_sha256="b"), "both hold gardiff with training seed"),
        (row("baseline/mean_colour", ssim=0.7), "baseline/mean_colour has other values"),
    ],
)
def test_only_training_seeds_of_one_setting_are_averaged(tmp_path, published, other, sentence):
    common = {"training": {"lr": 1e-3}, "guidance": 1.0, "settings_sha256": "a"}
    first = [
        trained("gardiff", 0, 0.5, **common),
        trained("idm_vton", 0, 0.4, **common),
        row("baseline/mean_colour", ssim=0.3),
    ]
    write_results(tmp_path / "a" / "results.json", first)
    write_results(tmp_path / "b" / "results.json", [trained("gardiff", 2, 0.6, **common)])
    write_results(tmp_path / "c" / "results.json", [other, trained("idm_vton", 2, 0.5, **common)])
    values = read_measured(tmp_path).comparison
    settings = values.groupby("folder")["setting"].unique().map(list)
    assert settings["a"] == settings["b"] and len(settings["a"]) == 1
    (apart,) = settings["c"]
    assert apart.startswith(f"{settings['a'][0]}, kept apart: ")
    assert sentence in apart and "a and c" in apart
    page = text(Architectures(published, read_measured(tmp_path)).tables())
    assert "0.5500 ± 0.0707" in page and apart in page


def test_a_copy_counts_once_and_a_lone_file_may_not_mix_settings(tmp_path):
    rows = [row("gardiff", 0), row("gardiff", 1, 0.6)]
    for folder in ("one", "two"):
        write_results(tmp_path / folder / "results.json", rows)
    values = read_measured(tmp_path).values
    assert values["setting"].nunique() == 1 and set(values["folder"]) == {"one"}
    rows[1].provenance["guidance"] = 1.0
    rows.append(trained("gardiff", 2, 0.6, guidance=7.5))
    write_results(tmp_path / "two" / "results.json", rows[1:])
    with pytest.raises(UserError, match=r"two/results\.json: gardiff .*guidance is 1\.0 and 7\.5"):
        read_measured(tmp_path)


def test_winners_with_margin_spread_and_baseline(results, published):
    wins = winners(read_measured(results).comparison, published).set_index("metric")
    ssim, lpips = wins.loc["ssim"], wins.loc["lpips_random"]
    assert (ssim["best"], ssim["runner_up"]) == ("gardiff", "idm_vton")
    assert ssim["margin"] == pytest.approx(0.01)
    assert ssim["spread"] == pytest.approx(0.02)
    assert lpips["margin"] == pytest.approx(0.21)
    assert lpips["spread"] == pytest.approx(math.sqrt(0.01**2 + 0.04**2 / 2))
    assert ssim["beats_baseline"] and not lpips["beats_baseline"]


def test_sentences_about_winners_follow_the_numbers(results, published):
    page = text(Architectures(published, read_measured(results)).who_wins())
    assert "Best architecture, of 2 combinations of order, region and metric: gardiff in 2." in page
    assert "ssim by 0.0100 before idm_vton" in page
    assert "lpips_random by 0.2100 before idm_vton" in page
    assert "the lead lies within the spread of seeds in ssim." in page
    lost = "no architecture beats what needs no learning in lpips_random (baseline/mean_colour)"
    assert lost in page
    assert "one run each" not in page


def test_our_table_has_the_published_order_spread_and_absent_rows(results, published):
    view = Architectures(published, read_measured(results))
    shown = view.tables()._repr_html_()
    assert re.search(r"No run of imagdressing, .*tryondiffusion.* here\.", shown)
    assert "<b>0.6200 ± 0.0200</b>" in shown and "0.6100 ± 0.0000" in shown
    names = [name for name in re.findall(r"<th>([\w/\[\]]+)</th>", shown) if name != "runs"]
    assert names == ["gardiff", "idm_vton", "gardiff[shuffled]", "baseline/mean_colour"]
    assert "training budget 60 optimizer steps" in text(view.provenance())
    assert "1.2e+11" in text(view.costs())  # FLOP of 60 steps
    scatters = view.over_cost()._repr_html_()
    assert "seconds a picture" in scatters  # of the one row that records it
    assert "Not recorded by these rows" in scatters


def test_several_categories_have_their_own_tables_and_a_lone_one_has_none(tmp_path, published):
    rows = [
        replace(row("gardiff", ssim=0.5), category="all", n=8),
        replace(row("gardiff", ssim=0.4), category="dresses", n=3),
        replace(row("gardiff", ssim=0.6), category="upper_body", n=5),
    ]
    for kept, folded in [(rows, True), (rows[:2], False)]:
        write_results(tmp_path / "results.json", kept)
        page = Architectures(published, read_measured(tmp_path)).tables()._repr_html_()
        assert ("<summary>dresses</summary>" in page) is folded
        assert ("0.6000" in page) is folded
        assert "<b>0.5000</b>" in page
        assert ("n = 3" in page) is folded


def test_a_tie_of_single_runs_is_neither_agreement_nor_difference(tmp_path, published):
    """Of the two metrics one is equal, the other agrees."""
    ablation = "ablate-gardiff-tiny"
    rows = [row("base", 0, 0.3, 0.5, ablation), row("base+AL", 0, 0.3, 0.4, ablation)]
    write_results(tmp_path / "results.json", rows)
    view = Ablation("gardiff", published, read_measured(tmp_path))
    lines = directions(view.claims, view.values, "row", published).set_index("metric")
    assert lines["verdict"].to_dict() == {"ssim": "equal", "lpips_random": "agrees"}
    page = text(view.directions())
    counts = (
        "1 of 2 directions agree, 0 differ, 0 lie within the spread of seeds, 1 are equal here."
    )
    assert counts in page
    assert "worse by" not in page


def test_ablation_says_what_is_absent_extra_agreeing_and_differing(results, published):
    view = Ablation("gardiff", published, read_measured(results))
    tables = text(view.tables())
    assert "No run of base+GFA here." in tables
    assert "Rows here that this table of the paper does not have: mine." in tables
    page = text(view.directions())
    for sentence in (
        "On the paper's own metrics (garment): 5 of 6 directions agree, 1 differ, "
        "0 lie within the spread of seeds.",
        "base+AL against base, paired ssim (garment): published as better (0.809 → 0.829), "
        "here worse by 0.0500.",
        "Rows with one run each: the spread is that of the model's 3 runs in the comparison.",
    ):
        assert sentence in page
    lines = directions(view.claims, view.values, "row", published, view._seeds(view.values))
    spreads = lines.loc[lines["metric"] == "ssim", "spread"].tolist()
    assert spreads == pytest.approx([0.02 * math.sqrt(2)] * 3)


def test_a_warp_is_no_architecture(tmp_path, published):
    rows = [row("gardiff", 0, 0.5), row("idm_vton", 0, 0.4), row("warp", 0, 0.9)]
    write_results(tmp_path / "results.json", rows)
    page = text(Architectures(published, read_measured(tmp_path)).who_wins())
    assert "gardiff in 2" in page and "warp" not in page


def test_directions_within_the_spread_and_against_all_printed_metrics(tmp_path, published):
    ablation = "ablate-imagdressing-synthetic-tiny"
    rows = [
        row("A0", 0, 0.50, 0.3, ablation),
        row("A0", 1, 0.60, 0.3, ablation),
        row("A2", 0, 0.51, 0.2, ablation),
        row("A2", 1, 0.63, 0.2, ablation),
    ]
    write_results(tmp_path / "results.json", rows)
    values = read_measured(tmp_path).values
    lines = directions(published.claims_of("imagdressing"), values, "row", published)
    lines = lines.set_index("metric")
    assert lines["basis"].tolist() == ["all its metrics"] * 2  # it prints neither SSIM nor LPIPS
    assert lines["verdict"].to_dict() == {"ssim": "within spread", "lpips_random": "agrees"}
    others = directions(published.claims_of("tryondiffusion"), values, "row", published)
    assert others.empty


def test_statements_without_numbers_are_checked_on_every_metric_of_their_order(tmp_path, published):
    ablation = "ablate-idm_vton-synthetic-tiny"
    rows = [
        row("full", 0, 0.6, 0.2, ablation),
        row("without_garment_net", 0, 0.5, 0.1, ablation),
    ]
    write_results(tmp_path / "results.json", rows)
    page = text(Ablation("idm_vton", published, read_measured(tmp_path)).directions())
    assert "On the paper's own metrics (garment): 1 of 2 directions agree, 1 differ" in page
    unchecked = "full against without_ip_adapter: the paper claims no metric, so none is checked."
    assert unchecked in page


def test_only_claims_that_were_not_read_in_the_paper_say_how_far_to_trust_them(published):
    first = published.directions.iloc[:1]
    pages = {}
    for mark in ("stated", "recalled"):
        marked = replace(published, directions=first.assign(mark=mark))
        pages[mark] = text(Ablation(first["study"][0], marked).published_table())
    assert pages["stated"].strip().endswith(first["says"][0])
    assert pages["recalled"].count("[recalled, check the paper before quoting]") == 1


def test_pictures_are_those_of_the_rows_folders(results, published):
    shutil.copy(RESULTS / "gardiff-synthetic-tiny" / "pictures_paired.jpg", results / "some")
    view = Architectures(published, read_measured(results))
    assert "some/pictures_paired.jpg" in text(view.pictures())
    ablation = Ablation("gardiff", published, view.measured)
    assert "These folders hold no pictures." in text(ablation.pictures())


def test_no_results_is_said_and_no_folder_is_an_error(tmp_path, published):
    view = Architectures(published, read_measured(tmp_path))
    for page in (
        view.tables,
        view.provenance,
        view.costs,
        view.who_wins,
        view.bars,
        view.over_cost,
        view.directions,
    ):
        nothing = f"Nothing measured to show: no results.json below {tmp_path}."
        assert nothing in text(page())
    with pytest.raises(UserError, match="no such folder of results"):
        read_measured(tmp_path / "absent")
