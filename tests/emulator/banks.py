"""Cycles that LDS accesses take, by bank conflicts.

A wave's access is served in phases of lanes; a phase takes as many cycles as the busiest bank has different dwords to give.
Measured on CDNA4 (HipKittens, arXiv 2511.08083, table 5): ds_read_b128 with 64 banks in four phases, ds_read_b64 with 64
banks in two, ds_write_b64 with 32 banks in four. The other sizes are assumed alike: reads over 64 banks and writes over 32,
in as many phases as bring 64 or 32 dwords each.

CDNA3 has 32 banks. ds_write_b128 is served in phases of eight lanes in a row, and ds_read_b128 in those below (AMD, ROCm blogs,
"Avoiding LDS Bank Conflicts on AMD GPUs Using CK-Tile Framework"); the other sizes are assumed to be so in a row.
"""

import numpy as np

_FIRST = [*range(4), *range(12, 16), *range(20, 28)]
_SECOND = [*range(4, 12), *range(16, 20), *range(28, 32)]
READ_128 = np.array([_FIRST, _SECOND, [lane + 32 for lane in _FIRST], [lane + 32 for lane in _SECOND]])
_STARTS_CDNA3 = [(0, 20), (4, 16), (8, 28), (12, 24)]
READ_128_CDNA3 = np.array(
    [[*range(first + half, first + half + 4), *range(other + half, other + half + 4)]
     for half in (0, 32) for first, other in _STARTS_CDNA3]
)  # fmt: skip


def phases(size: int, direction: str, arch: str = "gfx950") -> tuple[np.ndarray, int]:
    """(lanes of each phase, banks)."""
    dwords = {1: 1, 2: 1, 4: 1, 8: 2, 12: 4, 16: 4}[size]
    if arch == "gfx942":
        together = READ_128_CDNA3 if direction == "read" and size == 16 else np.arange(64).reshape(-1, 32 // dwords)
        return together, 32
    if direction == "read" and size == 16:
        return READ_128, 64
    banks = 64 if direction == "read" else 32
    return np.arange(64).reshape(-1, banks // dwords), banks


def cycles(addresses: np.ndarray, active: np.ndarray, size: int, direction: str, arch: str = "gfx950") -> tuple[int, int]:
    """(cycles, cycles without a conflict) of byte addresses [waves, 64]; phases without active lanes take none."""
    groups, banks = phases(size, direction, arch)
    count = max(1, size // 4)
    dwords = (addresses.astype(np.int64) >> 2)[:, groups][..., None] + np.arange(count)
    present = active[:, groups]
    dwords = np.where(present[..., None], dwords, -1).reshape(-1, groups.shape[1] * count)
    dwords = np.sort(dwords, axis=1)
    fresh = dwords >= 0
    fresh[:, 1:] &= dwords[:, 1:] != dwords[:, :-1]
    rows = np.arange(len(dwords))[:, None]
    load = np.bincount((rows * banks + dwords % banks)[fresh], minlength=len(dwords) * banks).reshape(-1, banks)
    return int(load.max(axis=1).sum()), int(present.any(axis=2).sum())
