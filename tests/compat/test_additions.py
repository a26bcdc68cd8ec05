"""Variants that other distributions add to an operation: where they stand, whose they are, and what is refused."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from capgate import compat
from capgate.compat import report


class Problem(NamedTuple):
    device: str = "cpu"


@pytest.fixture
def distribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``distribute("extra", toy="Addition(...)")``: a distribution whose entry points add to operations."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def distribution(name: str, **additions: str) -> None:
        made.append(f"{name}_variants")
        lines = [f"a{number} = {text}\n" for number, text in enumerate(additions.values())]
        head = "from capgate.compat import Addition, Variant\ndef theirs(name):\n    return Variant(name, lambda: name)\n"
        (tmp_path / f"{name}_variants.py").write_text(head + "".join(lines))
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        entries = [f"{entry.replace('_', '.', 1)} = {name}_variants:a{n}\n" for n, entry in enumerate(additions)]
        (info / "entry_points.txt").write_text("[capgate.variants]\n" + "".join(entries))

    yield distribution
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def toy() -> compat.Operation[Problem]:
    operation: compat.Operation[Problem] = compat.Operation("toy", example=lambda device: Problem("cpu"))
    for name in ("fast", "plain"):
        operation.add(compat.Variant(name, lambda name=name: name))
    return operation


def test_additions_stand_where_they_ask_to(distribute: Callable[..., None], toy: compat.Operation[Problem]) -> None:
    distribute("extra", toy_a="Addition(theirs('behind'), after='fast')", toy_b="Addition(theirs('first'))", other="None")
    distribute("more", toy="Addition(theirs('between'), before='plain')")
    assert toy(Problem()) == "first"
    assert list(toy.variants) == ["first", "fast", "behind", "between", "plain"]
    assert [variant.added_by for variant in toy.variants.values()] == ["extra", None, "extra", "more", None]
    with compat.override(variant={"toy": "between"}):
        assert toy(Problem()) == "between"
    assert not toy.not_added


def test_the_report_says_whose_a_variant_is(
    distribute: Callable[..., None], toy: compat.Operation[Problem], capsys: pytest.CaptureFixture[str]
) -> None:
    distribute("extra", toy_a="Addition(theirs('theirs'), before='plain')", toy_b="Addition(theirs('lost'), after='fsat')")
    found = report.collect("cpu")
    steps = found["operations"]["toy"]["trace"]
    assert [(step["variant"], step.get("added_by")) for step in steps] == [("fast", None), ("theirs", "extra"), ("plain", None)]
    words = "variant 'lost' of extra is not added: toy has no variant 'fsat'; the nearest are fast"
    assert [note for note in found["notes"] if note.startswith(words)]
    report.show(found)
    assert "(of extra)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("Addition(theirs('plain'))", "variant 'plain' of extra is not added: toy has one of that name"),
        ("'a text'", "is not added: a str, needs a compat.Addition"),
        ("1 / 0", "is not added: ZeroDivisionError: division by zero"),
        ("Addition('name')", "is not added: TypeError: variant: got str, needs a compat.Variant"),
        (
            "Addition(theirs('x'), before='a', after='b')",
            "ValueError: before, after: got 'a' and 'b', needs one of them at most",
        ),
    ],
)
def test_what_cannot_be_added_is_said_and_left(
    addition: str,
    words: str,
    distribute: Callable[..., None],
    toy: compat.Operation[Problem],
    caplog: pytest.LogCaptureFixture,
) -> None:
    distribute("extra", toy=addition)
    with caplog.at_level(logging.WARNING, "capgate"):
        assert toy(Problem()) == "fast"
        assert toy(Problem()) == "fast"
    assert len(caplog.messages) == 1
    assert words in caplog.messages[0]
