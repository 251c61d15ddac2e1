"""Work in files, shared by any number of workers: processes of one launch or of several, on one machine or on many over a shared file
system. Nothing but the files is common to them, so a worker may join, die or come back at any time."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

WAIT = 1.0  # seconds between two looks at what other workers hold


def make_all(files: Sequence[Path], make: Callable[[int], object], is_whole: Callable[[int], bool], label: str = "") -> None:
    """Return when all files are whole; make(k) writes files[k], whole or not at all.

    Each worker that calls this takes a file that is not whole and that no other holds, by a lock beside it, which the system frees when
    its holder dies: what a killed worker had begun another one makes. An error of `make` ends this worker alone."""
    missing = [k for k in range(len(files)) if not is_whole(k)]
    with tqdm(desc=label, total=len(files), initial=len(files) - len(missing), unit="file", mininterval=5, disable=not missing) as bar:
        while missing:
            busy = [k for k in missing if not _make_unless_held(files[k], k, make, is_whole, bar)]
            if busy:
                time.sleep(WAIT)
            missing = [k for k in busy if not is_whole(k)]
            bar.update(len(busy) - len(missing))


def _make_unless_held(file: Path, k: int, make, is_whole, bar: tqdm) -> bool:
    """False where another worker holds it."""
    lock = file.with_name(f".{file.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            if not is_whole(k):  # another worker may have been faster
                make(k)
            lock.unlink(missing_ok=True)
    except Timeout:
        return False
    bar.update()
    return True


def is_whole_parquet(file: Path, rows: int) -> bool:
    """Is it there with so many rows? A parquet file that was cut has lost its end, where their number stands."""
    try:
        return pq.read_metadata(file).num_rows == rows
    except (OSError, pa.ArrowInvalid):
        return False
