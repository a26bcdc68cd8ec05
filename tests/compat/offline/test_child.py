"""Compilers that abort, hang, exit or complain: one row says so, and the next job gets a new process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capgate import compat
from capgate.compat.offline import child as offline_child
from capgate.compat.offline import jobs as offline
from capgate.compat.offline.answers import Answers, environment
from capgate.compat.offline.children import Child
from capgate.compat.offline.jobs import Job, compile_jobs, compile_variants

for needed in ("torch", "triton"):
    pytest.importorskip(needed)

OPERATION = """
from typing import Any, NamedTuple
from capgate import compat

class Problem(NamedTuple):
    device: Any
    heads: int
    dim: int
    dtype: str
    clean_logits: bool

def example_problem(device, heads, dim, mode, dtype):
    return Problem(device, heads, dim, dtype or "float32", mode == "clean")

def example_call(problem):
    return compat.ExampleCall((problem.heads,), {})

operation = compat.Operation("toy", examples=compat.Examples(example_problem, example_call, ("unclean",)))
for name in ("aborts", "hangs", "exits", "complains", "absent", "fits"):
    operation.add(compat.Variant(name, f"toy_{name}:kernel"))
"""

KERNELS = {
    "aborts": """
import os, sys
def prepare(problem, heads):
    print("IR of a failed pass\\n" * 9, "x.cpp:7: Assertion `rank > 0` failed.\\n", "a stack trace\\n" * 9, file=sys.stderr)
    os.abort()
""",
    "hangs": """
import os, subprocess, sys
def prepare(problem, heads):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open("pids.part", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename("pids.part", "pids")
    child.wait()
""",
    "exits": """
import os
def prepare(problem, heads):
    os.write(2, b"Killed for a reason")
    os._exit(3)
""",
    "complains": """
import sys
def prepare(problem, heads):
    print("not JSON, on what a compiler takes for standard output")
    print("before\\n" * 20000, 'k.py:3:4: error: failed to legalize operation\\n', "after\\n" * 20000, file=sys.stderr)
    raise RuntimeError("PassManager::run failed")
""",
    "absent": "import no_such_module",
    "fits": """
from typing import NamedTuple
import torch, triton
import triton.language as tl
from capgate import compat

class Tuning(NamedTuple):
    size: int

def tuning(problem):
    return Tuning(problem.heads)

@triton.jit
def double(x, count, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(x + at, 2 * tl.load(x + at, mask=at < count), mask=at < count)

def prepare(problem, heads):
    x = torch.empty(heads, device="meta")
    return compat.Launch(double, (1,), (x, heads), {"SIZE": heads, "num_warps": 2})
""",
}

OFFERED = """
from capgate import compat
kernel = compat.Kernel(prepare, tuning=globals().get("tuning"))
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operation of another distribution, in the folder that the compilers start in."""
    (tmp_path / "toy_operation.py").write_text(OPERATION)
    for name, source in KERNELS.items():
        (tmp_path / f"toy_{name}.py").write_text(source + OFFERED)
    info = tmp_path / "toy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[capgate.operations]\ntoy = toy_operation:operation\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_operation", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(names: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    return compile_jobs("toy", "hip:gfx950", [Job(name, heads=64) for name in names], **{"timeout": 1200, **options})


def test_each_failure_takes_one_job_with_it(toy: Path) -> None:
    aborted, exited, complained, absent, fitted = rows(["aborts", "exits", "complains", "absent", "fits"])
    assert aborted["error"] == "the compiler died of SIGABRT: x.cpp:7: Assertion `rank > 0` failed."
    assert exited["error"] == "the compiler exited with status 3: Killed for a reason"
    assert complained["error"] == ("RuntimeError: PassManager::run failed: k.py:3:4: error: failed to legalize operation")
    assert absent["error"] == "ModuleNotFoundError: No module named 'no_such_module'"
    for row in (aborted, exited, complained, absent):
        assert (row["accepted"], row["compiled"], row["vgprs"], row["seconds"]) == (True, False, None, None)
    assert (fitted["compiled"], fitted["error"], fitted["tuning"]) == (True, None, {"size": 64})
    assert (fitted["hot_loop"], fitted["matrix_instructions"], fitted["spills"]) == (None, {}, 0)
    assert fitted["seconds"] > 0


TWO_JOBS = """
import sys
from capgate.compat.offline.answers import serve

def answer(job):
    yield {"accepted": True}
    if job == "loud":
        print("k.py:3:4: error: of the second", file=sys.stderr)
    yield {"compiled": False, "error": f"{job}: failed"}

serve(lambda request: answer)
"""


def test_a_job_s_error_has_nothing_of_the_next_one_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process does not wait until a row is read: on a busy machine it has written of the next job by then."""
    (tmp_path / "two_jobs.py").write_text(TWO_JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Answers("two_jobs", {"jobs": ["quiet", "loud"]}, environment()) as child:
        child._process.wait(1200)
        errors = [child.answer(timeout=1200)["error"] for _ in range(2)]
    assert errors == ["quiet: failed", "loud: failed: k.py:3:4: error: of the second"]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Long enough for a machine that does much else; it ends as soon as it can."""
    end = time.monotonic() + 1200
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def running(pid: str) -> bool:
    """Whether a process still runs; one that nobody has asked for its status yet does not."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.one_lane
def test_a_hanging_compiler_is_stopped_with_what_it_started(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "TIMEOUT", 1200)  # for its process to start, which takes as long as the machine is busy
    (row,) = rows(["hangs"], timeout=3)
    assert (row["accepted"], row["compiled"], row["error"]) == (True, False, "no result within 3 s")
    pids = toy / "pids"
    for pid in pids.read_text().split() if pids.exists() else ():  # on a busy machine it may have had no time to start any
        wait_until(lambda pid=pid: not running(pid), f"process {pid} still runs")


COMMAND = [sys.executable, "-c", "import sys; from capgate.kernels.cli import main; sys.exit(main())", "compile", "toy"]


@pytest.mark.one_lane
def test_no_signal_to_the_command_leaves_a_compiler_behind(toy: Path) -> None:
    """SIGKILL runs no handler, and SIGTERM and SIGHUP run none either unless somebody installs one."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
    folders = [toy / number.name for number in numbers]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as stack:
        commands = []
        for folder in folders:
            folder.mkdir()
            command = subprocess.Popen(
                [*COMMAND, "--variant", "hangs", "--target", "hip:gfx950"],
                env=environment,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # in the background shells have it ignored
            )
            commands.append(stack.enter_context(command))
            stack.callback(command.kill)
        for folder, command, number in zip(folders, commands, numbers, strict=True):
            wait_until(lambda folder=folder: (folder / "pids").exists(), "it never began to compile")
            pids = (folder / "pids").read_text().split()
            assert [running(pid) for pid in pids] == [True, True]
            command.send_signal(number)
            assert command.wait(1200) != 0
            for pid in pids:
                wait_until(lambda pid=pid: not running(pid), f"{number.name}: process {pid} still runs")


@pytest.mark.one_lane
def test_what_a_compiler_that_died_had_started_is_ended(tmp_path: Path) -> None:
    script = "import os, subprocess; print(subprocess.Popen(['sleep', '600'], stdout=2).pid, flush=True); os._exit(3)"
    with Child([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        pid = child.stdout.readline().strip()
        assert child.wait(1200) == 3
        assert running(pid)
        child.kill()
        wait_until(lambda: not running(pid), f"process {pid} still runs")


def test_a_named_variant_that_breaks_the_compiler_is_a_row(toy: Path) -> None:
    (row,) = compile_variants("toy", "hip:gfx950", variant="exits", modes=["clean"], timeout=1200)["variants"]
    assert (row["accepted"], row["compiled"]) == (True, False)


def script(folder: Path, name: str, body: str) -> str:
    """A program in place of Triton's nvdisasm, which says its version when it is looked for."""
    file = folder / name
    file.write_text(f"""#!/bin/sh\nif [ "$1" = --version ]; then echo "Cuda, release 12.8"; exit; fi\n{body}\n""")
    file.chmod(0o755)
    return str(file)


SASS = (
    "kernel:\n        /*0000*/                   HMMA.16816.F32 R4, R8, R10, R4 ;\n        /*0010*/                   EXIT ;\n"
)
PTXAS = "    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\nptxas info    : Used 40 registers\n"
METADATA = {"shared": 1024, "num_warps": 4}


def described(
    asm: dict[str, Any], backend: str = "cuda", log: str = PTXAS, metadata: dict[str, Any] = METADATA
) -> dict[str, Any]:
    target = compat.capabilities("cuda:90" if backend == "cuda" else "hip:gfx950").target
    compiled = SimpleNamespace(asm=asm, metadata=SimpleNamespace(**metadata))
    return offline_child.describe(compiled, target, compat.ExampleCall((), {}, 1), log)


CUDA = {"cubin": b"", "ptx": ".reqntid 128\n"}
NO_CODE = {"code_bytes": None, "matrix_instructions": None}
KNOWN = {"vgprs": 40, "spills": 12, "scratch_bytes": 0, "lds_bytes": 1024, "waves_per_simd": 12.0}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "echo 'nvdisasm fatal   : Unsupported ELF' >&2; exit 255",
            "nvdisasm cannot read it: nvdisasm fatal   : Unsupported ELF",
        ),
        ("exit 1", "nvdisasm cannot read it: without a word"),
        ("kill -SEGV $$", "nvdisasm died of SIGSEGV: without a word"),
        ("true", "nvdisasm's text shows no instruction"),
        (
            "echo '/*0000*/ <unknown> ;'",
            "nvdisasm's text has lines unknown to this reader (1), the first '/*0000*/ <unknown> ;'",
        ),
        ("printf '\\377'", "nvdisasm's text shows no instruction"),
    ],
)
def test_machine_code_that_nvdisasm_cannot_read_leaves_the_other_figures(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_NVDISASM_PATH", script(tmp_path, "nvdisasm", body))
    row = described(CUDA)
    assert row["unread"] == [f"machine code: {words}"]
    assert {key: row.get(key) for key in KNOWN | NO_CODE} == KNOWN | NO_CODE


def test_a_triton_without_nvdisasm_leaves_the_other_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    monkeypatch.setattr(vars(type(knobs.nvidia))["nvdisasm"], "default_path", "/nowhere")
    row = described(CUDA)
    assert row["unread"] == ["machine code: Cannot find nvdisasm"]
    assert {key: row.get(key) for key in KNOWN | NO_CODE} == KNOWN | NO_CODE


@pytest.mark.one_lane
def test_a_slow_nvdisasm_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_NVDISASM_PATH", script(tmp_path, "nvdisasm", "exec sleep 600"))
    monkeypatch.setattr(offline_child, "NVDISASM_TIMEOUT", 0.1)
    assert described(CUDA)["unread"] == ["machine code: nvdisasm gave nothing within 0.1 s"]


@pytest.fixture
def readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_NVDISASM_PATH", script(tmp_path, "nvdisasm", f"cat <<'END'\n{SASS}END"))


@pytest.mark.usefixtures("readable")
@pytest.mark.parametrize(
    ("changes", "unread", "figures"),
    [
        ({}, [], KNOWN | {"code_bytes": 32}),
        (
            {"log": ""},
            ["resources: ptxas' log does not say registers, spills, scratch"],
            {"vgprs": None, "spills": None, "waves_per_simd": None, "lds_bytes": 1024, "code_bytes": 32},
        ),
        (
            {"metadata": {"num_warps": 4}},
            ["resources: metadata does not say how much shared memory"],
            {"vgprs": 40, "lds_bytes": None, "waves_per_simd": None},
        ),
        ({"asm": {"cubin": b""}}, ["resources: KeyError: 'ptx'"], {"matrix_instructions": {"HMMA.16816.F32": 1}}),
        ({"asm": {"ptx": ""}}, ["machine code: KeyError: 'cubin'"], {"vgprs": 40}),
    ],
)
def test_what_the_nvidia_compilers_do_not_say_is_noted(
    changes: dict[str, Any], unread: list[str], figures: dict[str, Any]
) -> None:
    row = described(**{"asm": CUDA, **changes})
    assert row["unread"] == unread
    assert {key: row[key] for key in figures} == figures


AMDGCN = """
kernel:
	v_mfma_f32_16x16x32_fp8_fp8 v[0:3], v[4:5], v[6:7], 0
	s_endpgm
; codeLenInByte = 12
; Occupancy: 8
	.amdgpu_metadata
  - .agpr_count:     0
    .max_flat_workgroup_size: 256
    .private_segment_fixed_size: 0
    .sgpr_count:     20
    .sgpr_spill_count: 0
    .vgpr_count:     40
    .vgpr_spill_count: 0
    .wavefront_size: 64
	.end_amdgpu_metadata
"""
MATRIX = {"v_mfma_f32_16x16x32_fp8_fp8": 1}


@pytest.mark.parametrize(
    ("assembly", "unread", "figures"),
    [
        (AMDGCN, [], {"vgprs": 40, "spills": 0, "waves_per_simd": 8.0, "matrix_instructions": MATRIX, "code_bytes": 12}),
        (
            AMDGCN.replace("s_endpgm", "s_endpgm\n\tV.NEW {v1}"),
            ["machine code: assembly has lines unknown to this reader (1), the first 'V.NEW {v1}'"],
            {"vgprs": 40, "code_bytes": 12},
        ),
        (
            AMDGCN.partition("\t.amdgpu_metadata")[0],
            ["resources: assembly does not say VGPRs, SGPRs, spills, scratch"],
            {"vgprs": None, "agprs": None, "spills": None, "waves_per_simd": None, "matrix_instructions": MATRIX},
        ),
        (
            AMDGCN.replace("; codeLenInByte = 12\n", ""),
            ["resources: assembly does not say code length"],
            {"vgprs": 40, "code_bytes": None},
        ),
        (AMDGCN.replace("    .sgpr_spill_count: 0\n", ""), ["resources: assembly does not say spills"], {"spills": None}),
    ],
)
def test_what_llvm_does_not_say_is_noted(assembly: str, unread: list[str], figures: dict[str, Any]) -> None:
    row = described({"amdgcn": assembly}, "hip")
    assert row["unread"] == unread
    assert {key: row[key] for key in figures} == figures


def test_a_compile_that_nvdisasm_cannot_read_is_a_compile(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the command's parent: its row has every key, and the program's own figures."""
    monkeypatch.setenv("TRITON_NVDISASM_PATH", script(toy, "nvdisasm", "exit 1"))
    (row,) = compile_jobs("toy", "cuda:90", [Job("fits")], save="saved", timeout=1200)
    assert (row["compiled"], row["error"], row["spills"]) == (True, None, 0)
    assert row["unread"] == ["machine code: nvdisasm cannot read it: without a word"]
    assert (row["hot_loop"], row["matrix_instructions"], row["code_bytes"]) == (None, None, None)
    assert [Path(file).suffix for file in row["files"]] == [".ptx", ".ttgir", ".json"]


@pytest.mark.one_lane
def test_sizes_of_one_mode_are_saved_side_by_side(toy: Path) -> None:
    """And a compile that no other differs from in its sizes keeps its short name."""
    jobs = [Job("fits", heads=64), Job("fits", heads=128)]
    rows = compile_jobs("toy", "hip:gfx950", jobs, save="saved", timeout=1200)
    names = [Path(row["files"][0]).name for row in rows]
    assert names == ["fits.unclean.64x128.amdgcn", "fits.unclean.128x128.amdgcn"]
    assert all((toy / "saved" / name).exists() for name in names)


def test_what_was_compiled_can_be_saved(toy: Path) -> None:
    """What the disk refuses is said, and does not take the compile with it."""
    (toy / "saved" / "fits.clean.ttgir").mkdir(parents=True)
    row, refused = compile_jobs("toy", "hip:gfx950", [Job("fits"), Job("fits", mode="clean")], save="saved", timeout=1200)
    assert [Path(file).name for file in row["files"]] == [
        "fits.unclean.amdgcn",
        "fits.unclean.ttgir",
        "fits.unclean.arguments.json",
    ]
    assert "s_endpgm" in (toy / "saved" / "fits.unclean.amdgcn").read_text()
    assert "ttg." in (toy / "saved" / "fits.unclean.ttgir").read_text()
    arguments = json.loads((toy / "saved" / "fits.unclean.arguments.json").read_text())
    assert arguments["arguments"] == [{"name": "x", "type": "*fp32"}, {"name": "count", "type": "i32"}]
    assert arguments["constants"] == {"SIZE": 64}
    assert (arguments["kernel"], arguments["num_warps"], arguments["options"]) == ("double", 2, {"num_warps": 2})
    assert (refused["compiled"], refused["vgprs"]) == (True, row["vgprs"])
    assert refused["error"].startswith("compiled, and not saved: IsADirectoryError: ")
