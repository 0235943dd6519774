"""How much memory a piece of work on data from outside may take."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def memory_limit(most: int) -> Iterator[None]:
    """Meanwhile this process may take so many bytes more than it has; beyond them there is a MemoryError.

    Memory-mapped files do not count. The limit is the whole process's, so other threads share it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
    wanted = pages * resource.getpagesize() + most
    limits = [limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
