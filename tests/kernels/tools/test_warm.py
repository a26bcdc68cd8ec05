"""``capgate warm``: an engine's process finds in Triton's cache what was compiled there beforehand."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capgate import compat
from capgate.compat.offline.answers import environment
from capgate.kernels import cli
from capgate.kernels.tools.warm.deployment import sizes

for needed in ("torch", "triton"):
    pytest.importorskip(needed)

TARGETS = {"cuda:90": 132, "hip:gfx950": 256}
SMALL = ["--max-rows", "1", "--max-context", "32", "--max-requests", "1", "--cache-blocks", "32", "--timeout", "1200"]


def process(command: list[str], request: Any, folder: Path, **variables: str) -> Any:
    """What a process of Python's says, as JSON; ``folder`` is put in front of its path."""
    given = environment()
    done = subprocess.run(
        [sys.executable, *command],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**given, "PYTHONPATH": os.pathsep.join([str(folder), given["PYTHONPATH"]]), **variables},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def engine(request: dict[str, Any]) -> dict[str, Any]:
    """What a process says that starts as an engine does."""
    said: dict[str, Any] = process(["-m", "support.engine_start"], request, Path(__file__).parents[2])
    return said


@pytest.mark.dealt
@pytest.mark.parametrize("target", TARGETS)
def test_what_was_warmed_is_not_compiled_again(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    capabilities = compat.capabilities(target)
    gluon = {"cuda:90": "gluon_hopper", "hip:gfx950": "gluon_cdna4"}[target]
    variants = ["classic", *([gluon] if capabilities[gluon] else [])]
    operations = ["fp8_mqa_logits", "fp8_paged_mqa_logits", "paged_mqa_schedule"]
    arguments = ["warm", *operations, "--target", target, "--variants", ",".join(variants), *SMALL, "--json"]
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert {(row["operation"], row["variant"]) for row in result["kernels"]} == {
        *((operation, variant) for operation in operations[:2] for variant in variants),
        ("paged_mqa_schedule", "classic"),
    }
    assert {row["state"] for row in result["kernels"]} == {"compiled"}
    assert len(result["kernels"]) + result["launchers"]["built"] == len(list(tmp_path.iterdir())), "each has a folder"

    def calls(heads: int) -> list[Any]:
        prefill = {"rows": 1, "keys": 48, "heads": heads, "dim": 128}
        decode = {"requests": 1, "blocks": 32, "heads": heads, "dim": 128, "next_n": 1, "max_context": 32}
        functions = (("fp8_mqa_logits", prefill), ("fp8_paged_mqa_logits", decode))
        return [[name, given, {"clean_logits": False, "variant": one}] for name, given in functions for one in variants]

    request = {"target": target, "multiprocessors": TARGETS[target], "calls": calls(64)}
    started = engine(request)
    assert started["folders"] == 0
    assert all(was_there for _, was_there in started["asked"])
    assert {name for name, _ in started["asked"]} == {"mqa_logits_kernel", "paged_mqa_logits_kernel", "schedule_kernel"}

    other = engine({**request, "calls": calls(32)[:1]})  # another model's heads
    assert (other["asked"], other["folders"]) == ([["mqa_logits_kernel", False]], 1)

    assert cli.main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in again["kernels"]} == {"was there"}
    assert [row["kernel"] for row in again["kernels"]] == [row["kernel"] for row in result["kernels"]]


SAME = {"max_context": 8192, "next_n": [1, 2], "top_k": [64]}
DEPLOYMENTS = {
    "own": {**SAME, "modes": ["unclean", "clean", "compressed", "indices", "scores"]},
    "vllm": {**SAME, "modes": ["compressed"], "row_lens": True, "schedule": "deep_gemm", "relative": True},
    "slots": {**SAME, "page_size": 64, "schedule": "none", "largest": 224.0},
}
ONE_LANE = pytest.mark.one_lane  # what Triton tells apart is the first cells' question
CELLS = [
    *((target, "own") for target in TARGETS),
    pytest.param("cuda:90", "vllm", marks=ONE_LANE),
    pytest.param("hip:gfx950", "slots", marks=ONE_LANE),
]


def some_calls(caller: str, heads: int, count: int) -> list[Any]:
    """Calls of shapes that a deployment has, none chosen for what is warmed."""
    draw, found = random.Random(16), list[Any]()
    for _ in range(count):
        keys = draw.choice([draw.randrange(16, 8193), 16 * draw.randrange(1, 513)])
        rows = draw.choice([1, draw.randrange(1, 300), 16 * draw.randrange(1, 20)])
        prefill = {"rows": rows, "keys": keys, "heads": heads, "dim": 128}
        decode = {"requests": draw.randrange(1, 257), "blocks": draw.randrange(1, 300), "heads": heads, "dim": 128}
        decode |= {"next_n": draw.choice([1, 2]), "max_context": 8192}
        if caller == "vllm":
            found.append(["vllm_prefill", prefill, {"columns": draw.randrange(16, 8193), "top_k": 64}])
            found.append(["vllm_decode", decode, {"processors": 132, "top_k": 64}])
            continue
        if caller == "slots":
            found.append(["select_keys", prefill, {"top_k": 64, "page_size": 64, "tables": draw.randrange(1, 257)}])
            found.append(["select_paged_keys", decode, {"top_k": 64, "page_size": 64, "tables": decode["requests"]}])
            written = {"rows": rows, "blocks": decode["blocks"]}
            scales = {"scale_format": draw.choice(["fp32", "ue8m0"]), "largest": 224.0}
            found.append(["quantize_keys_to_cache", written, scales])
            found.append(["gather_keys", decode, {"total": keys}])
            continue
        for options in ({"clean_logits": False}, {"clean_logits": True}, {"clean_logits": False, "max_window": 8192}):
            found.append(["fp8_mqa_logits", prefill, options])
        scores = {"top_k": 64, "return_scores": draw.random() < 0.5}
        found.append(["select_keys", prefill, scores])
        found.append(["select_from_logits", {"rows": rows, "columns": 8192}, scores])
        found.append(["fp8_paged_mqa_logits", decode, {"clean_logits": draw.random() < 0.5}])
        found.append(["select_paged_keys", decode, scores])
    return found


@pytest.mark.dealt
@pytest.mark.parametrize(("target", "caller"), CELLS)
def test_every_call_of_a_deployment_has_a_kernel_that_is_warmed(target: str, caller: str) -> None:
    # Calls of another model's heads, which a selection from logits alone does not see.
    scoring = ("fp8", "vllm", "select_keys", "select_paged") if caller == "slots" else ("fp8", "vllm")
    others = [call for call in some_calls(caller, 32, 1) if call[0].startswith(scoring)]
    more = ["quantize_keys_to_cache", "gather_keys"] if caller == "slots" else ["paged_mqa_schedule"]
    operations = ["fp8_mqa_logits", "fp8_paged_mqa_logits", "select_keys", *more]
    request = {
        "target": target,
        "multiprocessors": TARGETS[target],
        "operations": operations,
        "deployment": DEPLOYMENTS[caller],
        "calls": [*some_calls(caller, 64, 40), *others],
    }
    assert [json.loads(call) for call in engine(request)["unknown"]] == others


@pytest.mark.one_lane
def test_sizes_stand_for_others() -> None:
    found = sizes(1, 100)
    assert found == [1, 2, 3, 4, 8, 16, 32, 33, 64, 65, 100]
    assert sizes(16, 40) == [16, 32, 33, 40]
    assert sizes(1, 1) == [1]


TOY = """
import os
from typing import Any, NamedTuple
import triton
import triton.language as tl
from capgate import compat

class Problem(NamedTuple):
    device: Any

@triton.jit
def breaks_kernel(x):
    tl.static_assert(False, "never compiles")

@triton.jit
def fits_kernel(x):
    tl.store(x, 1.0)

def launch(kernel):
    return lambda problem, x: compat.Launch(kernel, (1,), (x,), {})

breaks, fits = compat.Kernel(launch(breaks_kernel)), compat.Kernel(launch(fits_kernel))
dies = compat.Kernel(lambda problem, x: os.abort())

def call(problem):
    import torch
    return compat.ExampleCall((torch.empty(4, device="meta"),), {})

examples = compat.Examples(lambda device, *rest: Problem(device), call, ("once", "again"))
operation = compat.Operation("toy_to_warm", examples=examples)
for name in ("breaks", "fits", "dies"):
    operation.add(compat.Variant(name, f"toy_to_warm:{name}"))
operation.add(compat.Variant("refuses", "toy_to_warm:fits", accepts=lambda problem: "needs another toy"))
"""


# In a process of its own, where the operation stays.
COMMANDS = """
import contextlib, io, json, sys
import toy_to_warm
from capgate.kernels import cli

found = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = cli.main(arguments)
    found.append([status, said.getvalue()])
print(json.dumps(found))
"""


@pytest.mark.one_lane
def test_what_does_not_compile_is_said_and_the_next_variant_warmed(tmp_path: Path) -> None:
    (tmp_path / "toy_to_warm.py").write_text(TOY)
    warm = ["warm", "toy_to_warm", "--target", "hip:gfx950", "--timeout", "1200"]
    asked = [[*warm, "--json"], [*warm, "--json", "--variants", "dies,fits,refuses"], [*warm, "--variants", "fits"]]
    variables = {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    fallen, named, there = process(["-c", COMMANDS], asked, tmp_path, **variables)

    assert fallen[0] == 1
    first, second = json.loads(fallen[1])["kernels"]
    assert (first["variant"], first["state"]) == ("breaks", "does not compile")
    assert "never compiles" in first["error"]
    assert (second["variant"], second["kernel"], second["state"]) == ("fits", "fits_kernel", "compiled")

    assert named[0] == 1
    rows = json.loads(named[1])["kernels"]
    assert [(row["variant"], row["state"]) for row in rows] == [
        ("dies", "does not compile"),
        ("fits", "was there"),
        ("refuses", "cannot run there"),
    ]
    assert "the compiler died of SIGABRT" in rows[0]["error"]
    assert rows[2]["error"] == "needs another toy"

    assert there[0] == 0
    assert "0 compiled, 1 were there, 0 could not be compiled" in there[1]


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "operation: none named, needs one such as fp8_mqa_logits"),
        (["fp8_mqa_logit"], "operation: no operation 'fp8_mqa_logit'; the nearest"),
        (["fp8_mqa_logits", "--target", "cpu"], "target: got cpu, needs a GPU"),
        (["fp8_mqa_logits", "--target", "cuda:120"], "multiprocessors: none given, needs how many"),
        (["select_keys", "--variants", "gluon_cdna4"], "variants: select_keys has none of gluon_cdna4"),
        (["fp8_mqa_logits", "--modes", "cleen"], "modes: no mode 'cleen'; the nearest"),
        (["fp8_mqa_logits", "--heads", "129"], "heads: got 129, needs 1 to 128"),
        (["fp8_paged_mqa_logits", "--next-n", "1,x"], "next_n: got 'x', needs whole numbers"),
        (["fp8_paged_mqa_logits", "--block", "24"], "block: got 24"),
        (["paged_mqa_schedule", "--schedule", "none"], "schedule: got 'none' with paged_mqa_schedule"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments if "--target" in arguments else [*arguments, "--target", "cuda:90"]
    assert cli.main(["warm", *given]) == 2
    assert words in capsys.readouterr().err
