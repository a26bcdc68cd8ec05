"""Where a paged key cache holds its keys and scales.

The cache is declared [num_blocks, block, 1, D + 4] in bytes, but a block is flat: block * D bytes of keys, then block * 4 bytes
of float32 scales. Blocks may lie further apart than they are long.
"""

import torch

BLOCK_SIZES = (1, 16, 32, 64, 128)
SCALE_BYTES = 4


def check_cache(kv_cache: torch.Tensor, dims: tuple[int, ...]) -> int:
    """Raise TypeError or ValueError for what is no cache of keys of one of the ``dims``; return the dimension."""
    if not isinstance(kv_cache, torch.Tensor):
        raise TypeError(f"kv_cache: got {type(kv_cache).__name__}, needs a torch.Tensor")
    if kv_cache.dtype != torch.uint8:
        raise TypeError(f"kv_cache: got {kv_cache.dtype}, needs torch.uint8")
    shape, widths = tuple(kv_cache.shape), tuple(dim + SCALE_BYTES for dim in dims)
    if len(shape) != 4 or shape[1] not in BLOCK_SIZES or shape[2] != 1 or shape[3] not in widths:
        raise ValueError(
            f"kv_cache: got shape {shape}, needs [num_blocks, block, 1, D + {SCALE_BYTES}] "
            f"with block in {BLOCK_SIZES} and D {'in ' + str(dims) if len(dims) > 1 else dims[0]}"
        )
    block, width = shape[1], int(shape[3])
    flat = kv_cache.stride(3) == 1 and (block == 1 or kv_cache.stride(1) == width)
    if not flat or kv_cache.stride(0) % SCALE_BYTES or (shape[0] > 1 and kv_cache.stride(0) < block * width):
        raise ValueError(
            f"kv_cache: got strides {tuple(kv_cache.stride())}, needs blocks of adjacent bytes, "
            f"a multiple of {SCALE_BYTES} and at least {block * width} bytes apart"
        )
    return width - SCALE_BYTES


def check_positions(name: str, tensor: torch.Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise TypeError or ValueError for an int32 argument that has another type, shape or device."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, needs a torch.Tensor")
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, needs {list(shape)}")
    if tensor.dtype != torch.int32:
        raise TypeError(f"{name}: got {tensor.dtype}, needs torch.int32")
    if tensor.device != device:
        raise ValueError(f"{name}: got device {tensor.device}, needs {device}")


def keys_of(kv_cache: torch.Tensor) -> torch.Tensor:
    """The key bytes of a checked cache: a view of shape [num_blocks, block, D]."""
    blocks, block, _, width = kv_cache.shape
    dim = width - SCALE_BYTES
    return kv_cache.as_strided((blocks, block, dim), (kv_cache.stride(0), dim, 1), kv_cache.storage_offset())


def readable(kv_cache: torch.Tensor) -> torch.Tensor:
    """A checked cache, or where it has no block one of zeros: there is something to read in place of missing keys."""
    return kv_cache if kv_cache.shape[0] else kv_cache.new_zeros((1, *kv_cache.shape[1:]))


def scale_bytes_of(kv_cache: torch.Tensor) -> torch.Tensor:
    """The bytes of the scales of a checked cache: a view of shape [num_blocks, block, 4]."""
    blocks, block, _, width = kv_cache.shape
    offset = kv_cache.storage_offset() + (block * (width - SCALE_BYTES) if blocks else 0)
    return kv_cache.as_strided((blocks, block, SCALE_BYTES), (kv_cache.stride(0), SCALE_BYTES, 1), offset)


def check_address(kv_cache: torch.Tensor) -> None:
    """Raise ValueError for a cache whose scales are not aligned; apart from check_cache, since torch.compile cannot follow."""
    if not kv_cache.is_meta and kv_cache.data_ptr() % SCALE_BYTES:
        raise ValueError(f"kv_cache: got address {kv_cache.data_ptr():#x}, needs a multiple of {SCALE_BYTES}")


def scales_of(kv_cache: torch.Tensor) -> torch.Tensor:
    """The scales of a checked cache: a float32 view of shape [num_blocks, block]. ValueError where they are not aligned."""
    check_address(kv_cache)
    return scale_bytes_of(kv_cache).view(torch.float32)[:, :, 0]
