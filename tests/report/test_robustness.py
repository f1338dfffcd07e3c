"""The page about attacks: its numbers and pictures, its warnings, and files that are damaged."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.evaluation.robustness import MinimumRow, RobustRow, write_summary
from seguro.report.attacks import attacks
from seguro.report.gather import gather, reproducible
from seguro.report.page import Headline, ReportContent, render
from seguro.report.perturbed import amplification, pictures, read_example
from seguro.report.robustness import (
    Area,
    Attacked,
    CaseLine,
    Curve,
    Example,
    Guard,
    Minimum,
    Point,
    Stratum,
    Weighted,
    by_attack,
    distribution,
    heat,
)

EPS = (0, 5, 8, 16)
GUARDS = [
    {"name": "ball and box", "passed": True, "detail": "2400 returns inside"},
    {"name": "noise control", "passed": True, "detail": "noise lowers the mean Dice by 0.004 at 16/255"},
    {"name": "white box not weaker than black box", "passed": None, "detail": "square was not run"},
    {"name": "N to 2N iterations", "passed": True, "detail": "mean Dice changes by 0.011"},
]
SETTING = {
    "suite": "strong", "where": "patch", "iterations": 20, "restarts": 1, "queries": 300, "seed": 0,
    "threshold": 0.445, "box": "own", "eps_unit": "255ths of each channel's range", "unit": "mm",
}  # fmt: skip
COST = {"attack_s_per_case": 41.7, "predict_s_per_case": 0.31, "forwards": 182040, "backwards": 38400}


def blob(shape, center, radius):
    y, x = np.indices(shape)
    return ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 <= 1


def example(folder, number, case="c03"):
    """A slice of 60 x 50 with two classes, attacked so that half of one is lost."""
    rng = np.random.default_rng(number)
    truth = np.zeros((60, 50), np.uint8)
    truth[blob(truth.shape, (30, 24), (14, 10))] = 1
    truth[blob(truth.shape, (36, 25), (6, 7))] = 2
    clean, attacked = np.roll(truth, 1, 0), np.where(np.indices(truth.shape)[1] < 26, truth, 0)
    image = np.choose(truth, [40.0, 90.0, 130.0]) + rng.normal(0, 6, truth.shape)
    delta = 3.0 * np.sign(rng.normal(size=truth.shape))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"{number}.npz", image=image.astype(np.float32), delta=delta.astype(np.float32),
        adversarial=(image + delta).astype(np.float32), truth=truth, clean=clean.astype(np.uint8),
        attacked=attacked.astype(np.uint8),
    )  # fmt: skip
    facts = {"case": case, "attack": "apgd-dice", "eps": 8, "dice_clean": 0.894, "dice_attacked": 0.412}
    (folder / f"{number}.json").write_text(json.dumps(facts | {"spacing": [1.0, 1.0], "channel": "MRI"}))


def rows(names, eps=EPS, n=20):
    rng = np.random.default_rng(0)
    out = []
    for i in range(n):
        ease, size = rng.normal(0, 0.05), float(rng.uniform(0.5, 6))
        for cls, base in (("anterior", 0.89), ("posterior", 0.86)):
            for attack, slope in names.items():
                for e in eps:
                    dice = float(np.clip(base + ease - slope * e * (1.6 - 0.15 * size), 0, 1))
                    note = "missed" if dice == 0 else ""
                    out.append(RobustRow(f"c{i:02d}", f"p{i:02d}", "s", cls, attack, e, dice, size, note))
    return out


def attack_folder(run, name="strong-patch", *, guards=GUARDS, examples=2):
    folder = run / "attacks" / name
    folder.mkdir(parents=True)
    slopes = {"worst": 0.046, "apgd-ce": 0.036, "apgd-dice": 0.045, "square": 0.02, "noise": 0.0004}
    least = [
        MinimumRow(f"c{i:02d}", f"p{i:02d}", "s", attack, None if i % 5 == 4 else 3.0 + shift + i / 3)
        for i in range(20)
        for attack, shift in (("worst", 0.0), ("fab", 0.4), ("apgd-dice", 1.1))
    ]
    write_summary(folder, rows(slopes), least, 0)
    native = {"MRI": {"0": 0, "5": 4.1, "8": 6.6, "16": 13.1}}
    summary = {
        "setting": SETTING, "eps": EPS, "attacks": list(slopes), "native_eps": native, "guards": guards,
        "cost": COST, "cases": 20,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    for number in range(examples):
        example(folder / "examples", number)
    return folder


def corruption_folder(run):
    folder = run / "attacks" / "corruptions"
    folder.mkdir(parents=True)
    slopes = {"gaussian noise": 0.03, "rician noise": 0.035, "motion": 0.08, "ghosting": 0.05, "spikes": 0.13,
              "bias field": 0.01, "blur": 0.02, "thick slices": 0.055, "contrast": 0.015}  # fmt: skip
    write_summary(folder, rows(slopes, range(6)), (), 0, corruptions=True)
    setting = {"suite": "corruptions", "where": "volume", "seed": 0, "eps_unit": "severity", "unit": "mm"}
    (folder / "summary.json").write_text(
        json.dumps({"setting": setting, "eps": [*range(6)], "attacks": [*slopes], "cases": 20})
    )
    return folder


def test_page_says_what_was_attacked_how_and_how_far_it_falls(run, read):
    attack_folder(run)
    corruption_folder(run)
    content = gather(run, read)
    html = render(content)
    for said in (
        "strong-patch", "one patch a case", "worst of all", "noise (control)", "13.1", "2400 returns inside",
        "not run", "perturbation × ", "attacked image", "Never broken", "0.445", "Every case, worst first",
        "mean over corruptions", "gaussian noise", "41.7", "182 040", "Dice 0.894 → 0.412",
    ):  # fmt: skip
        assert said in html, said
    assert "not reliable" not in html
    strong = next(a for a in content.attacks if not a.corrupted)
    assert [len(x.pictures) for x in strong.examples] == [4, 4]
    assert len(strong.strata) == 2 * 3 and strong.strata[0].points[0].n_cases in (6, 7)
    for cls in ("anterior", "mean"):
        area = strong.area("worst", cls)
        assert f"{area.mean:.3f} ({area.low:.3f} – {area.high:.3f})" in html


def test_units_other_than_the_range_are_said(run, read):
    folder = attack_folder(run)
    text = (folder / "summary.json").read_text().replace("255ths of each channel's range", "HU")
    (folder / "summary.json").write_text(text)
    html = render(gather(run, read))
    assert "ε, HU" in html and "ε 16 HU" in html and "ε 16/255" not in html


def test_a_run_without_attacks_has_no_such_section(run, read):
    (run / "attacks" / "half done").mkdir(parents=True)  # no summary.json: not finished
    html = render(gather(run, read))
    assert 'id="robustness"' not in html and 'href="#robustness"' not in html


def test_a_failed_guard_is_said_at_the_top_and_in_its_place(run, read):
    failed = {"name": "zero gradient", "passed": False, "detail": "12 of 20 cases have no gradient"}
    attack_folder(run, guards=[*GUARDS, failed])
    content = gather(run, read)
    assert "The robustness evaluation strong-patch is not reliable: zero gradient failed." in content.caveats
    html = render(content)
    assert "Evaluation not reliable: zero gradient (12 of 20 cases have no gradient)" in html
    assert html.count("✗ failed") == 1 and html.count("✓ passed") == 3 and html.count("– not run") == 1


def test_figures_have_a_name_and_every_point_a_text(run, read):
    attack_folder(run)
    strong = gather(run, read).attacks[0]
    svg = str(by_attack(strong, "mean"))
    assert svg.count('class="band"') == 5 and svg.count("<circle") == 5 * 4
    assert 'role="img" aria-label="Dice, all classes over ε, 255ths of each channel&#39;s range"' in svg
    point = strong.curve("worst", "mean").points[2]
    assert f"worst of all: {point.mean:.4g} at 8, interval {point.low:.4g} to {point.high:.4g}" in svg
    assert re.findall(r'class="tick"[^>]*text-anchor="middle">([^<]+)', svg) == ["0", "5", "8", "16"]


def test_distribution_steps_up_at_each_smallest_epsilon():
    least = Minimum("worst", 4, 2, 3.0, None, None, (3.0, 9.0))
    svg = str(distribution(Attacked("a", (0.0, 16.0), minimums=(least,))))
    path = re.search(r'class="line" d="M([^"]+)"', svg)[1]
    spots = [tuple(map(float, p.split())) for p in path.split("L")]
    width, foot = 460 - 46 - 14, 26 + 168  # left and right margins, top and height of lines()
    expected = [(0, 0), (3, 0), (3, 0.25), (9, 0.25), (9, 0.5), (16, 0.5)]
    drawn = [(46 + width * x / 16, foot - 168 * y) for x, y in expected]
    np.testing.assert_allclose(spots, drawn, atol=0.01)  # two decimals in the SVG


@pytest.mark.parametrize(
    ("clean", "value", "step"),
    [(0.9, 0.9, 0), (0.9, 0.95, 0), (0.9, 0.79, 2), (0.9, 0.1, 10), (None, 0.5, 0)],
)
def test_heat_is_the_loss_against_clean(clean, value, step):
    assert heat(clean, value) == step


@pytest.mark.parametrize(
    ("largest", "span", "factor"), [(3, 100, 10), (0.5, 100, 100), (1, 50, 20), (50, 100, 1), (0, 100, 0)]
)
def test_amplification_is_a_round_number_that_fits(largest, span, factor):
    found = amplification(np.array([[-largest, 0.0]]), span)
    assert found == pytest.approx(factor) and found * largest <= span / 2 + 1e-9


def decoded(picture):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)


def test_pictures_show_the_perturbation_and_three_outlines(tmp_path):
    example(tmp_path, 0)
    arrays = read_example(tmp_path / "0.npz")
    before, after, change, outlines = map(decoded, pictures(arrays, (1.0, 1.0)))
    assert before.shape == after.shape == change.shape == outlines.shape
    assert np.abs(before - after).mean() < 0.1 * np.abs(change - 128).mean()  # amplified
    colors = ((86, 180, 233), (0, 190, 140), (230, 159, 0))  # truth, clean, attacked
    for color in colors:
        assert (np.abs(outlines - color).max(-1) < 40).sum() > 100, color  # 40: lossy WebP
        assert (np.abs(before - color).max(-1) < 40).sum() == 0
    names = [p.name for p in pictures(arrays | {"delta": np.zeros((60, 50))}, (1.0, 1.0))]
    assert names == ["image", "attacked image", "perturbation: none", "outlines"]
    wide = pictures(arrays, (1.0, 3.0))[0]
    assert wide.width > wide.height  # true proportions


def test_flip_turns_the_slice_as_a_radiologist_sees_it(tmp_path):
    example(tmp_path, 0)
    arrays = read_example(tmp_path / "0.npz")
    turned = {name: a[::-1, ::-1] for name, a in arrays.items()}
    assert pictures(turned, (1.0, 1.0), axis=0)[0].data == pictures(arrays, (1.0, 1.0))[0].data
    upside_down = {name: a[::-1] for name, a in arrays.items()}  # sagittal: front stays at the right
    assert pictures(upside_down, (1.0, 1.0), axis=2)[3].data == pictures(arrays, (1.0, 1.0))[3].data


def damage_missing(path):
    arrays = dict(np.load(path))
    del arrays["clean"]
    np.savez(path, **arrays)


def damage_shape(path):
    np.savez(path, **(dict(np.load(path)) | {"truth": np.zeros((3, 3), np.uint8)}))


def damage_pickle(path):
    np.savez(path, **(dict(np.load(path)) | {"truth": np.array([[{}]], object)}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "not an example"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.unlink(), "cannot be read"),
        (damage_missing, "clean"),
        (damage_shape, r"truth is uint8 \(3, 3\), expected a slice like image \(60, 50\)"),
        (damage_pickle, "not an example"),
    ],
)
def test_a_damaged_example_is_refused(run, damage, said):
    example = attack_folder(run) / "examples" / "0.npz"
    damage(example)
    with pytest.raises(DataError, match=rf"0\.npz.*{said}"):
        read_example(example)


def test_a_damaged_example_is_said_in_its_place(run, read):
    damage_shape(attack_folder(run) / "examples" / "0.npz")
    first, second = gather(run, read).attacks[0].examples
    assert not first.pictures and "truth is uint8 (3, 3)" in first.missing and len(second.pictures) == 4
    assert str(run.parent) not in first.missing


def test_damaged_numbers_are_refused_with_the_file(run):
    folder = attack_folder(run)
    path = folder / "curves.json"
    content = json.loads(path.read_text())
    for wrong in ({"areas": [{"attack": "worst"}]}, {"curves": [3]}, {"cases": [{"case": "a", "dice": 3}]}):
        path.write_text(json.dumps(content | wrong))
        with pytest.raises(DataError, match=r"curves\.json"):
            attacks(run)
    path.write_text("{")
    with pytest.raises(DataError, match=r"curves\.json: not valid JSON"):
        attacks(run)
    path.unlink()
    assert "curves.json" in attacks(run)[0].missing[0]
    (folder / "summary.json").write_text('{"guards": ["all is well"]}')
    with pytest.raises(DataError, match=r"summary\.json"):
        attacks(run)


def test_cost_may_differ_and_numbers_must_not(run, read):
    attack_folder(run)
    content = gather(run, read)
    slow = dataclasses.replace(content.attacks[0], cost=(("Attack, s a case", "99"),))
    assert reproducible(dataclasses.replace(content, attacks=(slow,))) == reproducible(content)
    worse = dataclasses.replace(content.attacks[0], areas=())
    assert reproducible(dataclasses.replace(content, attacks=(worse,))) != reproducible(content)


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Names(HTMLParser):
    """The names of all attributes of a page."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attrs):
        self.found.update(name for name, _ in attrs)


def test_no_text_of_an_attack_becomes_markup():
    points = (Point(0, 0.9, 0.8, 1.0), Point(8, 0.5, 0.4, 0.6))
    evil = Attacked(
        EVIL, (0, 8), n_cases=3, unit=EVIL, facts=((EVIL, EVIL),), cost=((EVIL, EVIL),),
        native=((EVIL, (EVIL, EVIL)),), guards=(Guard(EVIL, False, EVIL), Guard(EVIL, None, EVIL)),
        curves=(Curve(EVIL, EVIL, points), Curve(EVIL, "mean", points)), areas=(Area(EVIL, EVIL, 0.5),),
        strata=(Stratum(EVIL, EVIL, 1, 2, points),), minimums=(Minimum(EVIL, 1, 0, 1, 1, 1, (1.0,)),),
        cases=(CaseLine(EVIL, (0.5, 0.4)),), weighted=(Weighted(EVIL, EVIL, 1, 0.5, None, None, 0.5),),
        examples=(Example(EVIL, EVIL, 8, 0.9, 0.1, EVIL, missing=EVIL),), missing=(EVIL,),
    )  # fmt: skip
    both = (evil, dataclasses.replace(evil, corrupted=True))
    html = render(ReportContent(Headline(EVIL, EVIL, EVIL, EVIL), attacks=both))
    assert "<script" not in html and "<img" not in html
    assert html.count("&lt;script&gt;") > 60
    names = Names()
    names.feed(html)
    assert not any(n.startswith("on") or n == "style" for n in names.found), names.found


def test_folders_do_not_reach_the_page(run, read):
    guard = {"name": "resume", "passed": True, "detail": "went on from /elsewhere/Doe_John/state.json"}
    attack_folder(run, guards=[guard])
    html = render(gather(run, read))
    assert "state.json" in html and "elsewhere" not in html and "Doe_John" not in html
