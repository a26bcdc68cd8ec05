"""Every test runs in at least one of the lanes that plain ``nox`` runs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def collected(*options: str) -> set[str]:
    """The tests that pytest finds with these options."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    listing = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert listing.returncode == 0, listing.stdout[-4000:] + listing.stderr[-4000:]
    return {line for line in listing.stdout.splitlines() if "::" in line}


def test_without_triton_all_tests_are_found_that_are_left_out_elsewhere() -> None:
    """What is not marked runs in every lane; no parameter and no file of what is marked depends on a Triton."""
    found = collected("--only=any-triton")
    assert found == collected("-m", "any_triton")
    assert found


def test_a_lane_of_plain_nox_runs_what_needs_no_triton() -> None:
    tree = ast.parse((REPOSITORY / "noxfile.py").read_text())
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    whole, gates = (ast.literal_eval(constants[name]) for name in ("WHOLE", "GATES"))
    assert whole in gates
