"""Hugging Face's ``kernels`` loads capgate as a universal kernel from a folder, in an environment that has no capgate.

``nox -s universal`` makes the folder and the environment; elsewhere these tests are skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

PYTHON, FOLDER = os.environ.get("KERNELS_PYTHON"), os.environ.get("UNIVERSAL_KERNEL", "")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="needs Hugging Face's kernels in an environment of its own: nox -s universal"),
    pytest.mark.one_lane,
]

LOAD = f"""
import json, sys
from importlib.util import find_spec
from pathlib import Path
import torch
import kernels
alone = find_spec("capgate") is None
capgate = kernels.get_local_kernel(Path({FOLDER!r}))
"""

SCORE = """
generator = torch.Generator().manual_seed(0)
q, k = (torch.randn(*shape, generator=generator).to(torch.float8_e4m3fn) for shape in ((3, 4, 64), (8, 64)))
k_scale, weights = torch.rand(8, generator=generator), torch.randn(3, 4, generator=generator)
starts, ends = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([8, 5, 2], dtype=torch.int32)
logits = capgate.fp8_mqa_logits(q, k, k_scale, weights, starts, ends)
products = torch.einsum("rhd,kd->rhk", q.double(), k.double()).relu() * weights.double()[..., None]
expected = products.sum(1) * k_scale.double()
size = products.abs().sum(1) * k_scale.double()
inside = (torch.arange(8) >= starts[:, None]) & (torch.arange(8) < ends[:, None])
"""


def child(folder: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code with the environment that has kernels, from a folder where nothing else of that name lies."""
    assert PYTHON is not None
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [PYTHON, "-W", "ignore", "-c", code]
    return subprocess.run(
        command, cwd=folder, env={**environment, **variables}, capture_output=True, text=True, timeout=1200, check=False
    )


def test_the_real_package_loads_it_and_its_logits_are_right(tmp_path: Path) -> None:
    said = (
        "print(json.dumps({'alone': alone, 'version': kernels.__version__, 'inside': int(inside.sum()),"
        " 'error': float(((logits.double() - expected).abs() / size.clamp(min=1e-30))[inside].max()),"
        " 'clean': bool((logits[~inside] == float('-inf')).all()), 'loaded': [one.metadata.name.python_name"
        " for one in kernels.get_loaded_kernels()]}))"
    )
    done = child(tmp_path, f"{LOAD}{SCORE}{said}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["alone"], "an installed capgate would be taken"
    assert found["loaded"] == ["capgate"]
    assert found["inside"] == 12
    assert found["error"] < 1e-6  # float32 sums of 4 x 64 products
    assert found["clean"]


def test_its_capabilities_are_asked_as_ever(tmp_path: Path) -> None:
    done = child(tmp_path, f"{LOAD}print(capgate.compat.capabilities(torch.device('cpu')).why('gpu'))")
    assert done.stdout.splitlines()[-1:] == ["needs a GPU: found no GPU"], done.stderr


def test_another_capgate_that_is_installed_is_an_error_that_says_so(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "capgate-0.0.1.dist-info").mkdir(parents=True)
    (other / "capgate-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: capgate\nVersion: 0.0.1\n")
    done = child(tmp_path, LOAD, PYTHONPATH=str(other))
    assert done.returncode == 1
    assert "ImportError: capgate 0.0.1 is installed, and this kernel is " in done.stderr
