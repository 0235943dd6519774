"""A memory limit for work on data that is not trusted."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def memory_limit(most: int) -> Iterator[None]:
    """Limit this process to `most` more bytes than it has; beyond them Python raises MemoryError.

    Memory-mapped files do not count. All threads of the process share the limit.
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
