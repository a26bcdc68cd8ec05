"""Files that anybody may have written: one line says where they are wrong, and their strings are text."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capgate.compat import foreign
from capgate.compat.foreign import Document, list_of, map_of, object_with
from capgate.kernels import cli
from capgate.kernels.tools.compare import stacks as compare

NUMBERS = Document("a test writes", object_with(runs=list_of(object_with(median=foreign.POSITIVE))))
SAYS = "does not hold what a test writes"


@pytest.fixture
def run() -> dict[str, Any]:
    """What capgate bench writes, as far as a comparison reads it."""
    row = {"workload": "8k1", "variant": "classic", "clean_logits": True}
    kernel = {**row, "operation": "fp8_mqa_logits", "medians_ms": [2.0, 2.1], "flops": 8e12, "least_bytes": 4e9}
    builds = {"triton": "3.6.0", "torch": "2.11", "runtime": "13.0", "driver": None, "python": "3.12"}
    return {
        "stack": {"device": "a GPU", "target": "cuda:90", **builds},
        "workloads": {"8k1": {"requests": 64}},
        "rows": [kernel],
        "selection": [],
        "serving": [{**row, "metrics": {"total tok/s": [1.0, 2.0]}}],
        "accuracy": [{**row, "metrics": {"top keys, prefill": [0.98]}}],
    }


def refused(tmp_path: Path, content: bytes | str, document: Document = NUMBERS) -> str:
    """What is said of a file with this content, without its name."""
    file = tmp_path / "foreign.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"^/") as raised:
        document.read(str(file))
    return str(raised.value).removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is empty"),
        ("  \n", "it is empty"),
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2"),
        ('{"runs": []}\n{"runs": []}', "Extra data: line 2 column 1"),
        (b'{"runs": "J\xfcrgen"}', "it is no text in UTF-8: invalid start byte at byte 11"),
        ("[]", "got a list of 0, needs to be object"),
        ("{}", "got an object, needs to contain ['runs'] properties"),
        ('{"runs": {}}', "runs: got an object, needs to be array"),
        ('{"runs": [{"median": 1}, {}]}', "runs[1]: got an object, needs to contain ['median'] properties"),
        ('{"runs": [{"median": "fast"}]}', 'runs[0].median: got "fast", needs to be number'),
        ('{"runs": [{"median": true}]}', "runs[0].median: got true, needs to be number"),
        ('{"runs": [{"median": null}]}', "runs[0].median: got null, needs to be number"),
        ('{"runs": [{"median": 0}]}', "runs[0].median: got 0, needs to be bigger than or equal to 1e-30"),
        ('{"runs": [{"median": -2.5}]}', "runs[0].median: got -2.5, needs to be bigger than or equal to 1e-30"),
        ('{"runs": [{"median": 1e31}]}', "runs[0].median: got 1e+31, needs to be smaller than or equal to 1e+30"),
        ('{"runs": [{"median": NaN}]}', "runs[0].median: got NaN, needs to be number"),
        ('{"runs": [{"median": -Infinity}]}', "runs[0].median: got -Infinity, needs to be number"),
        ('{"runs": [{"median": 1e999}]}', "runs[0].median: got 1e999, needs to be number"),
        ('{"runs": [], "runs": [{"median": 1}]}', 'the key "runs" stands twice in one object'),
        ('{"runs": ' + "[" * 40 + "]" * 40 + "}", "needs at most 32 objects and lists in one another"),
        ("[" * 100_000, "needs at most 32 objects and lists in one another"),
    ],
)
def test_it_is_said_what_is_wrong_and_where(tmp_path, content, words):
    assert refused(tmp_path, content).startswith(f"{SAYS}: {words}")


def test_numbers_that_no_float_holds_are_short_and_found_at_once(tmp_path):
    said = refused(tmp_path, '{"runs": [{"median": ' + "9" * 1_000_000 + "}]}")
    assert said == f"{SAYS}: runs[0].median: got {'9' * foreign.SHOWN}..., needs to be number"


def test_the_value_that_is_shown_is_short(tmp_path):
    assert len(refused(tmp_path, json.dumps({"runs": [{"median": "fast" * 10**6}]}))) < 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_of_json_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"runs": [{"median": 1, "by": "Jürgen"}]}'.encode(encoding))
    assert NUMBERS.read(str(tmp_path / "a.json")) == {"runs": [{"median": 1, "by": "Jürgen"}]}


def test_a_file_is_read_up_to_a_size(tmp_path):
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"large\.json: is larger than 64 MiB$"):
        NUMBERS.read(str(tmp_path / "large.json"))


@pytest.mark.parametrize(
    ("kind", "words"), [("pipe", "a device or a pipe"), ("device", "a device or a pipe"), ("folder", "a folder")]
)
def test_only_files_are_read(tmp_path, kind, words):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{kind}: is {words}, needs a file$"):
        NUMBERS.read(str(path))


@given(st.recursive(st.text(st.characters()), lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner)))
def test_all_strings_of_a_document_are_plain(tmp_path_factory, value):
    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [*value, *(text for inner in value.values() for text in strings(inner))]
        return [text for inner in value for text in strings(inner)] if isinstance(value, list) else [value]

    file = tmp_path_factory.mktemp("foreign") / "a.json"
    file.write_text(json.dumps({"it": value}))
    read = Document("a test writes", object_with(it={})).read(str(file))
    assert all(text.isprintable() for text in strings(read["it"]))


def test_an_error_is_one_printable_line(tmp_path, capsys):
    """Whatever the file is called and its keys are."""
    file = tmp_path / "a\n\x1b[31m.json"
    run = {"stack": {}, "workloads": {"\x1b]8;;http://there\x07\n": 1}, "rows": [], "serving": [], "accuracy": []}
    file.write_text(json.dumps({**run, "stack": dict.fromkeys(("device", "target"), "x")}))
    assert cli.main(["compare", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.removesuffix("\n").isprintable()


def test_what_bench_writes_is_taken(tmp_path, run):
    (tmp_path / "a.json").write_text(json.dumps(run))
    assert compare.DOCUMENT.read(str(tmp_path / "a.json")) == run
    del run["selection"]
    (tmp_path / "a.json").write_text(json.dumps(run))
    assert compare.DOCUMENT.read(str(tmp_path / "a.json")) == run, "earlier versions timed no selection"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything that a document holds."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@pytest.mark.parametrize("wrong", [None, "text", -1, {}, [], float("nan"), 10**400], ids=repr)
def test_a_wrong_value_anywhere_is_one_line_or_no_matter(tmp_path, run, wrong, capsys):
    """Each value of a run in turn is something else: the command compares, or says in a line what is wrong."""
    for path in places(run)[1:]:
        changed = copy.deepcopy(run)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
        (tmp_path / "a.json").write_text(json.dumps(changed))
        status = cli.main(["compare", str(tmp_path / "a.json")])
        said = capsys.readouterr()
        assert (status, bool(said.out), said.err.count("\n")) in ((0, True, 0), (2, False, 1)), (path, said)


def test_names_have_a_length_that_can_be_shown(tmp_path):
    document = Document("a test writes", map_of(foreign.TEXT))
    assert "has more than 1000 characters" in refused(tmp_path, json.dumps({"a" * 1001: "b"}), document)
    assert "needs to be shorter than or equal to 1000" in refused(tmp_path, json.dumps({"a": "b" * 1001}), document)
