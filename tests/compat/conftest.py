"""Every test starts as a fresh process on a bare machine: nothing remembered, no switch set, no GPU but those it plugs in."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rocm_bootstrap import _platform as rocm_platform

from capgate.compat import _discovery as discovery
from capgate.compat import _distributions as distributions
from capgate.compat import _lookup as lookup
from capgate.compat import _probes as probes
from capgate.compat import _registry as registry
from capgate.compat import _switches as switches
from capgate.compat import targets

LANES = ("3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0")


def _is_setting(name: str) -> bool:
    """Whether an environment variable changes what capgate answers, or what it prints."""
    return (
        name.startswith(("CAPGATE_", "ROCM_BOOTSTRAP_", "HSA_OVERRIDE_GFX_VERSION"))
        or name.endswith("_VISIBLE_DEVICES")
        or name in ("CUDA_DEVICE_ORDER", "GPU_DEVICE_ORDINAL")
        or name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "PYTHONWARNINGS", "TTY_COMPATIBLE")
        or name in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
    )


class Nvml(ModuleType):
    """As much of pynvml as discovery uses. ``gpus`` and ``mig`` map UUIDs to compute capabilities.

    fails_in : a function of NVML, or a function and the index of the GPU that it fails for, to its error's text
    """

    class NVMLError(Exception):
        pass

    def __init__(
        self,
        gpus: Mapping[str | bytes, tuple[int, int]],
        mig: Mapping[str, tuple[int, int]],
        fails_in: Mapping[str | tuple[str, int], str],
    ) -> None:
        super().__init__("pynvml")
        self.gpus, self.mig, self.fails_in = list(gpus.items()), mig, fails_in
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            index = self.gpus.index(arguments[0]) if arguments and arguments[0] in self.gpus else (*arguments, None)[0]
            for failing in (name, (name, index)):
                if failing in self.fails_in:
                    raise self.NVMLError(self.fails_in[failing])
            return getattr(self, f"_{name}")(*arguments)

        return call

    def _nvmlInit(self) -> None:  # noqa: N802 (NVML's own name, as below)
        pass

    _nvmlShutdown = _nvmlInit  # noqa: N815

    def _nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str | bytes, tuple[int, int]]:  # noqa: N802
        return self.gpus[index]

    def _nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[str | bytes, tuple[int, int]]:  # noqa: N802
        if uuid not in self.mig:
            raise self.NVMLError("Not Found")
        return uuid, self.mig[uuid]

    def _nvmlDeviceGetUUID(self, handle: tuple[str | bytes, tuple[int, int]]) -> str | bytes:  # noqa: N802
        return handle[0]

    def _nvmlDeviceGetCudaComputeCapability(  # noqa: N802
        self, handle: tuple[str | bytes, tuple[int, int]]
    ) -> tuple[int, int]:
        return handle[1]


class Machine:
    """The machine that discovery sees; it has no GPU until one is plugged in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self._kfd = monkeypatch, folder / "kfd"
        monkeypatch.setattr(targets, "KFD", str(self._kfd))
        self._folder = folder
        for name in ("DRI", "DRM", "DEV"):
            monkeypatch.setattr(discovery, name, str(folder / name.lower()))
        monkeypatch.setattr("capgate.compat._installation.AMDGPU", str(folder / "amdgpu"))
        monkeypatch.setattr(rocm_platform, "run_clinfo", lambda: pytest.fail("discovery starts another program"))
        self.nvidia({}, fails_in={"nvmlInit": "NVML Shared Library Not Found"})

    def amd(self, *archs: str) -> None:
        """AMD GPUs of these architectures, in this order."""
        self._monkeypatch.setenv("ROCM_BOOTSTRAP_FORCE_GFX_ARCH", ",".join(archs))

    def kfd(
        self,
        nodes: Mapping[int, int],
        properties: Mapping[int, Mapping[str, int]] | None = None,
        refused: Mapping[int, Exception] | None = None,
    ) -> None:
        """What AMD's kernel driver shows: node number to ``gfx_target_version``, 0 for a CPU's node.

        properties : further properties of a node
        refused : what reading a node raises
        """
        topology = self._kfd / "kfd" / "topology" / "nodes"
        for number, version in nodes.items():
            node = topology / str(number)
            node.mkdir(parents=True)
            shown = {"simd_count": version and 1024, "gfx_target_version": version, **(properties or {}).get(number, {})}
            (node / "properties").write_text("".join(f"{name} {value}\n" for name, value in shown.items()))
        read = rocm_platform.read_kfd_properties

        def read_or_refuse(node: Path) -> str:
            if error := (refused or {}).get(int(node.name)):
                raise error
            return read(node)

        self._monkeypatch.setattr(rocm_platform, "read_kfd_properties", read_or_refuse)
        self._monkeypatch.setattr(rocm_platform, "KFD_TOPOLOGY", topology)

    def intel(self, number: int, driver: str = "xe", vendor: str = "0x8086") -> None:
        """A graphics device as the kernel shows it."""
        device = self._folder / "drm" / f"card{number}" / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "driver").symlink_to(self._folder / "drivers" / driver)

    def ascend(self, *numbers: int) -> None:
        """Ascend's devices."""
        (self._folder / "dev").mkdir()
        for number in numbers:
            (self._folder / "dev" / f"davinci{number}").touch()
        (self._folder / "dev" / "davinci_manager").touch()

    def nvidia(
        self,
        gpus: Mapping[str | bytes, tuple[int, int]],
        mig: Mapping[str, tuple[int, int]] | None = None,
        fails_in: Mapping[str | tuple[str, int], str] | None = None,
    ) -> Nvml:
        """NVIDIA GPUs in this order; ``fails_in`` as :class:`Nvml` has it."""
        nvml = Nvml(gpus, mig or {}, fails_in or {})
        self._monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A bare machine and a fresh process; what a test remembers or registers is gone after it."""
    for name in filter(_is_setting, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setattr(probes, "_findings", {})
    distributions._claims.cache_clear()
    monkeypatch.setattr(lookup, "_snapshots", {})
    monkeypatch.setattr(switches, "_from_environment", None)
    monkeypatch.setattr(targets, "_of_started_device", {})
    if "torch" in sys.modules:  # other tests may have started the driver of the machine that these run on
        monkeypatch.setattr(sys.modules["torch"].cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(registry, "REGISTERED", dict(registry.REGISTERED))
    return Machine(monkeypatch, tmp_path)


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget the switches that were read from the environment, as a new process would."""
    return lambda: monkeypatch.setattr(switches, "_from_environment", None)


@pytest.fixture
def lane() -> str:
    """The Triton under test, one of the five with expectations; skips for any other, such as a vendor's build."""
    version: str = pytest.importorskip("triton").__version__
    if version not in LANES:
        pytest.skip(f"the expectations are for Triton {', '.join(LANES)}: found {version}")
    return version


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings that logger ``capgate`` has given so far."""
    return lambda: [
        record.getMessage() for record in caplog.records if record.name == "capgate" and record.levelname == "WARNING"
    ]


class Site:
    """A folder of packages in front of all others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self.folder = monkeypatch, folder
        self.packages: set[str] = set()
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))

    def package(self, name: str, source: str = "") -> None:
        """A package in the place of the real one of that name, which counts as not imported yet."""
        (self.folder / name).mkdir()
        (self.folder / name / "__init__.py").write_text(source)
        self.packages.add(name)
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            self._monkeypatch.delitem(sys.modules, module)

    def distribution(self, name: str, version: str, entry_points: str = "", record: str | None = None) -> Path:
        """A distribution's metadata, in a folder that it returns; ``record`` lists files: path,hash,size."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        if record is not None:
            (info / "RECORD").write_text(record)
        return info


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """An empty :class:`Site`; what was imported from it is forgotten afterwards."""
    made = Site(monkeypatch, tmp_path / "site")
    yield made
    for module in [module for module in sys.modules if module.partition(".")[0] in made.packages]:
        del sys.modules[module]


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a new interpreter on this machine as it is, without switches; keywords are environment variables."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if not _is_setting(name) and name != "TRITON_INTERPRET"
        }
        folder = tmp_path / "cwd"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, *arguments], env=environment | variables, cwd=folder, capture_output=True, text=True, timeout=1200
        )

    return run
