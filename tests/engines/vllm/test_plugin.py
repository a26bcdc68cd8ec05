"""CAPGATE_DROPIN through vLLM's plugin system, in a process of its own, with each DeepGEMM that vLLM can find."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines import stubs

stubs.only_in_the_session_of("vllm")

TESTS = Path(__file__).parents[2]
TAKEN = {"fp8_fp4_mqa_logits", "fp8_fp4_paged_mqa_logits", "get_paged_mqa_logits_metadata"}

# What an engine's process does: plugins first, then its wrappers, which import DeepGEMM when they are first called.
SERVING = """
import json, logging
from engines import stubs
stubs.for_vllm()
from vllm.plugins import load_general_plugins
load_general_plugins()
from support import judge
from vllm.utils import deep_gemm as wrappers
call = judge.make_call(7, 40, 32, 128, "packed")
longest = int((call.ends - call.starts).max())
logits = wrappers.fp8_fp4_mqa_logits((call.q, None), (call.k, call.k_scale), call.weights, call.starts, call.ends, longest)
right = judge.formula(call, longest)
judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])
from support import paged
call = paged.make_call([[300, 301], [64, 65]], 2, heads=32, dim=128)
schedule = wrappers.get_paged_mqa_logits_metadata(call.context_lens, 64, stubs.SMS)
logits = wrappers.fp8_fp4_paged_mqa_logits(
    (call.q, None), call.kv_cache, call.weights, call.context_lens, call.block_table, schedule, 320
)
right = paged.formula(call, 320)
judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])
from capgate.kernels import dropin
print(json.dumps({"from": wrappers._import_deep_gemm().__name__, "state": dropin.states()["deep_gemm"]}))
"""

DEEP_GEMMS = {
    "vllm.third_party.deep_gemm": "",  # the copy in vLLM's wheel
    "before 2.8": "DEEP_GEMM_0_2_3_post2",  # whose sixth argument is another than the one that vLLM passes
    "2.8": "DEEP_GEMM_0_2_5",  # without the functions of before 2.4
}


def serving(**environment: str) -> dict[str, Any]:
    """What a process that serves prints, with these variables."""
    path = os.pathsep.join(filter(None, [environment.pop("folder", ""), str(TESTS), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", SERVING], env=os.environ | environment | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("which", DEEP_GEMMS)
def test_an_engine_s_process(which: str) -> None:
    """The same line in the environment, whichever DeepGEMM there is; nothing is raised in vLLM's import of it."""
    variable = DEEP_GEMMS[which]
    folder = os.environ[variable] if variable else ""
    found = serving(CAPGATE_DROPIN="deep_gemm", folder=folder)
    assert found["from"] == ("deep_gemm" if folder else which)
    assert found["state"]["asked"]
    assert found["state"]["installed"]
    taken = {name for family in found["state"]["taken"] for name in family["functions"]}
    assert taken >= TAKEN
    assert {place for family in found["state"]["taken"] for place in family["places"]} >= {
        f"vllm.utils.deep_gemm._{name}_impl" for name in TAKEN
    }
