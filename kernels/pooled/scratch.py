"""What a call of `select_pooled` on the processor allocates that grows with the context: an upper
bound, for the memory plan.
"""

from __future__ import annotations

PANEL = 256  # entries, as csrc/cpu/isa/pooled.cpp has it


def cpu_scratch_bytes(rows: int, owners: int, entries: int, threads: int) -> int:
    """Bytes of a call of so many rows with weights that are not probabilities.

    Where the lists are fewer than the threads, these share the entries of each, and keep what all
    of them weigh.
    """
    shared = min(rows * owners, threads - 1)
    return 4 * shared * (-(-entries // PANEL) + 1) * PANEL
