"""JAX's persistent compilation cache: a later process need not compile the same programs again."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from patterson_jax.writing import user_cache_directory

LARGEST = 2**30  # bytes of all entries together; the oldest above that are removed
SHORTEST_COMPILATION = 0.05  # seconds; faster compilations are not kept


def enable_compilation_cache(directory: str | Path | None = None) -> Path | None:
    """Keeps compiled programs in a directory, for later processes on machines of the same kind.

    If JAX has a directory already, for example from the environment variable JAX_COMPILATION_CACHE_DIR, it keeps that
    unless `directory` is given. JAX_ENABLE_COMPILATION_CACHE=false switches the cache off.

    On a processor with AVX-512, JAX prints long lines about `+prefer-no-gather` for programs from the cache (jax issue
    38445). They are wrong. They are not printed if TF_CPP_MIN_LOG_LEVEL is 3 before JAX is imported.

    Args:
        directory: default `patterson_jax` in the user's cache directory, $XDG_CACHE_HOME or ~/.cache.

    Returns:
        The directory for machines of this kind; None if it cannot be written to, and then nothing is kept.
    """
    options: Any = jax.config  # JAX makes its attributes at run time
    if not options.jax_enable_compilation_cache:
        return None
    if directory is None and options.jax_compilation_cache_dir:
        return Path(options.jax_compilation_cache_dir)
    try:
        place = (user_cache_directory() if directory is None else Path(directory).expanduser().absolute()) / _machine()
        place.mkdir(parents=True, exist_ok=True)
        _remove_oldest(place)
    except (OSError, RuntimeError):  # the latter without a home directory
        return None
    if not os.access(place, os.W_OK | os.X_OK):
        return None
    options.update('jax_compilation_cache_dir', str(place))
    options.update('jax_persistent_cache_min_compile_time_secs', SHORTEST_COMPILATION)
    return place


def _machine():
    """A name for machines with these instructions: homes are shared, and programs for other machines may crash."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        instructions = next(line for line in lines if line.startswith(('flags', 'Features')))
    except (OSError, StopIteration):
        instructions = platform.processor()
    return hashlib.sha256(f'{platform.machine()} {instructions}'.encode()).hexdigest()[:16]


def _remove_oldest(place):
    """Removes the oldest entries while all entries together are too large."""
    entries = [(entry.stat(), Path(entry.path)) for entry in os.scandir(place) if entry.is_file()]
    total = sum(status.st_size for status, _ in entries)
    for status, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
        if total <= LARGEST:
            break
        path.unlink(missing_ok=True)
        total -= status.st_size
