"""What Triton usually lowers, compiled for gfx950 and executed in the emulator, agrees with torch."""

import pytest
import torch
import triton

from support import sample_kernels
from support.emulation import launch

SWITCHES = [{"landing": "late", "preload": True}, {"landing": "early", "preload": False}]
NO_CONVERSION = pytest.mark.xfail(
    triton.__version__.startswith("3.5."), raises=RuntimeError, reason="Triton 3.5 cannot lower the conversion to bfloat16"
)
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(params=SWITCHES, ids=["late", "early"])
def switches(request):
    return request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


def test_softmax(switches, generator):
    x, out = torch.randn(5, 781, generator=generator), torch.empty(5, 781)
    launch(sample_kernels.softmax, (5,), (x, out, 781), {"COLUMNS": 1024}, num_warps=4, unwritten=[out], emulation=switches)
    torch.testing.assert_close(out, x.softmax(1), rtol=2e-6, atol=0)


@pytest.mark.dealt("dtype")
@pytest.mark.parametrize("size", [(70, 50, 100), (64, 64, 64)], ids=str)
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=lambda dtype: str(dtype)[6:],
)
def test_matmul(switches, generator, dtype, size):
    m, n, k = size
    block = 32 if dtype == torch.float32 else 64
    a, b = torch.randn(m, k, generator=generator).to(dtype), torch.randn(k, n, generator=generator).to(dtype)
    c = torch.empty(m, n)
    blocks = {"BLOCK_M": block, "BLOCK_N": block, "BLOCK_K": block}
    grid = (triton.cdiv(m, block), triton.cdiv(n, block))
    result = launch(sample_kernels.matmul, grid, (a, b, c, m, n, k), blocks, num_warps=4, unwritten=[c], emulation=switches)
    assert ((c.double() - a.double() @ b.double()).abs() <= 1e-6 * (a.double().abs() @ b.double().abs())).all()
    assert result.counters.instructions["mfma"] > 0


def test_matmul_bfloat16_output(switches, generator):
    a, b = (torch.randn(64, 64, generator=generator).bfloat16() for _ in range(2))
    c = torch.empty(64, 64, dtype=torch.bfloat16)
    blocks = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
    launch(sample_kernels.matmul, (1, 1), (a, b, c, 64, 64, 64), blocks, num_warps=4, unwritten=[c], emulation=switches)
    torch.testing.assert_close(c, (a.double() @ b.double()).bfloat16(), rtol=2**-7, atol=2**-20)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=lambda dtype: str(dtype)[6:])
def test_quantise(switches, generator, dtype):
    x = torch.randn(3, 512, generator=generator) * torch.tensor([[1e-6], [1.0], [3e4]])
    out, scale = torch.empty(3, 512, dtype=dtype), torch.empty(3)
    launch(
        sample_kernels.quantise,
        (3,),
        (x, out, scale),
        {"COLUMNS": 512},
        num_warps=2,
        unwritten=[out, scale],
        emulation=switches,
    )
    step = torch.exp2(torch.ceil(torch.log2(x.abs().amax(1).clamp(min=1e-4) / 448)))
    assert torch.equal(scale, step)
    assert torch.equal(out.view(torch.uint8), (x / step[:, None]).to(dtype).view(torch.uint8))


def test_sort_scan_and_atomics(switches, generator):
    x = torch.randint(-1000, 1000, (3, 256), dtype=torch.int32, generator=generator)
    ordered, running, histogram = torch.empty_like(x), torch.empty_like(x), torch.zeros(16, dtype=torch.int32)
    arguments, sizes = (x, ordered, running, histogram), {"COLUMNS": 256, "BINS": 16}
    launch(sample_kernels.sort_and_scan, (3,), arguments, sizes, num_warps=2, unwritten=[ordered, running], emulation=switches)
    assert torch.equal(ordered, x.sort(1).values)
    assert torch.equal(running, ordered.cumsum(1).int())
    assert torch.equal(histogram, torch.bincount((x & 15).flatten(), minlength=16).int())


def scaled_operand(number_format, rows, depth, generator):
    """(as stored, values)"""
    if number_format == "e2m1":
        pairs = torch.randint(0, 256, (rows, depth // 2), dtype=torch.uint8, generator=generator)
        return pairs, torch.stack([FP4[(pairs & 15).long()], FP4[(pairs >> 4).long()]], -1).reshape(rows, depth).double()
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[number_format]
    values = torch.randn(rows, depth, generator=generator).to(dtype)
    return values, values.double()


@pytest.mark.dealt("left", "right", together=["left", "right", "waves", "columns"])
@pytest.mark.parametrize(("left", "right"), [("e4m3", "e4m3"), ("e2m1", "e2m1"), ("e4m3", "e2m1"), ("e2m1", "e5m2")])
@pytest.mark.parametrize(("waves", "columns"), [(2, 32), (2, 16), pytest.param(1, 16, marks=NO_CONVERSION)])
def test_block_scaled_matmul(switches, generator, left, right, waves, columns):
    """On two waves the scaled matrix instructions, of 32 and 16 columns; on one Triton converts to bfloat16 first."""
    depth, side = 256, 32
    a, a_values = scaled_operand(left, side, depth, generator)
    b, b_values = scaled_operand(right, side, depth, generator)
    a_scale, b_scale = (torch.randint(110, 140, (side, depth // 32), dtype=torch.uint8, generator=generator) for _ in range(2))
    c = torch.empty(side, side)
    constants = {"M": side, "N": side, "K": depth, "A_FORMAT": left, "B_FORMAT": right}
    arguments = (a, a_scale, b, b_scale, c)
    result = launch(
        sample_kernels.scaled_matmul,
        (1,),
        arguments,
        constants,
        num_warps=waves,
        matrix_instr_nonkdim=columns,
        unwritten=[c],
        emulation=switches,
    )
    a_values = a_values * torch.exp2(a_scale.double() - 127).repeat_interleave(32, 1)
    b_values = b_values * torch.exp2(b_scale.double() - 127).repeat_interleave(32, 1)
    assert ((c.double() - a_values @ b_values.T).abs() <= 1e-6 * (a_values.abs() @ b_values.abs().T)).all()
    scaled = {name for name in result.counters.mnemonics if name.startswith("v_mfma_scale")}
    assert scaled == ({f"v_mfma_scale_f32_{columns}x{columns}x{2048 // columns}_f8f6f4"} if waves == 2 else set())


def test_layer_norm(switches, generator):
    x, weight = torch.randn(3, 413, generator=generator).half(), torch.randn(413, generator=generator)
    out = torch.empty(3, 413, dtype=torch.float16)
    launch(
        sample_kernels.layer_norm,
        (3,),
        (x, weight, out, 413, 1e-5),
        {"COLUMNS": 512},
        num_warps=2,
        unwritten=[out],
        emulation=switches,
    )
    expected = torch.nn.functional.layer_norm(x.double(), (413,), weight.double(), None, 1e-5)
    torch.testing.assert_close(out.double(), expected, rtol=2**-10, atol=2**-14)
