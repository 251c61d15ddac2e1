"""Work in files: workers share it, die and come back, and each file is made once."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from icthp import shards

WORKER = """
import os, signal, sys, time
from pathlib import Path
from icthp import files, shards
folder, log, count, die_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
places = [folder / f"{k:03d}.txt" for k in range(count)]
made = 0
def note(text):
    with open(log, "a") as file:
        file.write(text + "\\n")
def make(k):
    global made
    note(f"began {k}")
    time.sleep(0.03)
    made += 1
    if made == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    files.save_text(places[k], f"the contents of {k}")
    note(f"made {k}")
shards.WAIT = 0.05
shards.make_all(places, make, lambda k: places[k].exists())
"""


@pytest.mark.slow
def test_four_workers_of_which_two_are_killed_make_each_file_once(tmp_path):
    """The survivors take over what the killed ones had begun; a worker that comes back finds the rest done."""
    count, log = 40, tmp_path / "log.txt"
    deaths = [random.randint(2, 5), random.randint(2, 5), 0, 0]
    run = lambda die_at: subprocess.Popen([sys.executable, "-c", WORKER, tmp_path / "out", log, str(count), str(die_at)])
    workers = [run(die_at) for die_at in deaths]
    assert [worker.wait(120) for worker in workers] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert run(0).wait(60) == 0
    began, made = (Counter(line.split()[1] for line in log.read_text().splitlines() if line.startswith(word)) for word in ("began", "made"))
    assert made == {str(k): 1 for k in range(count)} and began.total() == count + 2, f"killed at {deaths}"
    contents = [(tmp_path / f"out/{k:03d}.txt").read_text() for k in range(count)]
    assert contents == [f"the contents of {k}" for k in range(count)]
    assert len(list((tmp_path / "out").glob("*.txt"))) == count and not list((tmp_path / "out").glob(".*.lock"))


def test_a_worker_waits_for_what_another_one_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "WAIT", 0.01)
    from filelock import FileLock

    lock = FileLock(tmp_path / ".a.lock")
    lock.acquire()
    looks = []

    def is_whole(k):
        looks.append(k)
        if len(looks) == 4:
            lock.release()
        return (tmp_path / "a").exists()

    began = time.monotonic()
    shards.make_all([tmp_path / "a"], lambda k: (tmp_path / "a").write_text("mine"), is_whole)
    assert (tmp_path / "a").read_text() == "mine" and time.monotonic() - began < 5


def test_an_error_leaves_the_file_to_others(tmp_path):
    def fail(k):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        shards.make_all([tmp_path / "a"], fail, lambda k: (tmp_path / "a").exists())
    shards.make_all([tmp_path / "a"], lambda k: (tmp_path / "a").write_text(""), lambda k: (tmp_path / "a").exists())
    assert (tmp_path / "a").exists()
