"""Where requests' keys lie in a paged cache: scattered blocks, and the slot of every key."""

import torch


def scattered_table(lens: torch.Tensor, block: int, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """A block table [B, blocks of the longest request] int32 for ``lens`` [B], and how many blocks it names, each once.

    The blocks are in an order drawn from ``generator``; entries past a request's keys are 0.
    """
    blocks = (lens.long() + block - 1) // block
    held = torch.arange(int(blocks.max()), device=lens.device) < blocks[:, None]
    pages = torch.randperm(int(blocks.sum()), generator=generator, device=lens.device, dtype=torch.int32)
    return torch.zeros(held.shape, dtype=torch.int32, device=lens.device).masked_scatter_(held, pages), len(pages)


def slots(block_table: torch.Tensor, lens: torch.Tensor, block: int) -> torch.Tensor:
    """The slot of every key, [sum of lens] int64, the requests side by side: what quantize_keys_to_cache takes."""
    position = torch.arange(int(lens.max()), device=lens.device).expand(len(lens), -1)
    slot = block_table.long().gather(1, position // block) * block + position % block
    return slot[position < lens[:, None]]
