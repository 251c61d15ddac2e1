"""Time and memory of a function."""

import itertools
import subprocess
import sys

import torch

from conftest import ROOT
from icthp import timing

SCRIPT = "import torch; from icthp import timing; print(timing.peak_bytes(lambda: torch.ones(1000) + 1))"


def test_memory_is_counted_in_silence():
    """In a process of its own: the profiler's own messages go past Python's stderr, into notebooks too."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={"PATH": "", "PYTHONPATH": str(ROOT / "lib")})
    assert done.returncode == 0 and done.stderr == "" and int(done.stdout) >= 8000  # both tensors of float32


def test_runners_take_turns():
    """Each once to warm up, then in turn; what is faster than the clock's grain several times in a turn."""
    made = []
    times = timing.benchmark({name: lambda name=name: made.append(name) or torch.ones(10).sum() for name in "ab"}, repeats=3)
    assert "".join(name for name, _ in itertools.groupby(made)) == "ab" * 4 and len(made) > 8
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert all(0 <= second < 2e-3 for seconds in times.values() for second in seconds)
