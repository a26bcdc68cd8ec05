"""The compiled gfx950 code of the key cache in MX formats, executed instruction by instruction, agrees with torch."""

from typing import Any

import pytest
import torch

from capgate.kernels.key_cache import classic_mx, reference_mx
from capgate.kernels.key_cache.operands_mx import MxBetween, MxGathered, MxWritten
from capgate.kernels.key_cache.operation_mx import Problem
from capgate.kernels.mx_quantization import classic as quantizer
from capgate.kernels.mx_quantization import reference as quantizer_reference
from capgate.kernels.mx_quantization.operands import Inputs
from capgate.kernels.mx_quantization.operation import Problem as Quantizing
from support import mx
from support.emulated_mqa import TARGET
from support.emulation import GFX942, GFX950, compile_launch, emulate

# A rule of each kind of rounding and of scales, and dims that leave bytes of a key's scales over.
KINDS = [
    ("mxfp8", "flat", "vllm", 128),
    ("mxfp8", "preshuffled", "deepgemm", 32),
    ("mxfp4", "flat", "deepgemm", 64),
    ("mxfp4", "gluon-16", "vllm", 128),
    ("mxfp4", "gluon-32", "sglang", 128),
    ("mxfp4", "flydsl", "sglang-rne", 128),
]


def values(count: int, dim: int) -> torch.Tensor:
    found = torch.randn(count, dim, generator=torch.Generator().manual_seed(1)) * torch.logspace(-38, 3, count)[:, None]
    found[3, 5], found[4, 6], found[5, 7], found[6] = torch.nan, torch.inf, -torch.inf, -0.0
    return found.bfloat16()


@pytest.mark.dealt
@pytest.mark.parametrize(("name", "layout", "rule", "dim"), KINDS, ids=["-".join(map(str, kind)) for kind in KINDS])
def test_write_and_gather(name: str, layout: str, rule: str, dim: int) -> None:
    width, problem, options = mx.key_bytes(name, dim), Problem(TARGET), {"key_format": name, "layout": layout}
    shapes = [(3, 1, 4, 64, 16), (3, 1, 4, 64)] if layout == "flydsl" else [(3, 64, 1, width + 4)]

    def caches() -> tuple[Any, Any]:
        made = [(torch.arange(torch.Size(shape).numel()) * 37 % 251).to(torch.uint8).view(shape) for shape in shapes]
        return made[0], (made[1] if len(made) > 1 else None)

    k, slots, found = values(30, dim), torch.arange(30) * 7 - 9, [caches(), caches()]
    reference_mx.write(MxWritten(k, found[0][0], slots, found[0][1]), rule=rule, **options)
    write = classic_mx.prepare_write(problem, MxWritten(k, found[1][0], slots, found[1][1]), rule=rule, **options)
    emulate(write, [])
    for one, other in zip(*found, strict=True):
        assert other is None or torch.equal(one, other)

    (kv_cache, kv_scale), table = found[0], torch.tensor([[2, 9], [0, 1]], dtype=torch.int32)
    lens, ends = (torch.tensor(numbers, dtype=torch.int32) for numbers in ([70, 5], [3, 73, 78]))
    inputs = MxGathered(kv_cache, table, lens, kv_scale) if dim == 128 else MxBetween(kv_cache, table, ends, kv_scale)
    gathered = [(torch.ones(80, width + 16).byte()[:, :width], torch.ones(80, 2).int()[:, 1]) for _ in range(2)]
    reference_mx.gather(inputs, *gathered[0], **options)
    gather = classic_mx.prepare_gather(problem, inputs, *gathered[1], **options)
    emulate(gather, [])
    for one, other in zip(*gathered, strict=True):
        assert torch.equal(one, other)
    for target in (GFX950, GFX942) if layout in ("preshuffled", "flydsl") else (GFX950,):  # gfx950's are those of above
        for launch in (write, gather):
            assembly = " ".join(compile_launch(launch, target=target).asm["amdgcn"].split())
            assert all(f".{kind}_spill_count: 0" in assembly for kind in ("sgpr", "vgpr"))


@pytest.mark.dealt
@pytest.mark.parametrize(("name", "rule"), [("mxfp8", "deepgemm"), ("mxfp4", "vllm")])
def test_quantize(name: str, rule: str) -> None:
    k = values(40, 128).float()
    found = [(torch.zeros(40, mx.key_bytes(name, 128)).byte(), torch.zeros(40).int()) for _ in range(2)]
    quantizer_reference.launch(Inputs(k), *found[0], key_format=name, rule=rule)
    emulate(quantizer.prepare(Quantizing(TARGET), Inputs(k), *found[1], key_format=name, rule=rule), [*found[1]])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
