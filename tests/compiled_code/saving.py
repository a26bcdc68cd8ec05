"""Compiles every call in processes side by side, and saves a file of instructions for each.

Run as ``python -m compiled_code.saving TARGET PART PARTS FOLDER ONLY`` it is one of those processes, which compiles a part of a
target's calls, in order, but for those that have a file: a compiler that dies or hangs takes one call with it.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from capgate import compat
from capgate.compat import versions
from capgate.compat.command import in_words
from capgate.compat.offline.absent import set_absent_gpu
from capgate.compat.offline.child import machine_code
from capgate.compat.offline.children import Child
from capgate.compat.offline.disassembly import normal_form
from support import mbarriers
from support.processes import environment

from .calls import calls, launches

TIMEOUT = 300  # seconds without a file more, after which a compiler hangs
FAILED, FAULT = "; does not compile: ", "; mbarrier: "


def save(folder: Path, targets: Sequence[str], workers: int, only: str) -> int:
    """Save the instructions of the targets' calls whose names contain ``only``; returns the exit status."""
    home = folder / (versions.find("triton").text or "none")
    if home.exists():
        print(f"{home} exists: name another folder, or remove it", file=sys.stderr)
        return 2
    began = time.monotonic()
    files: list[Path] = []
    for target in targets:
        place = home / target.replace(":", "-")
        place.mkdir(parents=True)
        names = chosen(compat.capabilities(target).target, only)
        files += compile_target(target, place, names, workers, only)
    wrong = [(file, line) for file in files for line in file.read_text().splitlines() if line.startswith((FAILED, FAULT))]
    for file, line in wrong:
        print(f"{file.stem}: {line[2:]}")
    count = len({file for file, _ in wrong})
    print(f"{home}: {len(files)} calls, {count} of them not in order; {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def chosen(target: compat.Target, only: str) -> list[str]:
    return [name for name in calls(target) if only in name]


def compile_target(target: str, folder: Path, names: Sequence[str], workers: int, only: str) -> list[Path]:
    """Until each of a target's calls has a file."""
    files = [folder / f"{name}.txt" for name in names]
    # With another line table ptxas may make other instructions of the same PTX.
    variables = environment(TRITON_ALWAYS_COMPILE="1", TRITON_DISABLE_LINE_INFO="1")
    while not all(file.exists() for file in files):
        with ExitStack() as stack:
            children: dict[int, tuple[Child, IO[str]]] = {}
            for part in range(workers):
                if all(file.exists() for file in files[part::workers]):
                    continue
                said = stack.enter_context(tempfile.TemporaryFile("w+"))
                command = [sys.executable, "-m", "compiled_code.saving", target, str(part), str(workers), str(folder), only]
                child = Child(command, env=variables, stdout=subprocess.DEVNULL, stderr=said)
                children[part] = stack.enter_context(child), said
            wait_for([child for child, _ in children.values()], folder)
            for part, (child, said) in children.items():
                if child.returncode > 0:
                    said.seek(0)
                    sys.stderr.write(said.read()[-4000:])
                    raise SystemExit(f"{target}: this script failed, and not a compiler")
                culprit = next((file for file in files[part::workers] if not file.exists()), None)
                if culprit:
                    culprit.write_text(f"{FAILED}the compiler ended by signal {-child.returncode}\n")
    return files


def wait_for(children: Sequence[Child], folder: Path) -> None:
    """Until all have ended, by themselves or since they hang."""
    count, since = 0, time.monotonic()
    while any(child.poll() is None for child in children):
        time.sleep(0.2)
        found = sum(1 for _ in folder.iterdir())
        if found != count:
            count, since = found, time.monotonic()
        elif time.monotonic() - since > TIMEOUT:
            for child in children:
                child.kill()


def compile_part(target_name: str, part: str, parts: str, folder: str, only: str) -> None:
    """Save every call of a part that has no file yet."""
    target = compat.capabilities(target_name).target
    set_absent_gpu(target)
    every = calls(target)
    for name in chosen(target, only)[int(part) :: int(parts)]:
        file = Path(folder, f"{name}.txt")
        if file.exists():
            continue
        try:
            text = "".join(text_of(launch, target) for launch in launches(every[name]))
        except Exception as error:  # a compiler may fail in any way; that it does is what is saved
            text = f"{FAILED}{in_words(error)}\n"
        unfinished = file.with_suffix(".part")
        unfinished.write_text(text)
        unfinished.rename(file)


# What a loader reads beside the instructions: of LLVM's assembly also the symbols that its directives refer to.
DIRECTIVES = {"hip": r"^\s*(\.(?:amdhsa_(?!kernel )\w+|set) .*)", "cuda": r"^(\.(?:maxnreg|reqntid|maxntid|minnctapersm) .*)"}


def text_of(launch: compat.Launch, target: compat.Target) -> str:
    """A launch's instructions, a line each, behind what else its machine code depends on, in lines that begin with ";"."""
    compiled = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.keywords)
    assembly = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"].replace(compiled.metadata.name, "<kernel>")
    kinds = ", ".join(kind for kind in compiled.src.signature.values() if kind != "constexpr")
    head = [f"arguments {kinds}", f"grid {launch.grid}"]
    head += [f"warps {compiled.metadata.num_warps}, shared memory {compiled.metadata.shared} bytes"]
    head += [" ".join(line.split()) for line in re.findall(DIRECTIVES[target.backend], assembly, re.MULTILINE)]
    if "mbarrier.init" in compiled.asm["llir"]:
        boxes = mbarriers.boxes_of(list(compiled.src.signature.values()))
        head += [f"{FAULT[2:]}{words}" for words in mbarriers.faults(compiled.asm["llir"], boxes)]
    code = normal_form(machine_code(compiled, target))
    return "".join(f"; {line}\n" for line in head) + "".join(f"{line}\n" for line in code)


if __name__ == "__main__":
    compile_part(*sys.argv[1:])
