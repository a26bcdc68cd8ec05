"""Whole processes' worth of fake engines."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import upstream

# As aiter's: an old name imports the new module and hands out its spec, by which Python then runs it once more.
RENAMED = """
import importlib, sys
from types import SimpleNamespace

def find_spec(fullname, path, target=None):
    if fullname in ("aiter.ops.triton.fp8_mqa_logits", "aiter.ops.triton.pa_mqa_logits"):
        new = fullname.replace("triton.", "triton.attention.")
        sys.modules[fullname] = importlib.import_module(new)
        return importlib.util.find_spec(new)
    return None

sys.meta_path.insert(0, SimpleNamespace(find_spec=find_spec))
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """The folder of the engines' packages."""
    with upstream.only_from(tmp_path):
        yield tmp_path


@pytest.fixture
def engines(site: Path) -> Path:
    """aiter, DeepGEMM and vLLM with what the drop-ins replace."""
    upstream.write_packages(site)
    return site


@pytest.fixture
def renaming(engines: Path) -> Path:
    """The engines, of which aiter has its modules under an old name too."""
    (engines / "aiter/ops/triton/__init__.py").write_text(RENAMED)
    return engines


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings of logger ``capgate`` so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
