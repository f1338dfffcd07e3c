"""Messages of a federated data factory, and what it makes: `python benchmarks/factory_bytes.py --work W`

The cones of factory_cones.py, each look a site of a federation that trains a factory of preset `tiny`,
16 pixels: with whole messages (generator, discriminator and averaged generator, 4 bytes a number), as int8
both ways, and as int8 with the discriminator kept at its site. Of slices made for every site: the distance
to real ones, as scored at training, what a classifier of real ones takes for that site, and the rank
correlation of position and area. Bytes are counted by the server, both ways. Written to
benchmarks/factory_bytes.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import factory_cones as cones

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "experiments"))

from arms import seguro  # noqa: E402

from seguro.core.files import write_json  # noqa: E402
from seguro.core.stage import machine  # noqa: E402
from seguro.federated.record import lines  # noqa: E402

OUT = HERE / "factory_bytes.json"
INT8 = ("--strategy", "coding=int8", "--strategy", "down=int8")
ARMS: Mapping[str, Sequence[str]] = {
    "whole": (),
    "int8": INT8,
    "int8, discriminator local": (*INT8, "--set", "discriminator=local"),
}


def trained(data: Path, work: Path, arm: str, given: argparse.Namespace, seed: int) -> Path:
    """Return the run of an arm, trained where it is not there yet."""
    home = work / f"{data.name}.seguro"
    name = f"{arm.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    settled = work / "factory_bytes.yaml"
    write_json(settled, {"plan": {"dims": 2, "memory_gib": 0.02, "slices": "axial"}})  # JSON is YAML
    seguro(
        "federate", "simulate", data, "--out", home, "--config", settled, "--method", "factory",
        "--preset", "tiny", "--batch", 8, "--rounds", given.rounds, "--updates", given.updates,
        "--set", f"size={cones.SIZE}", "--set", f"full={cones.SIZE}",
        "--strategy", f"evaluate_every={given.rounds}", *ARMS[arm], "--seed", seed, "--name", name,
    )  # fmt: skip
    return home / "runs" / name


def told(run: Path, seed: int) -> dict[str, Any]:
    """Return what was sent, and what the last round's weights make."""
    rounds = lines(run)
    sent = sum(n for r in rounds for way in ("bytes_up", "bytes_down") for n in r[way].values())
    return {"megabytes": round(sent / 1e6, 2), "sites": cones.looked_at(run, seed)}


def mean(one: Mapping[str, Any], metric: str) -> float:
    """Return a number of the sites of one run, averaged."""
    found = [float(site[metric]) for site in one["sites"].values()]
    return sum(found) / len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(), help="where the workspaces lie")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--updates", type=int, default=100, help="of a site in a round")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    data = cones.written(given.work / "cones")
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS:
        runs = [trained(data, given.work, arm, given, seed) for seed in range(given.seeds)]
        found[arm] = [told(run, seed) for seed, run in enumerate(runs)]
    facts = {"machine": machine(), "seeds": list(range(given.seeds)), "made": cones.MADE}
    write_json(OUT, {**facts, "rounds": given.rounds, "updates": given.updates, "batch": 8, "arms": found})
    for arm, runs in found.items():
        for one in runs:
            print(
                arm, one["megabytes"], "MB", {m: round(mean(one, m), 3) for m in ("distance", "recognized")}
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
