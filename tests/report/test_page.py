"""The page: what it must say, that it loads nothing, and that the same run gives the same facts."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from seguro.core.errors import DataError
from seguro.report.cases import case_means, choose
from seguro.report.gather import gather, reproducible
from seguro.report.page import Headline, ReportContent, Score, duration, millilitres, render, title, value
from seguro.report.privacy import scrub

MB = 1 << 20


class Tags(HTMLParser):
    """Every tag with its attributes, and whether they nest."""

    VOID = ("meta", "img", "path", "line", "circle", "rect")

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.crossed = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)


def parse(html):
    tags = Tags()
    tags.feed(html)
    return tags


def test_finished_run_says_everything(run, read):
    html = render(gather(run, read, caveats=("One anatomy in twelve disguises",)))
    for said in (
        "One anatomy in twelve disguises", "stopped early at update 1000", "Only 6 patients", "mean Dice of",
        "Hausdorff distance, 95 % (mm)", "by site", "case_11", "missed", "truncated gzip stream",
        "above the training range", "sform and qform", "nearly isotropic", "method: supervised",
    ):  # fmt: skip
        assert said in html, said
    assert len(html) < 3 * MB
    assert html.startswith("<!DOCTYPE html>")
    tags = parse(html)
    assert tags.crossed == [] and tags.open == []  # well formed


def test_worst_case_stands_first_with_its_pictures(run, read):
    content = gather(run, read)
    assert [s.case for s in content.shown[:2]] == ["case_11", "case_10"]
    assert content.shown[0].rank == "worst" and content.shown[-1].rank == "best"
    assert all(len(s.views) == 3 for s in content.shown)
    missed = next(r for r in content.shown[0].results if r.cls == "core")
    assert (missed.note, missed.dice, missed.prediction_ml) == ("missed", 0.0, 0.0)
    # core: an ellipsoid of 4/3 pi 3 5 4 voxels of 2 mm3; 12 % for its few voxels
    assert missed.truth_ml == pytest.approx(4 / 3 * 3.14159 * 60 * 2 / 1000, rel=0.12)


def test_curves_come_from_the_log_and_a_cut_line_is_survived(run, read):
    content = gather(run, read)
    assert [s.name for s in content.validation] == ["mean", "body", "core"]
    assert len(content.loss[0].points) == 100
    assert content.rate[0].points[0][1] == pytest.approx(1e-3, rel=0.02)  # poly schedule after one percent


@pytest.mark.parametrize("parts", [[], ["log.jsonl"], ["config.yaml", "log.jsonl"]])
def test_unfinished_run_names_what_is_missing(tmp_path, read, parts):
    run = tmp_path / "made.seguro" / "runs" / "half"
    run.mkdir(parents=True)
    if "log.jsonl" in parts:
        (run / "log.jsonl").write_text(json.dumps({"kind": "train", "update": 10, "loss": 1.0}) + "\n")
    if "config.yaml" in parts:
        (run / "config.yaml").write_text("method: supervised\n")
    content = gather(run, read)
    html = render(content)
    assert "no scores yet" in html and "Not there yet" in html
    assert ("The training log." in content.missing) == ("log.jsonl" not in parts)
    assert any("not finished" in c for c in content.caveats) == ("log.jsonl" in parts)
    assert content.headline.dataset == "made"


def test_missing_run_is_refused(tmp_path, read):
    with pytest.raises(DataError, match="no such run folder"):
        gather(tmp_path / "nowhere", read)


def test_unknown_scored_set_lists_the_known(run, read):
    with pytest.raises(DataError, match=r"no scores called 'val'.*test"):
        gather(run, read, scored="val")


def test_scores_inside_the_predictions_folder_are_found(run, read):
    (run / "scores" / "test").rename(run / "predictions" / "test" / "scores")
    assert gather(run, read).headline.n_cases == 12


def test_unreadable_image_is_said_not_raised(run, read):
    def fail(case, manifest):
        raise DataError("case: corrupt gzip stream")

    shown = gather(run, dataclasses.replace(read, image=fail)).shown
    assert all(s.missing == "case: corrupt gzip stream" and not s.views for s in shown)
    assert [r.dice for r in shown[0].results] != []


def test_missing_prediction_shows_the_truth_alone(run, read):
    (run / "predictions" / "test" / "case_11.npy").unlink()
    shown = gather(run, read).shown[0]
    assert len(shown.views) == 3 and "no prediction" in shown.missing


def test_hand_edited_plan_is_said(run, read):
    path = run.parent.parent / "plan" / "plan.json"
    assert not any("by hand" in c for c in gather(run, read).caveats)
    path.write_text(path.read_text().replace("32", "48"))
    assert any("by hand" in c for c in gather(run, read).caveats)


@pytest.mark.parametrize(
    ("unit", "said"), [("nominal mm", "Spacing is nominal"), ("px", "distances are in pixels")]
)
def test_unit_is_in_every_distance_column(run, read, unit, said):
    path = run / "scores" / "test" / "summary.json"
    path.write_text(path.read_text().replace('"unit": "mm"', f'"unit": "{unit}"'))
    html = render(gather(run, read))
    assert said in html
    assert html.count(f"95 % ({unit})") >= 3  # table, site table, figure
    assert "95 % (mm)" not in html


def test_policy_allows_this_style_and_nothing_else(run, read):
    html = render(gather(run, read))
    tags = parse(html).tags
    (policy,) = [
        a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    style = re.search("<style>(.*?)</style>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"style-src 'sha256-{digest}'" in policy  # a browser compares exactly this
    assert "unsafe" not in policy and "script" not in policy


def test_same_run_same_page_and_facts_without_what_may_differ(run, read):
    first, second = gather(run, read), gather(run, read)
    assert render(first) == render(second)
    slow = dataclasses.replace(
        first,
        stages=tuple(dataclasses.replace(s, seconds=99.0, machine="other") for s in first.stages),
        notes=("0.31 s an update",),
    )
    assert reproducible(slow) == reproducible(first)
    worse = dataclasses.replace(first, headline=dataclasses.replace(first.headline, mean=0.1))
    assert reproducible(worse) != reproducible(first)


def test_case_means_count_misses_and_leave_out_the_undefined(run, read):
    rows = read.scores(run / "scores" / "test" / "scores.csv")
    means = case_means(rows)
    body = next(r.value for r in rows if r.case == "case_11" and r.cls == "body" and r.metric == "dice")
    assert means["case_11"] == pytest.approx(body / 2)  # the missed core counts as 0
    blank = [r._replace(value=None, note="not annotated") for r in rows if r.case == "case_00"]
    assert case_means(blank) == {"case_00": None}


@pytest.mark.parametrize("n", [0, 1, 4, 5, 6, 7, 8, 9, 40])
def test_chosen_cases_never_repeat_and_begin_with_the_worst(n):
    means = {f"c{i:02d}": i / 50 for i in range(n)} | {"blank": None}
    chosen = choose(means)
    names = [c for _, c in chosen]
    assert len(set(names)) == len(names) == min(n, 8)
    assert names[: min(n, 4)] == sorted(means)[1 : min(n, 4) + 1]
    if n == 40:
        assert names[4:] == ["c19", "c20", "c39", "c38"]


def test_no_interval_is_not_made_up():
    content = ReportContent(Headline("d", "m", "", "", 1, 1, mean=0.5), scores=(Score("a", "dice", 0.5),))
    html = render(content)
    assert "no interval" in html


def test_numbers_as_text():
    assert value(0.87654) == "0.877" and value(1.234, "hd95") == "1.23" and value(None) == "\N{EN DASH}"
    assert [duration(s) for s in (8.04, 200, 3900, None)] == [
        "8.0 s",
        "3 min 20 s",
        "1 h 05 min",
        "\N{EN DASH}",
    ]
    assert [millilitres(v) for v in (123.4, 12.34, 0.567)] == ["123", "12.3", "0.57"]
    assert title("hd95", "px") == "Hausdorff distance, 95 % (px)"
    assert title("nsd@2mm", "mm") == "Surface Dice (NSD) at 2mm"
    assert title("own_metric", "mm") == "own_metric"


def test_scrub_keeps_names_and_drops_folders():
    assert scrub("/home/x/John Doe/a.nii: bad", ["/home/x/John Doe"]) == "…/a.nii: bad"
    assert scrub("see '/data/secret/a.nii.gz', then") == "see '…/a.nii.gz', then"
    assert scrub(r"C:\scans\p1\a.nii") == "…/a.nii"
    assert (
        scrub("imagesTr/a.nii.gz and 3/4 and 1 / 2 and a/b/c")
        == "imagesTr/a.nii.gz and 3/4 and 1 / 2 and a/b/c"
    )


def test_pixels_have_no_columns_of_millilitres(run, read):
    content = gather(run, read)
    assert "Truth, ml" in render(content)
    assert "Truth, ml" not in render(dataclasses.replace(content, unit="px"))
