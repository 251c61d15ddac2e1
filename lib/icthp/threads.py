"""The same work on many rows, in threads: reading and writing pictures leaves Python's lock free."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

SECONDS = 5  # before a bar is shown


def each(function: Callable, rows: Iterable, label: str = "", workers: int | None = None) -> list:
    """[function(row) for row in rows] on `workers` threads (None: one a core), with a bar where it takes long. The first error is raised;
    what has not begun by then is not begun."""
    rows = list(rows)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = pool.map(function, rows)
        try:
            return list(tqdm(results, label, len(rows), delay=SECONDS, mininterval=SECONDS))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
