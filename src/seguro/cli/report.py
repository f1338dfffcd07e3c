"""Write one offline HTML page about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish

if TYPE_CHECKING:
    from seguro.core.types import Case, Grid, Manifest, Volume
    from seguro.report.cases import Readers

SCHEMA = 1
PAGE, FACTS = "report.html", "report.json"


def report(
    run: Annotated[Path, typer.Argument(help="A run: <dataset>.seguro/runs/<name>.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Also write the page to this file.")] = None,
    scores: Annotated[
        str | None, typer.Option("--scores", help="Which scored set; default test, else the first.")
    ] = None,
    caveat: Annotated[
        list[str] | None, typer.Option("--caveat", help="A sentence for the top of the page; repeatable.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help="Where the images lie now, after a move.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write one offline HTML page about a run."""
    screen = console(as_json)
    if dry_run:
        planned = [str(run / "report" / PAGE), *([str(out)] if out else [])]
        screen.print(f"would write {' and '.join(planned)}", markup=False)
        finish(screen, result={"would_write": planned}, as_json=as_json)
        return
    result = write(run, out=out, scores=scores, caveats=caveat or (), data_root=data_root)
    screen.print(
        f"report: {result['report']} ({result['kilobytes']} kB, loads nothing from outside)", markup=False
    )
    for line in result["missing"]:
        screen.print(f"  not there yet: {line}", markup=False)
    finish(screen, result=result, as_json=as_json, then=_next(run, result))


def write(
    run: Path,
    *,
    out: Path | None = None,
    scores: str | None = None,
    caveats: Sequence[str] = (),
    data_root: Path | None = None,
) -> dict[str, Any]:
    """Write `RUN/report/report.html` and return what was written and the headline, as JSON values.

    The page names durations and machines, which differ when the arrow is run again. So the stage's `outputs`
    are `report.json`: everything on the page that must not differ. The page itself is only recorded.
    Without `caveats` those of the last report on this run stay.
    """
    from seguro.core.files import sha256_json, write_json, write_text
    from seguro.core.stage import Stage, locked
    from seguro.report.gather import gather, reproducible
    from seguro.report.page import render

    folder = run / "report"
    caveats = tuple(caveats) or _earlier_caveats(folder)
    content = gather(run, _readers(), scored=scores, caveats=caveats, data_root=data_root)
    with locked(folder):
        facts = reproducible(content)
        config = {"scores": scores, "caveats": caveats}
        stage = Stage(folder, "report", reads={"content": sha256_json(facts)}, config=config, schema=SCHEMA)
        html = render(content)
        write_text(folder / PAGE, html)
        write_json(folder / FACTS, facts)
        stage.finish([folder / FACTS], page=PAGE, bytes=len(html.encode()))
    if out is not None:
        write_text(out, html)
    head = content.headline
    return {
        "report": str(out or folder / PAGE),
        "kilobytes": round(len(html.encode()) / 1000),
        "dataset": head.dataset,
        "dice": head.mean,
        "low": head.low,
        "high": head.high,
        "cases": head.n_cases,
        "caveats": list(content.caveats),
        "missing": list(content.missing),
        "only_makes": content.only_makes,
    }


def _earlier_caveats(folder: Path) -> tuple[str, ...]:
    from seguro.core.files import read_json
    from seguro.core.stage import STAGE_FILE

    path = folder / STAGE_FILE
    return tuple(read_json(path)["config"].get("caveats", ())) if path.exists() else ()


def _readers() -> Readers:
    from seguro.data.formats import read_label
    from seguro.data.manifest import read_case, read_case_label
    from seguro.evaluation import METRICS
    from seguro.evaluation.scores import read_csv
    from seguro.report.cases import Readers

    def truth(case: Case, manifest: Manifest, grid: Grid) -> Volume | None:
        return read_case_label(case, manifest, like=grid)

    return Readers(read_case, truth, read_label, read_csv, _settings, tuple(METRICS))


def _settings(method: str, preset: str, network: str | None) -> Mapping[str, Any]:
    """Return the fields of a method with nothing set by hand; none where this version does not know it."""
    from seguro import api
    from seguro.core.errors import ConfigError

    try:
        fields = api.configure(api.TrainOptions(method=method, preset=preset, network=network), gpu=False)[1]
    except ConfigError:
        return {}
    return dict(fields.model_dump(mode="json"))


def _next(run: Path, result: dict[str, Any]) -> str:
    import shlex

    name = shlex.quote(str(run))
    if result["only_makes"]:
        return f"seguro adapt DATA --from {name}"
    if any("seguro predict" in line for line in result["missing"]):
        return f"seguro predict {name}"
    if any("seguro evaluate" in line for line in result["missing"]):
        return f"seguro evaluate {name}"
    return f"seguro compare {name} OTHER_RUN, to see whether another run is better"
