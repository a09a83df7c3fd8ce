"""Timings of calls and the memory of the process: what the benchmarks of speed measure with."""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHORTEST_REPEAT = 0.1  # seconds; calls that are faster are timed several in a row
LONG_CALL = 1.0  # seconds; calls that are slower need no second warm-up


def measure(
    call: Callable[[], Any],
    wait: Callable[[Any], Any],
    repeats: int,
    seconds: float,
    after_first: Callable[[], float | None] = lambda: None,
) -> dict[str, float | None]:
    """Times a call.

    The second call is a warm-up too, unless it takes longer than `LONG_CALL`.

    Args:
        call: what to time.
        wait: returns when the result of a call is there.
        repeats: timings after the warm-up, at most.
        seconds: after which no timing begins; there is one at least.
        after_first: called between the first call and the others.

    Returns:
        Seconds of the best and the median repeat, the number of repeats, the seconds that the first call took more
        (compilation), and as `at_rest` what `after_first` returned.
    """
    deadline = time.perf_counter() + seconds
    first = _seconds_of(call, wait)
    at_rest = after_first()
    second = _seconds_of(call, wait)
    number = math.ceil(SHORTEST_REPEAT / second)
    times = [second] if second >= LONG_CALL else []
    while len(times) < repeats and (not times or time.perf_counter() + number * min(times) < deadline):
        times.append(_seconds_of(call, wait, number))
    best = min(times)
    return {
        'best': best,
        'median': statistics.median(times),
        'repeats': len(times),
        'compile': max(0.0, first - best),
        'at_rest': at_rest,
    }


def _seconds_of(call, wait, number=1):
    """Seconds of one of `number` calls in a row."""
    started = time.perf_counter()
    for _ in range(number):
        result = call()
    wait(result)
    return (time.perf_counter() - started) / number


def reset_peak_memory() -> float | None:
    """Makes Linux count the peak of this process's resident memory from here on; returns its present value, in MB.

    None where the system has no such count.
    """
    try:
        Path('/proc/self/clear_refs').write_text('5')
        return peak_resident_memory()
    except OSError:
        return None


def peak_resident_memory() -> float:
    """Peak of this process's resident memory since the last reset, in MB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith('VmHWM'))
