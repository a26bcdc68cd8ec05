"""costs: what is imported, loaded and started by asking; by structure, never by the clock."""

import pytest

HEAVY = ("torch", "triton", "numpy", "rich", "pynvml", "rocm_bootstrap", "packaging", "importlib.metadata")
LOADED = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        pytest.param("", set(), id="import"),
        pytest.param("compat.override(disable=['gluon']).__enter__()", set(), id="override"),
        pytest.param("compat.Operation('toy').variant('a', requires=('gluon',))(print)", set(), id="define an operation"),
        pytest.param("assert compat.capabilities('cuda:90').wgmma", set(), id="flag of an NVIDIA target"),
        pytest.param("assert compat.capabilities('hip:gfx950').scaled_mfma", {"rocm_bootstrap"}, id="flag of an AMD target"),
        pytest.param("compat.capabilities()", {"pynvml", "rocm_bootstrap"}, id="this machine"),
        pytest.param(
            "compat.capabilities()['gpu'], compat.capabilities()['scaled_mfma']",
            {"pynvml", "rocm_bootstrap"},
            id="flags of this machine's target",
        ),
        pytest.param(
            "compat.capabilities('cpu')['torch']",
            {"importlib.metadata", "packaging"},
            id="version of torch",
        ),
    ],
)
def test_what_is_imported(python, code: str, loaded: set[str]) -> None:
    done = python("-c", f"from capgate import compat\n{code}\n{LOADED}")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= loaded


def test_a_flag_of_the_build_imports_triton_and_not_torch(python) -> None:
    pytest.importorskip("triton")
    done = python("-c", f"from capgate import compat\ncompat.capabilities('hip:gfx950')['gluon_cdna4']\n{LOADED}")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "triton" in loaded
    assert "torch" not in loaded


# The driver libraries themselves, as the kernel lists them for the process. NVML and sysfs are not among them.
DRIVERS = """
with open("/proc/self/maps") as maps:
    libraries = {line.rstrip().rpartition("/")[2] for line in maps if "/" in line}
print(*[name for name in libraries if name.startswith(("libcuda.so", "libamdhip64.so", "libhsa-runtime64.so"))])
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("compat.capabilities()['gpu']", id="capabilities", marks=pytest.mark.one_lane),
        pytest.param("from capgate.compat import targets; targets.discover()", id="discovery", marks=pytest.mark.one_lane),
        pytest.param("caps = compat.capabilities(); [caps[name] for name in caps]", id="every flag"),
    ],
)
def test_no_driver_is_started(python, code: str) -> None:
    done = python("-c", f"from capgate import compat\n{code}\n{DRIVERS}")
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_a_fork_after_asking_leaves_torch_usable_in_the_child(python) -> None:
    """torch refuses to start a driver in a child whose parent has started one."""
    pytest.importorskip("torch")
    code = """
import os, torch
from capgate import compat

caps = compat.capabilities()
for name in caps:
    caps[name]
if compat.capabilities().gpu:
    compat.capabilities(torch.device("cuda"))
assert not torch.cuda.is_initialized(), "in the parent"
child = os.fork()
if child == 0:
    fine = not torch.cuda.is_initialized() and torch.ones(2).sum().item() == 2 and compat.capabilities().target == caps.target
    if fine and torch.cuda.is_available():
        fine = torch.ones(2, device="cuda").sum().item() == 2
    os._exit(0 if fine else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert not torch.cuda.is_initialized(), "in the parent, afterwards"
raise SystemExit(status)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
