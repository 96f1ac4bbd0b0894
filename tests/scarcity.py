"""What a process runs short of, taken away for a moment."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_new_threads() -> Iterator[None]:
    """Let the system refuse every new thread of this process, as it does at a limit on processes."""
    before = threading.stack_size(1 << 47)  # bytes: more than there are addresses
    try:
        yield
    finally:
        threading.stack_size(before)
