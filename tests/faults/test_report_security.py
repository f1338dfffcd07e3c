"""FAULTS 23 and 47: no name becomes markup, the page loads nothing, no folder of a patient is on it."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np

from seguro.core.types import Case, Classes, Excluded, FileFact, Grid, Manifest, ScoreRow, Source, Volume
from seguro.report.cases import Readers
from seguro.report.figures import Dot, Series
from seguro.report.gather import gather
from seguro.report.overlay import views
from seguro.report.page import (
    ClassResult,
    Distribution,
    Headline,
    Reason,
    ReportContent,
    Score,
    Shown,
    StageFact,
    render,
)

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def evil_content():
    cube = np.arange(16.0**3).reshape(16, 16, 16)
    pictures = views(cube, (cube > 3000).astype(np.uint8), (cube > 3500).astype(np.uint8), (1, 1, 1), [[1]])
    score = Score(EVIL, EVIL, 0.5, 0.4, 0.6, 0.1, 0.5, 3, 3, 1, site=EVIL)
    return ReportContent(
        headline=Headline(EVIL, EVIL, EVIL, EVIL, 3, 3, 0.5, 0.4, 0.6, EVIL),
        unit=EVIL,
        caveats=(EVIL,),
        scores=(score, Score(EVIL, "dice", 0.5)),
        site_scores=(Score(EVIL, "dice", 0.5, site=EVIL), Score(EVIL, "dice", 0.5, site="b")),
        distributions=(Distribution("dice", ((EVIL, (Dot(EVIL, 0.5), Dot(EVIL, 0.0, failed=True))),)),),
        shown=(Shown(EVIL, "worst", 0.5, (ClassResult(EVIL, 0.5, note=EVIL),), pictures, EVIL, EVIL),),
        loss=(Series(EVIL, ((0, 1), (1, 2))), Series(EVIL, ((0, 1), (1, 2)))),
        validation=(Series(EVIL, ((0, 1), (1, 2))),),
        stages=(StageFact(EVIL, EVIL, EVIL, 1.0, EVIL, EVIL, EVIL),),
        config=EVIL,
        reasons=(EVIL,),
        excluded=(Reason(EVIL, EVIL),),
        flags=(Reason(EVIL, EVIL),),
        failed=(Reason(EVIL, EVIL),),
        warnings=(EVIL,),
        notes=(EVIL,),
        commands=(EVIL,),
        missing=(EVIL,),
        others=(EVIL,),
        facts=((EVIL, EVIL),),
    )


def test_no_text_becomes_markup():
    html = render(evil_content())
    assert "<script" not in html and "onerror=alert(2)>" not in html.replace("&gt;", "")
    assert html.count("&lt;script&gt;") > 40
    for tag in re.findall(r"<img[^>]*>", html):
        assert tag.startswith('<img src="data:image/')


def attribute_names(html):
    class Names(HTMLParser):
        found: ClassVar[set[str]] = set()

        def handle_starttag(self, tag, attrs):
            self.found.update(name for name, _ in attrs)

    reader = Names()
    reader.feed(html)
    return reader.found


def test_page_loads_nothing():
    html = render(evil_content())
    assert "default-src 'none'" in unescape(html)
    for attribute in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"):
        for target in re.findall(rf'<[a-z][^<>]*\s{attribute}="([^"]*)"', html):
            assert target.startswith(("data:image/", "#")), (attribute, target[:60])
    style = re.search("<style>(.*?)</style>", html, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"<(script|iframe|object|embed|link|base|form)\b", html)
    names = attribute_names(html)
    assert not any(n.startswith("on") or n == "style" for n in names), (
        names
    )  # styles only by the hashed sheet
    assert "http://" not in html and "https://" not in html


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_no_folder_of_a_patient_is_on_the_page(tmp_path):
    private = tmp_path / "Doe, John 1970-01-01" / "scans"
    workspace = tmp_path / "work" / "clinic.seguro"
    run = workspace / "runs" / "r"
    source = Source("nifti", ".nii.gz", (16, 16, 16))
    fact = FileFact(path="imagesTr/c1.nii.gz", size=1, mtime_ns=0, sha256="0" * 64)
    case = Case(
        id="c1", patient="p", split="test", images=(fact,), label=fact, shape=(16,) * 3, spacing=(1.0,) * 3
    )
    classes = Classes(names=("background", "k"), values=((0,), (1,)))
    reason = f"{private}/imagesTr/c2.nii.gz: the file is empty (0 bytes)"
    manifest = Manifest(
        name="clinic", root=str(private), layout="msd", channels=("MR",), classes=classes, cases=(case,),
        excluded=(Excluded(id=f"{private}/c2", reason=reason),), warnings=(reason,),
    )  # fmt: skip
    write(workspace / "check" / "manifest.json", manifest.model_dump(mode="json"))
    write(workspace / "plan" / "plan.json", {"reasons": [f"folds from {private}/splits_final.json"]})
    write(run / "scores" / "test" / "summary.json", {"unit": "mm", "rows": []})
    (run / "scores" / "test" / "scores.csv").write_text("")
    (run / "config.yaml").write_text(f"data: {private}\ninit: /elsewhere/secret/run\n")
    write(run / "log.jsonl", {"kind": "note", "update": 1, "message": f"weights from {private}/model"})
    write(
        run / "predictions" / "test" / "predictions.json",
        {"cases": {"c1": {"file": "c1.nii.gz", "flags": [f"{private}/x: odd"]}}, "failed": {"c3": reason}},
    )
    write(
        run / "stage.json",
        {"stage": "train", "key": "k", "outputs": {}, "recorded": {"warnings": [f"slow disk {private}"]}},
    )

    def unreadable(*_):
        from seguro.core.errors import DataError

        raise DataError(reason)

    rows = [ScoreRow("c1", "p", "s", "k", "dice", 0.5)]
    for image in (
        unreadable,
        lambda *_: Volume(np.zeros((1, 16, 16, 16)), Grid((16,) * 3, np.eye(4)), source),
    ):
        html = render(gather(run, Readers(image, unreadable, unreadable, lambda _: rows, dict)))
        assert "c2.nii.gz: the file is empty" in html
        for secret in ("Doe", "1970", "/elsewhere", "secret", str(tmp_path)):
            assert secret not in html, secret
