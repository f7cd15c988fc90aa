"""The compiled arithmetic is the arithmetic that is written down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from sentinel.adapters.models import load_model, model_path, save_model
from sentinel.model import archive, kernel
from sentinel.model.score import Scorer
from sentinel.model.slabs import Slabs
from sentinel.records import Channel
from tests import fleets

TICKS = 110
SCRIPT = """
import json, sys
import numba
from pathlib import Path
from tests.test_kernel import scores
assert numba.config.DISABLE_JIT
print(json.dumps(scores(Path(sys.argv[1]))))
"""


def scores(path: Path) -> list[list[float]]:
    """Score and each channel's surprise of a device's ticks with a fault and holes, with a gate set."""
    detector = archive.unpack(*load_model(path))
    scorer = Scorer(detector, {"heat": Channel("heat", min_deviation=0.1)}, 1 / 604800, None)
    slabs = Slabs(scorer.layout, torch.device("cpu"), 2)
    scorer.begin(slabs, np.arange(2))
    values = fleets.healthy(TICKS, 0, 5)
    values[60:70, 1] += 40.0
    values[80:85, 0] = np.nan
    out = []
    for t, row in enumerate(values):
        x = detector.scale.scaled(row[None], row[None])
        time, first = np.array([fleets.START + t]), np.array([t == 0])
        scored = scorer.observe(slabs, np.array([1]), x, np.ones(1), time, first)
        out.append([float(scored.score[0]), *scored.own[0].tolist()])
    return out


def test_a_compilation_is_told_once_before_it_begins_and_none_is_not() -> None:
    compiled: list[str] = []
    once, again = numba.njit(lambda x: x + 1), numba.njit(lambda x: x + 2)
    with kernel.first_compilation(lambda: compiled.append("now")):
        assert (once(1), again(1)) == (2, 3)
    assert compiled == ["now"]
    with kernel.first_compilation(lambda: compiled.append("again")):
        once(1)
    assert compiled == ["now"]


@pytest.mark.parametrize("declared", [False, True], ids=["live", "declared"])
def test_compiled_or_not_the_scores_are_the_same(tmp_path: Path, declared: bool) -> None:
    tensors, manifest = archive.pack(fleets.learned(declared=declared).detector)
    path = model_path(tmp_path, "pump", save_model(tmp_path, "pump", tensors, manifest))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    compiled = np.array(scores(path))
    assert np.nanmax(compiled[:, 0]) > 0.5
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), compiled, rtol=1e-3, atol=1e-4)
