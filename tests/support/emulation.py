"""Triton kernels compiled for gfx950, gfx942 or gfx1250 with no GPU, and those of the first two launched in the emulator on CPU
tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from capgate.compat import Launch
from emulator import Pointer, Result, parse, run

GFX950, GFX942, GFX1250 = GPUTarget("hip", "gfx950", 64), GPUTarget("hip", "gfx942", 64), GPUTarget("hip", "gfx1250", 32)
POINTERS = {
    torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e4m3fnuz: "*fp8e4b8", torch.float8_e5m2: "*fp8e5",
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32",
    torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_compiled: dict[Any, Any] = {}


def compile_kernel(
    kernel: Any,
    arguments: Sequence[Any],
    constants: dict[str, Any],
    make_source: Callable[..., Any] = ASTSource,
    *,
    target: GPUTarget = GFX950,
    **options: Any,
) -> Any:
    """Compile as the JIT would: that an argument is aligned, small, divisible by 16 or equal to 1 is known to the compiler,
    unless the kernel says ``do_not_specialize``.

    arguments : in the kernel's order, tensors (also meta tensors), integers, floats and None
    """
    names = [parameter.name for parameter in kernel.params]
    signature, known, attributes = {}, {(names.index(name),): value for name, value in constants.items()}, {}
    for position, (parameter, argument) in enumerate(zip(kernel.params, arguments, strict=False)):
        name, attribute = parameter.name, []
        if isinstance(argument, torch.Tensor):
            signature[name] = POINTERS[argument.dtype]
            if argument.is_meta or argument.data_ptr() % 16 == 0:
                attribute.append(["tt.divisibility", 16])
            if argument.untyped_storage().size() < 2**31:
                attribute.append(["tt.pointer_range", 32])
        elif isinstance(argument, float):
            signature[name] = "fp32"
        elif _is_constant(parameter, argument):
            known[(position,)] = argument
        else:
            signature[name] = "i32" if -(2**31) <= argument < 2**31 else "i64"
            if argument % 16 == 0 and not parameter.do_not_specialize:
                attribute.append(["tt.divisibility", 16])
        if attribute:
            attributes[(position,)] = attribute
    signature = {name: signature.get(name, "constexpr") for name in names}
    key = (kernel, repr(target), repr(signature), repr(known), repr(attributes), repr(options))
    if key not in _compiled:
        source = make_source(kernel, signature, known, attributes)
        _compiled[key] = triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})
    return _compiled[key]


def compile_launch(launch: Any, make_source: Callable[..., Any] = ASTSource, target: GPUTarget = GFX950) -> Any:
    """Compile what a variant's ``prepare`` returns."""
    names = {parameter.name for parameter in launch.kernel.params}
    constants = {name: value for name, value in launch.keywords.items() if name in names}
    options = {name: value for name, value in launch.keywords.items() if name not in names}
    return compile_kernel(launch.kernel, launch.arguments, constants, make_source, target=target, **options)


def _is_constant(parameter: Any, argument: Any) -> bool:
    """Whether a compiled kernel has no such argument any more."""
    return argument is None or (isinstance(argument, int) and argument == 1 and not parameter.do_not_specialize)


def bound(compiled: Any, arguments: Sequence[Any], unwritten: Sequence[torch.Tensor] = ()) -> list[Any]:
    """The arguments that the compiled kernel still has, as the emulator takes them, which it may already be.

    unwritten : tensors whose content counts as uninitialised
    """
    result = []
    for parameter, argument in zip(compiled.src.fn.params, arguments, strict=False):
        if isinstance(argument, torch.Tensor):
            storage = torch.empty(0, dtype=torch.uint8).set_(argument.untyped_storage()).numpy()
            offset = argument.storage_offset() * argument.element_size()
            result.append(Pointer(storage, offset, all(argument is not tensor for tensor in unwritten)))
        elif not _is_constant(parameter, argument):
            result.append(argument)
    return result


def emulate(launch: Launch, written: Sequence[torch.Tensor]) -> Result:
    """Compile and execute what a variant's ``prepare`` returns; what it stores appears in the tensors.

    written : those whose content counts as uninitialised
    """
    compiled = compile_launch(launch)
    program, arguments = parse(compiled.asm["amdgcn"]), bound(compiled, launch.arguments, written)
    return run(program, launch.grid, arguments, lds_bytes=compiled.metadata.shared, measure=False)


def launch(
    kernel: Any,
    grid: Sequence[int],
    arguments: Sequence[Any],
    constants: dict[str, Any],
    *,
    unwritten: Sequence[torch.Tensor] = (),
    emulation: dict[str, Any] | None = None,
    **options: Any,
) -> Result:
    """Compile and execute; what the kernel stores appears in the tensors."""
    compiled = compile_kernel(kernel, arguments, constants, **options)
    return run(compiled, grid, bound(compiled, arguments, unwritten), **(emulation or {}))
