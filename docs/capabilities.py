"""Make the page of capabilities: ``python docs/capabilities.py``, with each Triton in turn; ``--check`` changes nothing.

What this Triton can do goes into capabilities.json beside this file, in the place of what was there for its release, and
capabilities.md is made from that and from the table. With ``--check`` the status is 1 where one of the two would change.
"""

import json
import re
import sys
from pathlib import Path

from capgate import compat
from capgate.compat import versions
from capgate.compat.table import TABLE

RELEASES = ("3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0")
TARGETS = ("hip:gfx942", "hip:gfx950", "hip:gfx1250", "cuda:89", "cuda:90", "cuda:100", "cuda:120")
FOLDER = Path(__file__).parent
FACTS, PAGE = FOLDER / "capabilities.json", FOLDER / "capabilities.md"

# What depends on the environment, and not on the Triton.
ENVIRONMENT = {"interpreter", *(name for name, row in TABLE.items() if row.package)}
BUILD, TARGET, BOTH = ([name for name, row in TABLE.items() if row.kind == kind] for kind in ("build", "target", "both"))

HEAD = """# Every capability

`docs/capabilities.py` made this from the table (`compat/table.py`) and from what each Triton answered: edit those.
`capgate report` says the same of your own Triton and GPU, with reasons, and [gating.md](gating.md) what a capability is.
"""


def facts() -> dict[str, list[str]]:
    """What this Triton can do: of the build under "build", of both under each target."""
    build = compat.capabilities("cpu")
    found = {"build": [name for name in BUILD if name not in ENVIRONMENT and build[name]]}
    for target in TARGETS:
        caps = compat.capabilities(target)
        found[target] = [name for name in BOTH if caps[name]]
    return found


def page(known: dict[str, dict[str, list[str]]]) -> str:
    """The page, in Markdown."""
    releases = [release for release in RELEASES if release in known]
    build = [
        [code(name), row.meaning, *(_of_build(name, known[release]) for release in releases), linked(row.source)]
        for name, row in TABLE.items()
        if row.kind == "build"
    ]
    labels = [compat.capabilities(target).target.label for target in TARGETS]
    target = [
        [code(name), row.meaning, *(mark(bool(compat.capabilities(target)[name])) for target in TARGETS), linked(row.source)]
        for name, row in TABLE.items()
        if row.kind == "target"
    ]
    both = [
        [
            code(name),
            row.meaning,
            *(_of_both(name, target, known, releases) for target in TARGETS),
        ]
        for name, row in TABLE.items()
        if row.kind == "both"
    ]
    needs = [f"* {code(name)}: {', '.join(map(code, TABLE[name].all_of)) or TABLE[name].source}" for name in BOTH]
    return "\n".join(
        [
            HEAD,
            "## Of the build",
            "",
            "A probe of the installed Triton answers. What depends on the environment has no mark.",
            "",
            *table(["capability", "what it gives", *releases, "known from"], build),
            "",
            "## Of the target",
            "",
            "The architecture answers; other targets have what the table lists for them.",
            "",
            *table(["capability", "what it gives", *labels, "known from"], target),
            "",
            "## Of both",
            "",
            "The Tritons with which it holds on each target.",
            "",
            *table(["capability", "what it gives", *labels], both),
            "",
            "What each needs:",
            "",
            *needs,
            "",
        ]
    )


def _of_build(name: str, found: dict[str, list[str]]) -> str:
    return "" if name in ENVIRONMENT else mark(name in found["build"])


def _of_both(name: str, target: str, known: dict[str, dict[str, list[str]]], releases: list[str]) -> str:
    holding = [release for release in releases if name in known[release][target]]
    if holding == releases:
        return "all"
    if holding and holding == releases[-len(holding) :]:
        return f"from {holding[0]}"
    return ", ".join(holding) or "no"


def mark(holds: bool) -> str:
    return "yes" if holds else "no"


def code(text: str) -> str:
    return f"`{text}`"


def linked(source: str) -> str:
    """A source with its addresses as links: pull requests by their numbers."""
    source = re.sub(r"https://github\.com/([\w-]+/[\w-]+)/(?:pull|issues)/(\d+)", r"[\1#\2](\g<0>)", source)
    source = source.replace("[triton-lang/triton#", "[#")
    return re.sub(r"(?<!\()https://[\w./-]+[\w/]", r"<\g<0>>", source)


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def main(*options: str) -> int:
    known = json.loads(FACTS.read_text()) if FACTS.exists() else {}
    release = versions.find("triton").text
    if release in RELEASES:
        known = {**known, release: facts()}
    made = {
        FACTS: json.dumps({release: known[release] for release in RELEASES if release in known}, indent=1) + "\n",
        PAGE: page(known),
    }
    stale = [file for file, text in made.items() if not file.exists() or file.read_text() != text]
    if "--check" in options:
        for file in stale:
            print(f"{file.name} is out of date: python docs/capabilities.py makes it anew (with Triton {release})")
        return 1 if stale else 0
    for file in stale:
        file.write_text(made[file])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
