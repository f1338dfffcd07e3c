"""The work of the attack stage: every case at every strength, from cache where it was done, and its files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seguro.api.attack_options import AttackOptions, spread
from seguro.attacks import ensemble, guards, tuning
from seguro.attacks.ensemble import BLACK_BOX, NOISE, Effort
from seguro.attacks.memory import free_bytes, measured, refuse_too_large
from seguro.attacks.record import CaseRecord, one, plain, save_view
from seguro.attacks.saved import save_volumes
from seguro.attacks.subject import Subject, patch_subject, volume_subject
from seguro.attacks.threat import UNITS, Epsilon, threat_of
from seguro.attacks.victim import Attack, Best, Victim
from seguro.core.errors import DataError
from seguro.core.files import read_json, sha256_json, write_bytes, write_json
from seguro.core.memory import GIB
from seguro.core.types import Case, Grid, Manifest
from seguro.data.manifest import read_case, read_case_label
from seguro.data.preprocess import label_to_planned, native_scale, to_planned
from seguro.engine.model import Model
from seguro.evaluation import robustness
from seguro.evaluation.robustness import MinimumRow, RobustRow

SCHEMA = 2
EXAMPLES = 6
"""Worst cases whose slices are kept for the report."""
SAVED = "volumes"
"""Folder of the attacked volumes, where they are asked for."""
BAR = 0.5
"""A case counts as broken below this share of the model's mean clean Dice (the paper's rule)."""

Progress = Callable[[int, int, str], None]
"""(done, total, what is worked on)."""


@dataclass(frozen=True)
class _Open:
    """The case that was read last."""

    id: str
    subject: Subject
    scales: tuple[tuple[float, float], ...]
    """Per channel, file units of one scaled unit, and the file value of zero."""
    grid: Grid

    @property
    def ml(self) -> float:
        """Millilitres of a planned voxel; 1 where there is no physical size."""
        return 1.0 if self.grid.unit == "px" else self.grid.voxel_ml


class AttackJob:
    """One call of `attack`: the cases, what is cached of them, and what is made of it."""

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        cases: Sequence[Case],
        epsilons: Sequence[Epsilon],
        options: AttackOptions,
        folder: Path,
        progress: Progress,
    ) -> None:

        self.model, self.manifest, self.cases = model, manifest, tuple(cases)
        self.epsilons, self.options, self.folder = tuple(epsilons), options, folder
        self.effort = Effort(options.steps, options.restarts, options.queries)
        self.checked = spread(self.cases, options.check)
        self._tell = progress
        self._done = 0
        self._total = len(self.epsilons) * (len(self.cases) + len(self.checked))
        self._open: _Open | None = None

    def open(self, case: Case) -> _Open:
        """Return a case, read when it was not the last one."""
        if self._open is None or self._open.id != case.id:
            volume = read_case(case, self.manifest)
            truth = read_case_label(case, self.manifest, like=volume.grid)
            if truth is None:
                raise DataError(f"{case.id}: no label, nothing can be scored")
            plan, classes = self.model.plan, self.model.plan.classes
            image, grid = to_planned(volume, plan)
            label = label_to_planned(truth.array, grid, plan)
            annotated = np.array([n in case.annotated for n in classes.foreground], np.float32)
            args = (self.model.predictor, image, label, annotated)
            if self.options.whole_volume:
                made = volume_subject(*args, device=self.options.device)
            else:
                made = patch_subject(*args, center=self.options.center, device=self.options.device)
            scales = tuple(native_scale(volume.array[i], c) for i, c in enumerate(plan.channels))
            self._open = _Open(case.id, made, scales, grid)
        return self._open

    def suite(self, effort: Effort, bar: float, name: str | None = None) -> tuple[Attack, ...]:
        """Return the attacks of a suite, the chosen one by default, with the fields that are set by hand."""
        made = ensemble.suite(name or self.options.suite, self.model.plan.classes, effort, bar=bar)
        return tuning.tuned(made, self.options.settings)

    def record(
        self, case: Case, epsilon: Epsilon, attacks: Sequence[Attack] = (), *, save: bool = False
    ) -> CaseRecord:
        """Return the result of one case at one strength, from its file if the same was done before."""
        self._tell(self._done, self._total, f"{case.id} at {epsilon}")
        self._done += 1
        o = self.options
        key = sha256_json(
            {
                "model": self.model.sha256, "case": case.hash, "id": case.id, "eps": str(epsilon),
                "attacks": [repr(a) for a in attacks], "whole": o.whole_volume,
                "center": o.center, "box": o.box, "seed": o.seed, "schema": SCHEMA,
            }
        )  # fmt: skip
        path = self.folder / "cases" / f"{key[:24]}.json"
        volume = self.folder / SAVED / f"{case.id}_{self._file_name(epsilon)}.nii.gz"
        if path.exists() and (volume.exists() or not save):
            found = CaseRecord.model_validate(read_json(path))
            if found.key == key:
                return found
        made = self._attacked(case, epsilon, attacks, key, path, save=save)
        write_json(path, made.model_dump(mode="json"))
        return made

    @staticmethod
    def _file_name(epsilon: Epsilon) -> str:
        return "eps" + str(epsilon).replace("/", "of")

    def _attacked(
        self,
        case: Case,
        epsilon: Epsilon,
        attacks: Sequence[Attack],
        key: str,
        path: Path,
        *,
        save: bool,
    ) -> CaseRecord:
        opened = self.open(case)
        subject = opened.subject
        victim = Victim(subject.logits, subject.truth)
        threat = threat_of(subject.x, epsilon, self.model.plan, box=self.options.box)
        of_file = tuple(float(e) * unit for e, (unit, _) in zip(threat.eps[0], opened.scales, strict=True))
        start = time.monotonic()
        clean = Best(victim, subject.x, threat)
        predict_s = time.monotonic() - start
        common = {
            "key": key,
            "case": case.id,
            "eps": epsilon.number,
            "native": of_file,
            "scaled": tuple(threat.eps[0].tolist()),
            "predict_s": predict_s,
        }
        if epsilon.value == 0:
            return CaseRecord(
                **common,
                attacks={},
                score=float(clean.score[0]),
                lowest=plain(clean.dice[0]),
                by="clean",
                seconds=0,
            )
        outcome = ensemble.run_suite(
            attacks, victim, subject.x, threat, seed=self.options.seed, cases=[case.id]
        )
        save_view(path.with_suffix(".npz"), subject, outcome, self.model.plan.classes)
        if save:
            clean_image, attacked = (v[0].cpu().numpy() for v in (subject.x, outcome.x))
            name = self._file_name(epsilon)
            save_volumes(
                self.folder / SAVED, case.id, name, clean_image, attacked, opened.scales, opened.grid, of_file
            )
        size = next((f.minimum for f in outcome.found.values() if f.minimum is not None), None)
        return CaseRecord(
            **common,
            attacks={n: one(f) for n, f in outcome.found.items()},
            score=float(outcome.score[0]),
            lowest=plain(outcome.lowest[0]),
            by=outcome.by[0],
            again=float(victim.score(victim.logits(outcome.x))[0]),
            minimum=None if size is None or not bool(size[0] < np.inf) else float(size[0]) * epsilon.number,
            seconds=time.monotonic() - start,
        )

    def _bar(self, clean: Iterable[CaseRecord]) -> float:
        """Return the Dice below which a case is broken: the same for every attack, strength and case."""
        if self.options.threshold is not None:
            return self.options.threshold
        return BAR * float(np.mean([r.score for r in clean]))

    def write(self) -> dict[str, Any]:
        """Attack every case at every strength, write all files but stage.json, and return the summary."""
        o = self.options
        if o.whole_volume:
            self._refuse_too_large()
        clean = {c.id: self.record(c, self.epsilons[0]) for c in self.cases}
        bar = self._bar(clean.values())
        done: dict[str, list[CaseRecord]] = {}
        attacks = self.suite(self.effort, bar)
        for case in self.cases:  # case by case, so that each is read once
            hit = [self.record(case, e, attacks, save=o.save) for e in self.epsilons[1:]]
            done[case.id] = [clean[case.id], *hit]
        guards = self._guards(done, bar)
        rows = [row for case in self.cases for row in self._rows(case, done[case.id])]
        minimum = [self._minimum(case, done[case.id], bar) for case in self.cases]
        self.folder.mkdir(parents=True, exist_ok=True)
        robustness.write_csv(self.folder / "robustness.csv", rows)
        robustness.write_minimum(self.folder / "minimum.csv", minimum)
        robustness.write_summary(self.folder, rows, minimum, o.seed)
        summary = self._summary(done, bar, guards)
        write_json(self.folder / "summary.json", summary)
        self._examples(done)
        return summary

    def _refuse_too_large(self) -> None:
        """Refuse whole volumes that would not fit, before any is attacked."""
        o, model = self.options, self.model
        n = len(self.suite(self.effort, BAR)) + 1  # and the noise control
        need = measured(model.predictor, len(model.plan.channels), attacks=n, device=o.device)
        free = free_bytes(o.device) if o.memory_gib is None else round(o.memory_gib * GIB)
        refuse_too_large(self.cases, model.plan, need, free, device=o.device)

    def _rows(self, case: Case, records: Sequence[CaseRecord]) -> list[RobustRow]:
        """Return the rows of a case; its worst case never rises with the strength, balls being nested."""
        opened = self.open(case)
        classes = self.model.plan.classes
        sizes = self._sizes(opened.subject, opened.ml)
        clean, names = records[0], list(records[-1].attacks)
        worst = list(clean.lowest)
        out = []
        for record in records:
            worst = [
                a if b is None else b if a is None else min(a, b)
                for a, b in zip(worst, record.lowest, strict=True)
            ]
            columns = {
                "worst": worst,
                **{n: record.attacks[n].dice if record.attacks else clean.lowest for n in names},
            }
            for attack_name, dice in columns.items():
                for cls, value, size in zip(classes.foreground, dice, sizes, strict=True):
                    shown, note = noted(value, size)
                    out.append(
                        RobustRow(
                            case.id, case.patient, case.site, cls, attack_name, record.eps, shown, size, note
                        )
                    )
        return out

    def _sizes(self, subject: Subject, ml: float) -> list[float]:
        """Return the size of each foreground class in what is attacked."""
        hot = subject.truth.hot[0].flatten(1).sum(1).tolist()
        classes = self.model.plan.classes
        return [float(n) * ml for n in (hot if classes.regions else hot[1:])]

    def _minimum(self, case: Case, records: Sequence[CaseRecord], bar: float) -> MinimumRow:
        """Return the smallest strength known to break a case: of FAB, or the first tried that did."""
        tried = [r.eps for r in records if r.score < bar]
        found = [r.minimum for r in records if r.minimum is not None and r.minimum <= records[-1].eps]
        smallest = min([*tried[:1], *found], default=None)
        return MinimumRow(case.id, case.patient, case.site, "worst", smallest)

    def _guards(self, done: dict[str, list[CaseRecord]], bar: float) -> list[dict[str, Any]]:

        last = [records[-1] for records in done.values()]
        names = list(last[0].attacks)
        score = {n: np.array([r.attacks[n].score for r in last]) for n in names}
        white = [score[n] for n in names if n not in (*BLACK_BOX, NOISE)]
        black = [score[n] for n in names if n in BLACK_BOX]
        n = sum(len(r.attacks) for records in done.values() for r in records)
        clean = np.array([records[0].score for records in done.values()])
        flagged = [[f for a in r.attacks.values() for f in a.flags] for r in last]
        climbed = {n: [r.attacks[n].climbed for r in last] for n in names}
        out = [
            guards.kept_inside(n),
            guards.noise(clean, score[NOISE], np.array([r.score for r in last])),
            guards.moved(clean, np.array([r.score for r in last])),
            guards.flags(flagged),
            guards.climbing(climbed),
        ]
        if repeated := [(r.score, r.again) for r in last if r.again is not None]:
            out.append(guards.repeatable(*np.array(repeated).T))
        if white and black:
            out.append(guards.order(np.minimum.reduce(white), np.minimum.reduce(black)))
        if self.checked:
            harder = self.suite(self.effort.doubled(), bar)
            strengths = list(enumerate(self.epsilons))[1:]
            twice = [[self.record(c, e, harder).score for c in self.checked] for _, e in strengths]
            once = [[done[c.id][i].score for c in self.checked] for i, _ in strengths]
            out.append(guards.converged(np.array(once), np.array(twice), [str(e) for _, e in strengths]))
            single = self.suite(self.effort, bar, "quick" if white else "blackbox")
            left = [self.record(c, Epsilon(1.0, "range"), single).score for c in self.checked]
            out.append(guards.unbounded(np.array(left)))
        return guards.as_json(out)

    def _summary(
        self, done: dict[str, list[CaseRecord]], bar: float, guards: list[dict[str, Any]]
    ) -> dict[str, Any]:

        o, plan = self.options, self.model.plan
        hit = [r for records in done.values() for r in records[1:]]
        sizes: dict[str, dict[str, float]] = {}
        for i, c in enumerate(plan.channels):
            for records in zip(*done.values(), strict=True):
                for what, of in (
                    ("file", [r.native[i] for r in records]),
                    ("scaled", [r.scaled[i] for r in records]),
                ):
                    sizes.setdefault(f"{c.name}, {what}", {})[f"{records[0].eps:g}"] = float(np.median(of))
        calls = [a for r in hit for a in r.attacks.values()]
        seconds, predict = np.mean([r.seconds for r in hit]), np.mean([r.predict_s for r in hit])
        return {
            "setting": {
                "suite": o.suite, "where": "volume" if o.whole_volume else "patch", "iterations": o.steps,
                "restarts": o.restarts, "queries": o.queries, "seed": o.seed, "threshold": bar, "box": o.box,
                "center": o.center, "cases": o.cases, "eps_unit": UNITS[self.epsilons[-1].unit],
                "unit": plan.unit, **({"set": tuning.told(o.settings)} if o.settings else {}),
            },
            "eps": [e.number for e in self.epsilons],
            "attacks": ["worst", *hit[0].attacks],
            "native_eps": sizes,
            "guards": guards,
            "cost": {
                "attack_s_per_case": float(seconds),
                "predict_s_per_case": float(predict),
                "forwards": sum(a.forwards for a in calls),
                "backwards": sum(a.backwards for a in calls),
            },
            "cases": len(done),
        }  # fmt: skip

    def _examples(self, done: dict[str, list[CaseRecord]]) -> None:
        """Keep the slices of the cases that fell lowest at the largest strength, for the report."""
        folder = self.folder / "examples"
        shutil.rmtree(folder, ignore_errors=True)
        spacing = self.model.plan.spacing
        worst = sorted(done.values(), key=lambda records: (records[-1].score, records[-1].case))
        for n, records in enumerate(worst[:EXAMPLES]):
            source = (self.folder / "cases" / f"{records[-1].key[:24]}.npz").read_bytes()
            write_bytes(folder / f"{n}.npz", source)
            with np.load(folder / f"{n}.npz", allow_pickle=False) as arrays:
                axis = int(arrays["axis"][0])
            facts = {
                "case": records[-1].case,
                "attack": records[-1].by,
                "eps": records[-1].eps,
                "dice_clean": records[0].score,
                "dice_attacked": records[-1].score,
                "spacing": [s for a, s in enumerate(spacing) if a != axis],
                "axis": axis,
                "oriented": self.model.plan.unit != "px",
                "channel": self.model.plan.channels[0].name,
            }
            write_json(folder / f"{n}.json", facts)


def noted(dice: float | None, size: float) -> tuple[float | None, str]:
    """Return the value of a table and its note, by the conventions of the evaluation."""
    if dice is None:
        return None, "not annotated"
    if size == 0:
        return (None, "both empty") if dice == 1 else (0.0, "false alarm")
    return dice, "missed" if dice == 0 else ""
