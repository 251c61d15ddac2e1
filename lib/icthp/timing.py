"""Time and memory of a function, to be compared within one run."""

import gc
import itertools
import os
import time
from collections.abc import Callable

import torch


def benchmark(runners: dict[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each runner, `repeats` times in turn, so that a busy machine slows all of them; once before that to warm up if
    repeats is over 1. On a CPU the processor time of all threads, on a GPU the time between two events."""
    timer = _gpu_seconds if device.startswith("cuda") else _cpu_seconds
    if repeats > 1:
        for work in runners.values():
            work()
    times = {name: [] for name in runners}
    for _ in range(repeats):
        for name, work in runners.items():
            times[name].append(timer(work))
    return times


def _cpu_seconds(work) -> float:
    start = time.process_time()
    count = 0
    while not count or time.process_time() - start < 2e-3:  # the clock has its own grain
        work()
        count += 1
    return (time.process_time() - start) / count


def _gpu_seconds(work) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that torch's allocator holds during `work`, above those at its start."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # above all levels: the profiler reports its own start and stop as errors
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(changes), default=0)
