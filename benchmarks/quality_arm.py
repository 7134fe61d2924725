"""One arm in a process of its own, so that its CPU time is its own: `python -m benchmarks.quality_arm ARM`.

ARM holds request.json (work, cases, kind, settings, seed, run, start, and second where there is one); ranks and lists
as .npy files come beside it, and answers.json last.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.quality_arms import ARMS, Cases, Runs
from recsys.datasets.prepared import PreparedData
from recsys.storage import read_json, write_json_atomically


def main(arm: Path) -> None:
    """Read the request, fit, answer, write; answers.json last."""
    request = read_json(arm / "request.json")
    data = PreparedData.load(Path(request["work"]))
    cases = Cases.of(data, request["cases"])
    arm_of_kind = ARMS[request["kind"]]
    second = Path(request["second"]) if "second" in request else None
    runs = Runs(Path(request["run"]), Path(request["start"]), second)
    answers = arm_of_kind(data, cases, request["settings"], seed=request["seed"], runs=runs)
    for view, answered in answers.views.items():
        np.save(arm / f"ranks_{view}.npy", answered.ranks)
        np.save(arm / f"lists_{view}.npy", answered.lists)
    value = {"details": answers.details, "carried_cpu_seconds": answers.carried_cpu_seconds}
    write_json_atomically(arm / "answers.json", value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
