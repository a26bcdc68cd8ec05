"""What a check compiles: the launches of recordings, and the variants of operations."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..offline.jobs import Job, examples_of, operation_of
from . import recordings
from .values import words


class Subject(NamedTuple):
    """One thing to compile.

    title : its name in tables, which no other subject has
    told : what it is compiled for, in words
    trial : whether an autotuner only tries it, and passes over it where it does not compile
    child : the module whose process compiles it
    request : what that process is told besides, the same for all that share one
    job : what it is told of this one
    """

    title: str
    told: tuple[str, ...]
    trial: bool
    child: str
    request: dict[str, Any]
    job: dict[str, Any]


def all_of(names: Sequence[str]) -> list[Subject]:
    """The subjects of recordings' files and operations' names, each once, with numbers behind titles that several have.

    Raises ValueError for what is neither.
    """
    files = [name for name in dict.fromkeys(names) if Path(name).exists() or name.endswith(".json")]
    found = [subject for name in dict.fromkeys(names) if name not in files for subject in _of_operation(name)]
    if missing := next((file for file in files if not Path(file).exists()), None):
        raise ValueError(f"what: no file {missing!r}, needs one that capgate record wrote, or an operation's name")
    if files:
        whole = recordings.merged(recordings.DOCUMENT.read(file) for file in files)
        found += [_of_launch(launch) for launch in whole["launches"]]
    many, seen = Counter(subject.title for subject in found), Counter[str]()
    for place, subject in enumerate(found):
        seen[subject.title] += 1
        if many[subject.title] > 1:
            found[place] = subject._replace(title=f"{subject.title} #{seen[subject.title]}")
    return found


def _of_launch(launch: recordings.Launch) -> Subject:
    told = [f"{name} {words(value)}" for part in ("arguments", "options") for name, value in launch[part].items()]
    return Subject(recordings.title(launch), tuple(told), launch["trial"], f"{__package__}.child", {}, launch)


def _of_operation(name: str) -> list[Subject]:
    operation, modes = operation_of(name), examples_of(name).modes
    request = {"operation": name, "module": operation.module, "save": None}
    child = f"{__package__.rpartition('.')[0]}.offline.child"
    return [
        Subject(f"{name}: {variant}, {mode}", (), False, child, request, {**Job(variant, mode=mode)._asdict(), "stem": ""})
        for variant in operation.variants
        for mode in modes
    ]
