"""support.mbarriers on kernels written by hand: what may write into a valid mbarrier, and what cannot be told, is found."""

import pytest

from support import mbarriers

MODULE = """
@global_smem = external addrspace(3) global [0 x i8], align 16

define ptx_kernel void @kernel(ptr byval([128 x i8]) align 64 "nvvm.grid_constant" %0, i32 %1, ptr addrspace(1) %2) #0 {{
  %tid = tail call i32 @llvm.nvvm.read.ptx.sreg.tid.x(), !dbg !7
  %thread = and i32 %tid, 127
  %first = icmp eq i32 %tid, 0
{body}
  ret void
}}

attributes #0 = {{ nounwind "nvvm.reqntid"="128" }}
"""
SMEM = "ptr addrspace(3) getelementptr (i8, ptr addrspace(3) @global_smem, i32 {})"
BARRIER = SMEM.format(1024)
INIT = f'  call void asm sideeffect "@$0 mbarrier.init.shared::cta.b64 [$1], 1;", "b,r"(i1 %first, {BARRIER}) #5'
INVAL = f'  call void asm sideeffect "@$0 mbarrier.inval.shared::cta.b64 [$1];", "b,r"(i1 %first, {BARRIER}) #5'


def store(at: int) -> str:
    return f"  store <2 x i32> zeroinitializer, {SMEM.format(at)}, align 8"


def threads(at: int, scale: str = "i32") -> str:
    """Every thread's own cell."""
    cell = f"  %cell = getelementptr inbounds nuw {scale}, {SMEM.format(at)}, i32 %thread"
    return f"{cell}\n  store i32 1, ptr addrspace(3) %cell, align 4"


# A ring of COUNT slots of 256 bytes at ``at``, one written in each pass.
RING = """  br label %loop
loop:                                             ; preds = %0, %loop
  %stage = phi i32 [ 0, %0 ], [ %next, %loop ]
  %offset = shl nuw nsw i32 %stage, 8
  %slot = getelementptr i8, {at}, i32 %offset
  store <64 x i32> zeroinitializer, ptr addrspace(3) %slot, align 16
  %more = add nuw nsw i32 %stage, 1
  %last = icmp eq i32 %more, {count}
  %next = select i1 %last, i32 0, i32 %more
  %done = icmp eq i32 %next, %1
  br i1 %done, label %end, label %loop, !llvm.loop !3
end:"""

BRANCH = """  br i1 %first, label %one, label %other
one:                                              ; preds = %0
{one}
  br label %end
other:                                            ; preds = %0
{other}
  br label %end
end:"""

LOOP = """  br label %loop
loop:                                             ; preds = %0, %loop
{body}
  %again = icmp slt i32 %1, 3
  br i1 %again, label %loop, label %end
end:"""


def guarded(at: int, comparison: str) -> str:
    """A cell for each thread for which a comparison holds."""
    return f"""  %few = {comparison}
  %wanted = icmp ne i32 %1, 0
  %both = and i1 %wanted, %few
  %mine = getelementptr i32, {SMEM.format(at)}, i32 %thread
  call void asm sideeffect "@$2 st.shared.b32 [ $0 + 0 ], $1;", "r,r,b"(ptr addrspace(3) %mine, i32 %1, i1 %both) #5"""


def copied(at: int) -> str:
    """A tensor map's box."""
    form = "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [$1], [$2, {$3}], [$4];"
    operands = f"i1 %first, {SMEM.format(at)}, ptr nonnull %0, i32 %1, {BARRIER}"
    return f'  call void asm sideeffect "@$0 {form}", "b,r,l,r,r"({operands}) #5'


IN_ORDER = {
    "beside": [INIT, store(1016), store(1032)],
    "before": [store(1024), INIT],
    "after its end": [INIT, INVAL, store(1024)],
    "threads beside": [INIT, threads(512)],
    "a ring": [INIT, RING.format(at=SMEM.format(0), count=4)],
    "guarded": [INIT, guarded(1008, "icmp ult i32 %thread, 4")],
    "guarded by its own thread": [INIT, guarded(1008, "icmp eq i32 %tid, 3")],
    "guarded below": [INIT, guarded(1008, "icmp slt i32 %thread, 4")],
    "copied beside": [INIT, copied(512)],
    "one life after the other": [LOOP.format(body="\n".join([INIT, INVAL, store(1024)]))],
    "no barrier": [threads(1024, "i64")],
    "a read": [INIT, f"  %read = load i32, {BARRIER}, align 4"],
}
BROKEN = {
    "written": [INIT, store(1024)],
    "its last bytes": [INIT, store(1031)],
    "its first byte": [INIT, store(1017)],
    "threads": [INIT, threads(516)],
    "wide cells": [INIT, threads(512, "i64")],
    "a ring that is too long": [INIT, RING.format(at=SMEM.format(0), count=5)],
    "guarded too late": [INIT, guarded(1008, "icmp ult i32 %thread, 5")],
    "guarded by something else": [INIT, guarded(1008, "icmp ult i32 %1, 4")],
    "copied": [INIT, copied(513)],
    "in the next pass": [LOOP.format(body="\n".join([store(1024), INIT]))],
    "by other warps": [BRANCH.format(one=INIT, other=store(1024))],
    "where it may not have ended": [INIT, BRANCH.format(one=INVAL, other="  %none = add i32 %1, 1"), store(1024)],
    "another's end": [INIT, INVAL.replace("1024", "2048"), store(1024)],
}
UNKNOWN = {
    "any index": [INIT, f"  %any = getelementptr i8, {SMEM.format(0)}, i32 %1\n  store i8 0, ptr addrspace(3) %any, align 1"],
    "an instruction": [INIT, f"  call void @llvm.memset.p3.i32({SMEM.format(0)}, i8 0, i32 4, i1 false)"],
    "inline PTX": [INIT, f'  call void asm sideeffect "red.shared.add.u32 [$0], 1;", "r"({SMEM.format(0)}) #5'],
    "generic": [INIT, f"  %generic = addrspacecast {SMEM.format(0)} to ptr"],
    "where it begins": [INIT.replace(BARRIER, "ptr addrspace(3) %2")],
}


def faults(parts: list[str]) -> list[str]:
    return mbarriers.faults(MODULE.format(body="\n".join(parts)), [512])


@pytest.mark.parametrize("name", IN_ORDER)
def test_what_leaves_a_barrier_alone_is_in_order(name: str) -> None:
    assert faults(IN_ORDER[name]) == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_may_write_into_a_valid_barrier_is_found(name: str) -> None:
    (words,) = faults(BROKEN[name])
    assert words.startswith("the mbarrier at 1024 is valid while ")


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_told_is_found(name: str) -> None:
    (words,) = faults(UNKNOWN[name])
    assert words.startswith(
        ("a write whose address has no bounds: ", "unknown access to shared memory: ", "an mbarrier's init")
    )


def test_the_boxes_of_a_signature() -> None:
    signature = ["*fp32", "tensordesc<fp8e4nv[16, 2, 2, 2, 128],NVMMASharedLayout(...)>", "i32", "tensordesc<fp32[4, 64],L>"]
    assert mbarriers.boxes_of(signature) == [16384, 1024]
