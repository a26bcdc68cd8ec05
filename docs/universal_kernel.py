"""Make what Hugging Face's ``kernels`` loads as a universal kernel: ``python docs/universal_kernel.py WHEEL FOLDER``.

FOLDER then has ``build/torch-universal`` with the wheel's files below ``site``, a module that finds them, and metadata.json.
``kernels.get_local_kernel(FOLDER)`` loads it; uploaded as a kernel repository, ``get_kernel`` does.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

VARIANT = "torch-universal"  # kernels, variants.py: for every backend, without compiled parts

MODULE = '''"""capgate, as a universal kernel: its functions, which choose a variant for the device of their tensors.

capgate registers operators with torch, so a process has it once: an installed one of the same version is taken, and one of
another version is an error.
"""

import sys
from importlib.metadata import version
from pathlib import Path

_SITE = str(Path(__file__).parent / "site")
if _SITE not in sys.path:
    sys.path.append(_SITE)  # behind an installed capgate

from capgate import compat, kernels  # noqa: E402

if version("capgate") != {version!r}:
    _FOUND = version("capgate")
    raise ImportError(f"capgate {{_FOUND}} is installed, and this kernel is {version}: uninstall it, or load its own kernel")


def __getattr__(name):
    return getattr(kernels, name)


def __dir__():
    return sorted({{"compat", *dir(kernels)}})
'''


def build(wheel: Path, folder: Path) -> Path:
    """Lay the kernel out below ``folder`` and return the variant's folder."""
    version = wheel.name.split("-")[1]
    variant = folder / "build" / VARIANT
    variant.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--upgrade"]
    subprocess.run([*pip, "--target", str(variant / "site"), str(wheel)], check=True)
    (variant / "__init__.py").write_text(MODULE.format(version=version))
    about = {
        "id": f"_capgate_universal_{hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]}",
        "name": "capgate",
        "version": 1,
        "license": "MIT",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    (variant / "metadata.json").write_text(json.dumps(about, indent=1) + "\n")
    return variant


if __name__ == "__main__":
    wheel, folder = map(Path, sys.argv[1:])
    print(build(wheel, folder))
