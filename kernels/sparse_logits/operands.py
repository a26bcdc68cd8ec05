"""What the sparse logits, in fp8 and in MX formats, and the functions that share their work out take."""

from typing import Annotated, NamedTuple, TypeAlias

import torch

from ..common.cache import CACHE, LENGTHS, NEXT, TABLE
from ..common.logits import FLOATS, FP8, QUERY_SIZES
from ..common.mx_operands import VALUES
from ..common.operands import Limit, Operand, Operands
from ..mqa_logits import operands as dense
from ..mx_logits import operands as mx_dense
from ..mx_paged_logits import operands as mx_paged
from ..paged_mqa_logits.operands import QUERIES, WORKERS

SCHEDULE = Operand(((WORKERS, 2),), (torch.int32,), (Limit(WORKERS, 2),))
LISTS = Operand((("L", "C"),), (torch.int32,))
WINDOW = Operand((("S",),), (torch.int32,))


class Dense(NamedTuple):
    """The tensors of a call of sparse_mqa_logits, but for the output."""

    q: Annotated[torch.Tensor, Operand((("S", "H", "D"),), tuple(FP8), QUERY_SIZES)]
    k: Annotated[torch.Tensor, dense.OPERANDS.rows["k"]]
    k_scale: Annotated[torch.Tensor, dense.OPERANDS.rows["k_scale"]]  # variants get one of shape [N]
    weights: Annotated[torch.Tensor, Operand((("S", "H"),), tuple(FLOATS))]
    starts: Annotated[torch.Tensor, WINDOW]
    ends: Annotated[torch.Tensor, WINDOW]
    candidates: Annotated[torch.Tensor, LISTS]
    schedule: Annotated[torch.Tensor | None, SCHEDULE] = None


class Paged(NamedTuple):
    """The tensors of a call of paged_sparse_mqa_logits, but for the output."""

    q: Annotated[torch.Tensor, QUERIES]
    kv_cache: Annotated[torch.Tensor, CACHE]
    weights: Annotated[torch.Tensor, Operand((("B * next_n", "H"),), tuple(FLOATS))]
    context_lens: Annotated[torch.Tensor, LENGTHS]
    block_table: Annotated[torch.Tensor, TABLE]
    candidates: Annotated[torch.Tensor, LISTS]
    schedule: Annotated[torch.Tensor | None, SCHEDULE] = None


class MxDense(NamedTuple):
    """The tensors of a call of mx_sparse_mqa_logits, but for the output."""

    q: Annotated[torch.Tensor, mx_dense.OPERANDS.rows["q"]]
    q_scale: Annotated[torch.Tensor, mx_dense.OPERANDS.rows["q_scale"]]
    k: Annotated[torch.Tensor, mx_dense.OPERANDS.rows["k"]]
    k_scale: Annotated[torch.Tensor, mx_dense.OPERANDS.rows["k_scale"]]
    weights: Annotated[torch.Tensor, mx_dense.OPERANDS.rows["weights"]]
    starts: Annotated[torch.Tensor, WINDOW]
    ends: Annotated[torch.Tensor, WINDOW]
    candidates: Annotated[torch.Tensor, LISTS]
    schedule: Annotated[torch.Tensor | None, SCHEDULE] = None


class MxPaged(NamedTuple):
    """The tensors of a call of mx_paged_sparse_mqa_logits, but for the output."""

    q: Annotated[torch.Tensor, mx_paged.QUERIES]
    q_scale: Annotated[torch.Tensor, mx_paged.OPERANDS.rows["q_scale"]]
    kv_cache: Annotated[torch.Tensor, mx_paged.CACHE]
    weights: Annotated[torch.Tensor, mx_paged.OPERANDS.rows["weights"]]
    context_lens: Annotated[torch.Tensor, LENGTHS]
    block_table: Annotated[torch.Tensor, TABLE]
    candidates: Annotated[torch.Tensor, LISTS]
    schedule: Annotated[torch.Tensor | None, SCHEDULE] = None


class Shared(NamedTuple):
    """What is shared out: the windows of rows, or the keys that rows of requests see."""

    ends: Annotated[torch.Tensor, Operand((("S",), ("B", "next_n")), (torch.int32,), (NEXT,))]
    starts: Annotated[torch.Tensor | None, WINDOW] = None


class Queried(NamedTuple):
    """What says how many workers a schedule should have."""

    q: Annotated[torch.Tensor, Operand((("S", "H", "D"), ("B", "next_n", "H", "D")), tuple(FP8), QUERY_SIZES)]


class MxQueried(NamedTuple):
    """As :class:`Queried` of queries in MX formats."""

    q: Annotated[
        torch.Tensor,
        Operand((("S", "H", "Dq"), ("B", "next_n", "H", "Dq")), VALUES, mx_dense.OPERANDS.rows["q"].limits),
    ]


Packed: TypeAlias = Dense | MxDense
Cached: TypeAlias = Paged | MxPaged
Mx: TypeAlias = MxDense | MxPaged
Inputs: TypeAlias = Packed | Cached
DENSE, PAGED, SHARED, QUERIED = Operands(Dense), Operands(Paged), Operands(Shared), Operands(Queried)
MX_DENSE, MX_PAGED, MX_QUERIED = Operands(MxDense), Operands(MxPaged), Operands(MxQueried)
