"""Every call that is compiled: all operations, variants and output modes, at the sizes that tuning tables tell apart.

A call's name is its file's name and must outlive moves of the code; ``launches`` alone knows how a kernel is prepared.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

import torch

from capgate import compat
from capgate.kernels.common.schedule.operands import Inputs as ScheduleInputs
from capgate.kernels.common.schedule.operation import Problem as Scheduling
from capgate.kernels.key_cache.operands import Between, Gathered, Written
from capgate.kernels.key_cache.operation import Problem as Caching
from capgate.kernels.key_selection.operands import Inputs as SelectionInputs
from capgate.kernels.mqa_logits.operands import Inputs as DenseInputs
from capgate.kernels.paged_mqa_logits.operands import Inputs as PagedInputs

TARGETS = ("cuda:90", "hip:gfx950", "hip:gfx942")
HEADS, DIMS = (16, 32, 64, 128), (32, 64)  # and 128 dims, with each head count
SCORING = ("gluon_cdna3", "gluon_cdna4", "gluon_hopper", "classic")


class Call(NamedTuple):
    """One call of a variant; operands and options are those of its kernel's ``prepare``."""

    name: str
    operation: str
    variant: str
    problem: Any
    operands: tuple[Any, ...]
    options: dict[str, Any]


def calls(target: compat.Target) -> dict[str, Call]:
    """The calls that a target takes, by name."""
    every = (*dense(target), *paged(target), *selecting(target), *caching(target), *mx_formats(target), *sparse(target))
    taken = {call.name: call for call in every if accepted(call)}
    assert len({call.name for call in every}) == len(every), "two calls would share a file"
    return taken


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def integers(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int32)


def floats(problem: Any) -> tuple[torch.dtype, torch.dtype]:
    """Of a problem's weights and of its logits."""
    return getattr(torch, problem.weights_dtype), getattr(torch, problem.logits_dtype)


def formats(target: compat.Target) -> tuple[str, ...]:
    """The fp8 format that the target's matrix instructions read, then the one that is converted, if it takes one."""
    return ("float8_e4m3fnuz", "float8_e4m3fn") if target.label == "gfx942" else ("float8_e4m3fn",)


def dense(target: compat.Target) -> Iterator[Call]:
    operation = import_module("capgate.kernels.mqa_logits.operation")
    native, *converted = formats(target)
    kinds = [(heads, 128, mode, native, 4096) for heads in HEADS for mode in operation.MODES]
    kinds += [(64, dim, mode, native, 4096) for dim in DIMS for mode in operation.MODES]
    kinds += [(heads, 128, "unclean", other, 4096) for other in converted for heads in HEADS]
    kinds += [(100, 128, "clean", native, 4096), (64, 128, "clean", native, 64)]
    kinds += [(heads, 128, mode, native, 64) for heads in HEADS for mode in ("unclean", "compressed")]  # a few rows
    kinds += [(64, 128, "clean-bf16", native, 4096), (32, 128, "unclean-bf16", native, 4096)]
    for variant in SCORING:
        for heads, dim, mode, dtype, rows in kinds:
            problem = operation.example_problem(target, heads, dim, mode, dtype)
            fp8, window, (weights, logits) = getattr(torch, dtype), integers(rows), floats(problem)
            keys = (meta(8192, dim, dtype=fp8), meta(8192))
            tensors = (meta(rows, heads, dim, dtype=fp8), *keys, meta(rows, heads, dtype=weights))
            yield Call(
                f"fp8_mqa_logits.{variant}.{heads}x{dim}.{mode}.{rows}rows.{dtype}",
                "fp8_mqa_logits",
                variant,
                problem,
                (DenseInputs(*tensors, window, window), meta(rows, 8192, dtype=logits)),
                {"clean_logits": problem.clean_logits, "compressed": problem.compressed},
            )


def paged(target: compat.Target) -> Iterator[Call]:
    operation = import_module("capgate.kernels.paged_mqa_logits.operation")
    native, *converted = formats(target)
    kinds = [(heads, 128, mode, native, 64, 1, False) for heads in HEADS for mode in operation.MODES]
    kinds += [(64, dim, mode, native, 64, 1, False) for dim in DIMS for mode in operation.MODES]
    kinds += [(heads, 128, "unclean", other, 64, 1, False) for other in converted for heads in HEADS]
    kinds += [(heads, 128, "unclean", native, 64, next_n, False) for heads in HEADS for next_n in (2, 3, 6, 8)]
    kinds += [(64, 128, "clean", native, block, 1, False) for block in (1, 16, 32, 48, 96, 128, 256)]
    kinds += [(64, 128, "clean", native, 64, 2, True), (100, 128, "clean", native, 64, 1, False)]
    kinds += [(64, 128, "clean-bf16", native, 64, 1, False), (32, 128, "unclean-bf16", native, 64, 2, False)]
    of_layout = [(*kind, "flat") for kind in kinds]
    of_layout += [(64, 128, "clean", native, block, 1, False, "preshuffled") for block in (16, 48, 64)]
    for variant in SCORING:
        for heads, dim, mode, dtype, block, next_n, row_lens, layout in of_layout:
            aligned = block * (dim + 4) % 16 == 0  # what direct copies and tensor maps need of blocks
            problem = operation.example_problem(target, heads, dim, mode, dtype)._replace(
                block_size=block, next_n=next_n, direct_keys=aligned, tensor_maps=aligned, layout=layout
            )
            blocks, (weights, logits) = 65536 // block, floats(problem)
            inputs = PagedInputs(
                meta(256, next_n, heads, dim, dtype=getattr(torch, dtype)),
                meta(blocks, block, 1, dim + 4, dtype=torch.uint8),
                meta(256 * next_n, heads, dtype=weights),
                integers(256, next_n) if row_lens else integers(256),
                integers(256, blocks),
                integers(257, 2),
            )
            lens = "row_lens" if row_lens else "lens"
            kept = "" if layout == "flat" else f".{layout}"
            yield Call(
                f"fp8_paged_mqa_logits.{variant}.{heads}x{dim}.{mode}.block{block}.next{next_n}.{lens}.{dtype}{kept}",
                "fp8_paged_mqa_logits",
                variant,
                problem,
                (inputs, meta(256 * next_n, 65536, dtype=logits)),
                {"clean_logits": problem.clean_logits, "layout": layout},
            )


def selecting(target: compat.Target) -> Iterator[Call]:
    operation = import_module("capgate.kernels.key_selection.operation")
    rows = 4096
    # Columns, top_k, whether scores are returned, and keys of a compressed source; 65536 logits take two launches.
    kinds = [(8192, 2048, scores, None, False) for scores in (False, True)]
    kinds += [(512, 64, False, None, False), (16384, 2048, False, None, False), (65536, 2048, True, None, False)]
    kinds += [(8192, 512, False, None, True), (8192, 512, True, 65536, False), (8190, 512, False, None, False)]
    for columns, top_k, scores, num_keys, relative in kinds:
        source = "compressed" if num_keys else "whole"
        counted = "relative" if relative else "absolute"
        selected = (integers(rows, top_k), meta(rows, top_k) if scores else None)
        yield Call(
            f"select_keys.classic.{columns}.top{top_k}.{'scores' if scores else 'indices'}.{source}.{counted}",
            "select_keys",
            "classic",
            operation.example(target)._replace(top_k=top_k),
            (SelectionInputs(meta(rows, columns), integers(rows), integers(rows)), *selected),
            {"num_keys": num_keys, "relative": relative},
        )
    for dtype, page_size, name in ((torch.bfloat16, None, "bfloat16"), (torch.float32, 64, "pages")):
        given = (integers(rows), integers(rows, 128), None) if page_size else ()
        for columns in (8192, 65536):
            yield Call(
                f"select_keys.classic.{columns}.top2048.indices.{name}",
                "select_keys",
                "classic",
                operation.example(target),
                (
                    SelectionInputs(meta(rows, columns, dtype=dtype), integers(rows), integers(rows), *given),
                    integers(rows, 2048),
                    None,
                ),
                {"num_keys": None, "relative": False, "page_size": page_size or 1},
            )


def caching(target: compat.Target) -> Iterator[Call]:
    def cache(dim: int, block: int) -> torch.Tensor:
        return meta(1024, block, 1, dim + 4, dtype=torch.uint8)

    problem = Caching(target)
    # Of the keys that are written: dims, block, their dtype, the cache's, and the format of the scales.
    bf16, fn, fnuz = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz
    writes = [(dim, 64, bf16, fn, "fp32") for dim in (32, 64, 128)] + [(128, block, bf16, fn, "fp32") for block in (1, 16)]
    writes += [(128, 64, kind, fn, "fp32") for kind in (torch.float16, torch.float32)]
    writes += [(128, 64, bf16, fnuz, "fp32"), (128, 64, bf16, fn, "ue8m0")]
    for dim, block, kind, dtype, scales in writes:
        kinds = f"{str(kind)[6:]}.{str(dtype)[6:]}.{scales}"
        inputs = Written(meta(4096, dim, dtype=kind), cache(dim, block), meta(4096, dtype=torch.int64))
        options = {"dtype": dtype, "scale_format": scales}
        yield Call(
            f"quantize_keys_to_cache.classic.{dim}.block{block}.{kinds}",
            "quantize_keys_to_cache",
            "classic",
            problem,
            (inputs,),
            options,
        )
    for dim, block in ((32, 64), (64, 64), (128, 64), (128, 1), (128, 16)):
        operands = (cache(dim, block), integers(256, 64), integers(256))
        gathered = (Gathered(*operands), meta(4096, dim, dtype=torch.uint8), meta(4096))
        yield Call(f"gather_keys.classic.{dim}.block{block}", "gather_keys", "classic", problem, gathered, {})
    operands, tiles = (cache(128, 64), integers(256, 64)), {"layout": "preshuffled"}
    results = (meta(4096, 128, dtype=torch.uint8), meta(4096))
    for name, inputs, options in (
        ("preshuffled", Gathered(*operands, integers(256)), tiles),
        ("between", Between(*operands, integers(257)), {}),
        ("between.preshuffled", Between(*operands, integers(257)), tiles),
    ):
        yield Call(f"gather_keys.classic.128.block64.{name}", "gather_keys", "classic", problem, (inputs, *results), options)
    yield Call(
        "quantize_keys_to_cache.classic.128.block64.bfloat16.float8_e4m3fn.fp32.preshuffled",
        "quantize_keys_to_cache",
        "classic",
        problem,
        (Written(meta(4096, 128, dtype=bf16), cache(128, 64), meta(4096, dtype=torch.int64)),),
        {"dtype": fn, "scale_format": "fp32", "layout": "preshuffled"},
    )
    for lens in (integers(256), integers(256, 2)):
        name = f"paged_mqa_schedule.classic.{lens.ndim}d"
        yield Call(name, "paged_mqa_schedule", "classic", Scheduling(target), (ScheduleInputs(lens), integers(529, 2)), {})


def mx_formats(target: compat.Target) -> Iterator[Call]:
    """Each format in each of its layouts and with each output, by the calls that an offline compile makes."""
    cached = import_module("capgate.kernels.key_cache.operation_mx")
    others = [import_module(f"capgate.kernels.mx_{name}.operation") for name in ("quantization", "logits", "paged_logits")]
    operations = [(cached, cached.writing), (cached, cached.gathering), *((other, other.operation) for other in others)]
    for module, operation in operations:
        for mode in module.MODES:
            problem = module.example_problem(target, 64, 128, mode)
            call = operation.examples.call(problem)
            for variant in {"gluon_cdna4", "classic"} & operation.variants.keys():
                name = f"{operation.name}.{variant}.128.{mode}"
                yield Call(name, operation.name, variant, problem, call.operands, call.options)


def sparse(target: compat.Target) -> Iterator[Call]:
    """Logits of listed blocks, and the choice of blocks, by the calls that an offline compile makes."""
    logits, blocks = (import_module(f"capgate.kernels.{name}.operation") for name in ("sparse_logits", "candidate_blocks"))
    for operation in (logits.dense, logits.paged, logits.mx_dense, logits.mx_paged, blocks.scoring, blocks.masking):
        for mode in operation.examples.modes:
            problem = operation.examples.problem(target, 32, 128, mode)
            call = operation.examples.call(problem)
            for variant in set(SCORING) & operation.variants.keys():
                name = f"{operation.name}.{variant}.{mode}"
                yield Call(name, operation.name, variant, problem, call.operands, call.options)


# --- how a kernel is prepared -----------------------------------------------------------------------------------------------


def accepted(call: Call) -> bool:
    steps = compat.operations()[call.operation].explain(call.problem, call.variant).steps
    return bool(next(step.accepted for step in steps if step.variant == call.variant))


def launches(call: Call) -> tuple[compat.Launch, ...]:
    """The launches of a call, in order."""
    operation = compat.operations()[call.operation]
    kernel = operation.load(operation.variants[call.variant])
    assert isinstance(kernel, compat.Kernel)
    return kernel.prepare(call.problem, *call.operands, **call.options)
