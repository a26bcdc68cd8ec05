"""What the variants in plain torch share: how much they compute at a time."""

CHUNK_BYTES = 2**28  # of scores: rows * heads * keys in the accumulation type
KEY_TILE = 8192
