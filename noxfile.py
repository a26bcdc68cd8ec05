# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""Every check of this project, each against a pinned Triton: ``nox -l`` lists them, plain ``nox`` runs the gates."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "typecheck", "tests(triton-3.5.1)", "tests(triton-3.6.0)"]
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")

# What each Triton is installed with. One resolver call takes both, so that pip picks a torch that agrees with the Triton.
# The interpreters of 3.5.1 and 3.6.0 fail on numpy 2.4; 3.8.0 and 3.9.0 are newer than the Triton that torch 2.14 asks for.
LANES = {
    "3.5.1": ["torch>=2.9", "numpy<2.4"],
    "3.6.0": ["torch>=2.9", "numpy<2.4"],
    "3.7.1": ["torch>=2.9", "numpy"],
    "3.8.0": ["torch>=2.9,<2.14", "numpy"],
    "3.9.0": ["torch>=2.9,<2.14", "numpy"],
}
GATES = ("3.5.1", "3.6.0")
FORWARD = tuple(triton for triton in LANES if triton not in GATES)
SYSTEM_TORCH = "--system-torch"
WORKERS = ("-n", "auto", "--dist", "worksteal", "--durations=10")  # side by side, one worker a core; then what took longest
WHOLE = "3.6.0"  # has every cell, runs what says the same with any Triton, and, with Triton hidden, what needs none

# The engines that tests/engines calls, as they were read and tried. Their own dependencies would bring CUDA and a torch for it:
# what importing takes without a GPU is in the dependency groups engine-NAME of pyproject.toml.
ENGINES = {
    "vllm": ["vllm==0.33.0"],
    "sglang": ["sglang==0.5.23", "sgl-deep-gemm==0.2.3.post2", "flashinfer-python==0.7.2.post1"],
    "aiter": [],
}
DEEP_GEMMS = ("0.2.3.post2", "0.2.5")  # of sgl-deep-gemm: before DeepGEMM 2.8, and after; vLLM takes one before its own copy
AITER, AITER_COMMIT = "https://github.com/ROCm/aiter", "e4048607a535ace3a2b51ded31b1c8c2d45c0879"  # 22 August 2026

built: list[str] = []  # the wheel of this run of nox


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, name))


def wheel(session: nox.Session) -> str:
    """Build this tree's wheel, once a run, and return its path; every session tests what a user would install."""
    folder = Path(session.cache_dir) / "wheel"
    if not built:
        shutil.rmtree("build", ignore_errors=True)  # setuptools copies what an earlier build left there into the wheel
        shutil.rmtree(folder, ignore_errors=True)
        session.run_install("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), ".")
        built.append(str(next(folder.glob("*.whl"))))
    return built[0]


def stack(triton: str) -> list[str]:
    """The requirements of a lane; CAPGATE_TORCH replaces the one for torch (a ROCm wheel's file or address, say)."""
    torch, *others = LANES[triton]
    return [os.environ.get("CAPGATE_TORCH", torch), f"triton=={triton}", *others]


def beside(session: nox.Session, triton: str) -> str:
    """The folder of another Triton than the session's own, for PYTHONPATH."""
    folder = Path(session.create_tmp()) / f"triton-{triton}"
    if not folder.exists():
        session.install("--quiet", "--no-deps", "--target", str(folder), f"triton=={triton}")
    return str(folder)


def overlay(session: nox.Session, triton: str, *requirements: str) -> tuple[str, str]:
    """Put this tree's wheel and a Triton into a folder over the machine's own Python and torch; returns Python and folder."""
    python, folder = shutil.which("python3") or "python3", str(Path(session.create_tmp()) / "overlay")
    wanted = [wheel(session), f"triton=={triton}", *requirements]
    session.run_install(python, "-m", "pip", "install", "--upgrade", "--target", folder, *wanted, external=True)
    return python, folder


@contextmanager
def telling(session: nox.Session, words: str) -> Iterator[None]:
    """Say every four seconds what is being done, as long as it lasts: pip shows nothing where it is not on a terminal."""
    ended, began = Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(4):
            session.log(f"{words}: {time.monotonic() - began:.0f} s so far")

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def measured(session: nox.Session) -> Path:
    """The folder where bench leaves a file for each Triton, and compare finds them."""
    folder = Path(session.cache_dir) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@nox.session
@nox.parametrize("triton", [nox.param(v, id=f"triton-{v}", tags=["forward"] if v in FORWARD else []) for v in LANES])
def tests(session: nox.Session, triton: str) -> None:
    """Run the tests on one Triton; ``-- --system-torch`` keeps the machine's own torch and overlays only Triton."""
    arguments = [argument for argument in session.posargs if argument != SYSTEM_TORCH]
    # Byte code is kept wherever this runs: without it every worker would compile the tests again, as pytest rewrites them.
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    environment["TRITON_CACHE_DIR"] = str(Path(session.create_tmp()) / "triton-cache")
    if SYSTEM_TORCH in session.posargs:
        python, folder = overlay(session, triton, *group("test"))
        environment["PYTHONPATH"] = folder
        pytest = [python, f"{folder}/bin/pytest"]
    else:
        # Most modules of torch and sympy are never imported: byte code for all of them would take half of an install's time.
        session.install("--no-compile", wheel(session), *stack(triton), *group("test"))
        python, pytest = "python", ["pytest"]
    check = f"import triton; assert triton.__version__ == {triton!r}, triton.__version__; print('Triton', triton.__version__)"
    session.run(python, "-c", check, env=environment, external=True)
    if arguments:
        session.run(*pytest, *arguments, env=environment, external=True)
        return
    # Triton decides at import whether it interprets: the kernels' tests run on the CPU, the others as in production.
    parts: dict[str, tuple[list[str], dict[str, str]]] = {
        "as in production": (["--only=each-triton", "--ignore=tests/kernels", "--ignore=tests/engines"], {}),
        "in the interpreter": (["--only=each-triton", "tests/kernels"], {"TRITON_INTERPRET": "1"}),
    }
    if triton == WHOLE:
        parts["without Triton"] = (["--only=any-triton"], {})
    else:
        others = [lane for lane in LANES if lane != WHOLE]
        for options, _ in parts.values():
            options += ["-m", "not one_lane", f"--hand={others.index(triton) + 1}/{len(others)}"]
    failed = []
    for part, (options, switches) in parts.items():  # all of them, whatever the first one says
        try:
            session.run(*pytest, *WORKERS, *options, env={**environment, **switches}, external=True)
        except CommandFailed:
            failed.append(part)
    if failed:
        session.error(f"tests failed: {', '.join(failed)}")


def aiter_sources(session: nox.Session) -> str:
    """The folder of aiter's sources: AITER_SOURCE, a folder or an archive with them, or a clone of its repository."""
    folder = Path(session.create_tmp()) / "aiter"
    source = Path(os.environ.get("AITER_SOURCE", folder)).resolve()
    if source.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.unpack_archive(source, folder)
        return str(next(folder.glob("**/aiter/__init__.py")).parents[1])
    if not source.exists():
        session.run_install("git", "init", "--quiet", str(folder), external=True)
        session.run_install("git", "-C", str(folder), "fetch", "--depth", "1", AITER, AITER_COMMIT, external=True)
        session.run_install("git", "-C", str(folder), "checkout", "--quiet", "FETCH_HEAD", external=True)
    return str(source)


@nox.session(default=False)
@nox.parametrize("engine", [nox.param(name, id=name) for name in ENGINES])
def engines(session: nox.Session, engine: str) -> None:
    """Install the drop-ins into a real engine and call it, on the CPU: its own wrappers and callers, against float64."""
    session.install("--no-compile", wheel(session), *stack(WHOLE), *group("test"), *group(f"engine-{engine}"))
    path, tritons = [], [WHOLE]
    if ENGINES[engine]:
        session.install("--quiet", "--no-compile", "--no-deps", *ENGINES[engine])
    else:
        path, tritons = [aiter_sources(session)], [WHOLE, "3.5.1"]
    environment = {"ENGINE_UNDER_TEST": engine, "TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["AITER_USE_SYSTEM_TRITON"] = "1"  # without it all of aiter refuses to be imported with Triton 3.5
    if engine == "vllm":
        for version in DEEP_GEMMS:
            folder = Path(session.create_tmp()) / f"sgl-deep-gemm-{version}"
            if not folder.exists():
                session.install("--quiet", "--no-deps", "--target", str(folder), f"sgl-deep-gemm=={version}")
            environment[f"DEEP_GEMM_{version.replace('.', '_')}"] = str(folder)
    for triton in tritons:
        others = [beside(session, triton)] if triton != WHOLE else []
        environment["PYTHONPATH"] = os.pathsep.join([*path, *others])
        # Other people's code warns of what it likes.
        session.run("pytest", "-W", "default", *(session.posargs or [f"tests/engines/{engine}"]), env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check types with mypy, strictly, in the installed package."""
    session.install(wheel(session), *group("typecheck"))
    session.run("mypy", "-p", "capgate")


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Take prefill and decode through every variant that runs here, and say which would run on which stack and why."""
    if not (Path(session.create_tmp()) / "triton-3.5.1").exists():
        session.log("The first run installs a torch and two Tritons: some minutes, and 2 GB of .nox with a CPU build of torch,")
        session.log(
            "6 GB with PyPI's, which brings CUDA. Another torch: CAPGATE_TORCH='torch @ file:///wheels/torch-2.9.1-....whl'"
        )
    with telling(session, "building the wheel"):
        built_wheel = wheel(session)
    with telling(session, "installing torch and Triton 3.6.0"):
        session.install(built_wheel, *stack("3.6.0"))
    with telling(session, "installing Triton 3.5.1 beside it"):
        older = beside(session, "3.5.1")
    session.run("capgate", "demo", "--stack", older, *session.posargs, env={"OPENBLAS_NUM_THREADS": "1"})


@nox.session(default=False)
@nox.parametrize("triton", [nox.param(v, id=f"triton-{v}") for v in GATES])
def bench(session: nox.Session, triton: str) -> None:
    """Time the variants on one Triton, the serving runs unless arguments say otherwise; ``-- --system-torch`` as in tests."""
    arguments = [argument for argument in session.posargs if argument != SYSTEM_TORCH] or ["--workload", "serving"]
    command, environment = ["capgate"], {}
    if SYSTEM_TORCH in session.posargs:
        python, folder = overlay(session, triton)
        command, environment = [python, f"{folder}/bin/capgate"], {"PYTHONPATH": folder}
    else:
        session.install(wheel(session), *stack(triton))
    file = str(measured(session) / f"{triton}.json")
    session.run(*command, "bench", "--json", file, *arguments, env=environment, external=True)


@nox.session(default=False)
def compare(session: nox.Session) -> None:
    """Put what bench measured on each Triton beside each other; arguments go to ``capgate compare``."""
    files = sorted(str(file) for file in measured(session).glob("*.json"))
    if not files:
        session.error("nothing to compare: nox -s bench comes first")
    session.install(f"{wheel(session)}[plot]")
    session.run("capgate", "compare", *files, *session.posargs)


@nox.session(default=False)
def gfx950(session: nox.Session) -> None:
    """Compile variants of logits for gfx950 with each Triton, execute them in the emulator, and print docs/gfx950.md's tables.

    Arguments go to ``capgate compile`` of all four operations; without, each has one output mode.
    """
    session.install(wheel(session), "torch>=2.9,<2.14", "numpy", *group("test"))
    folder = Path(session.create_tmp())
    modes = {
        **dict.fromkeys(("fp8_mqa_logits", "fp8_paged_mqa_logits"), "unclean"),
        **dict.fromkeys(("mx_mqa_logits", "mx_paged_mqa_logits"), "mxfp4-unclean"),
    }
    for operation, mode in modes.items():
        files = []
        for version in LANES:
            file = folder / f"{operation}-{version}.json"
            environment = {"PYTHONPATH": beside(session, version), "OPENBLAS_NUM_THREADS": "1"}
            command = [
                "capgate",
                "compile",
                operation,
                "--target",
                "hip:gfx950",
                "--json",
                *(session.posargs or ["--modes", mode]),
            ]
            with file.open("w") as output:
                session.run(*command, env=environment, stdout=output)
            session.run("python", "tests/gfx950/emulated.py", str(file), env=environment)
            files.append(str(file))
        session.run("capgate", "compile", "--from", *files, "--markdown")


@nox.session(default=False)
def code(session: nox.Session) -> None:
    """Save what every kernel compiles to (``save FOLDER [TRITON ...]``), or compare two such folders (``compare A B``)."""
    session.install(wheel(session), "torch>=2.9,<2.14", "numpy")
    command, *rest = session.posargs or ["--help"]
    if command != "save" or not rest:
        session.run("python", "tests/compiled_code", command, *rest)
        return
    for version in rest[1:] or LANES:
        session.run("python", "tests/compiled_code", "save", rest[0], env={"PYTHONPATH": beside(session, version)})


@nox.session(default=False)
def capabilities(session: nox.Session) -> None:
    """Make docs/capabilities.md anew, by asking each Triton; with ``-- --check`` say whether it is out of date."""
    session.install(wheel(session), "torch>=2.9,<2.14", "numpy")
    for version in LANES:
        session.run("python", "docs/capabilities.py", *session.posargs, env={"PYTHONPATH": beside(session, version)})


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Make the API reference from the docstrings, as plain files in the folder given after ``--``, or in this session's own."""
    session.install(wheel(session), *stack("3.6.0"), *group("docs"))
    folder = session.posargs[0] if session.posargs else str(Path(session.create_tmp()) / "api")
    session.run("python", "docs/api.py", folder)
    session.log(f"the reference is {folder}/index.html")


@nox.session(default=False, python=["3.10", "3.11", "3.12", "3.13", "3.14"])
def pythons(session: nox.Session) -> None:
    """Install the wheel with each Python that it is for, without torch and Triton, and report with warnings as errors."""
    session.install(wheel(session))
    session.run("python", "-W", "error", "-m", "capgate.compat", "--target", "hip:gfx950", "--brief")
    session.run("capgate", "report", "--target", "cuda:90", "--json", silent=True)


@nox.session(default=False)
def universal(session: nox.Session) -> None:
    """Lay the wheel out as a universal kernel of Hugging Face's ``kernels``, and load it there, where no capgate is."""
    session.install(wheel(session), *group("test"))
    folder, other = (Path(session.create_tmp()) / name for name in ("kernel", "environment"))
    session.run("python", "docs/universal_kernel.py", wheel(session), str(folder))
    session.run("python", "-m", "venv", str(other))
    python = str(other.resolve() / "bin" / "python")
    session.run(python, "-m", "pip", "install", "--quiet", "kernels", "torch>=2.9", "numpy", external=True)
    environment = {"KERNELS_PYTHON": python, "UNIVERSAL_KERNEL": str(folder.resolve())}
    session.run("pytest", "tests/packaging/test_universal_kernel.py", *session.posargs, env=environment)
    session.log(f"the kernel is {folder}")


@nox.session(default=False)
def minimums(session: nox.Session) -> None:
    """Test compat and the report with the oldest dependencies that are allowed, without torch and without Triton."""
    oldest = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    session.install(wheel(session), *oldest, *group("test"))
    session.run("capgate", "report", "--target", "hip:gfx950")
    session.run("pytest", *WORKERS, "tests/compat")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Make the sdist, which holds the tests, and the wheel in dist/."""
    shutil.rmtree("build", ignore_errors=True)
    session.install(*group("build"))
    session.run("python", "-m", "build", *session.posargs)
    for sdist in Path("dist").glob("*.tar.gz"):
        with tarfile.open(sdist) as archive:
            held = {name.partition("/")[2] for name in archive.getnames()}
        if missing := {"noxfile.py", "tests/conftest.py", "docs/tour.md", ".ci/run"} - held:
            session.error(f"{sdist} lacks {', '.join(sorted(missing))}")
