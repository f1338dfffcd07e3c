"""What a generating run left in its folder: its last pictures of every domain, scores, audits, made sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seguro.core.errors import DataError
from seguro.core.files import read_checked, read_object
from seguro.report.figures import Series
from seguro.report.made import Audited, Made, MadeSet
from seguro.report.robustness import Picture

PREVIEWS = "previews"
SETS = "generated"
"""Folder with NAME.json for every set that `seguro generate` made with the run's model."""
PNG = b"\x89PNG\r\n\x1a\n"
_HEADER = 24
"""Bytes of a PNG up to its width and height."""
_MOST_BYTES = 1 << 22
MOST_DOMAINS = 16
"""Domains whose pictures are shown."""


def made(
    run: Path, distance: Sequence[Series], recognized: Sequence[Series], *, axis: str = "update"
) -> Made | None:
    """Return what a generating run left; None where it made nothing.

    Args:
        run: its folder, with `previews/DOMAIN/NUMBER.png` and, of one machine, `audit.json`, or with
            `generated/NAME.json` of a run of method adapt.
        distance: series of the training log, or of the rounds.
        recognized: as `distance`.
        axis: what they are drawn over.

    Raises:
        DataError: a picture, the audit or the record of a made set is damaged.
    """
    sets = tuple(_made_set(p) for p in sorted((run / SETS).glob("*.json")))
    folders = sorted(p for p in (run / PREVIEWS).glob("*") if p.is_dir())
    facts = read_object(run / "audit.json")
    if not folders and not facts and not sets:
        return None
    last = [max(f.glob("*.png"), default=None) for f in folders[:MOST_DOMAINS]]
    try:
        audit = tuple(_audited(name, one) for name, one in facts.get("domains", {}).items())
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{run / 'audit.json'}: damaged ({error}); train or copy the run again") from error
    return Made(
        pictures=tuple(_picture(p) for p in last if p is not None),
        sets=sets,
        audit=audit,
        needed=facts.get("needed_ratio"),
        releasable=facts.get("releasable"),
        distance=tuple(distance),
        recognized=tuple(recognized),
        axis=axis,
    )


def _picture(path: Path) -> Picture:
    data = read_checked(path, limit=_MOST_BYTES).data
    if len(data) < _HEADER or not data.startswith(PNG):
        raise DataError(f"{path}: no PNG; remove it, or copy the run again")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    return Picture(f"{path.parent.name}, {int(path.stem)}", width, height, data, "image/png")


def _made_set(path: Path) -> MadeSet:
    facts = read_object(path)
    try:
        volumes, beside = int(facts["volumes"]), int(facts["beside"])
        audit, releasable = str(facts["audit"]["reason"]), facts["releasable"] is True
        return MadeSet(path.stem, str(facts["domain"]), volumes, beside, releasable, audit)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error!r}); remove it, or run seguro generate again") from error


def _audited(domain: str, facts: Mapping[str, Any]) -> Audited:
    verdict = "passed" if facts.get("passed") else str(facts.get("reason", "not passed"))
    ratio = facts.get("ratio")
    n_made, n_held_out, n_train = (int(facts.get(k, 0)) for k in ("n_made", "n_held_out", "n_train"))
    return Audited(domain, None if ratio is None else float(ratio), n_made, n_held_out, n_train, verdict)
