"""``capgate compile``: what it prints, what it writes, and what it says where it cannot."""

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt  # rich brings it

from capgate import compat
from capgate.compat import versions
from capgate.kernels import cli
from capgate.kernels.tools import compile_command

# What dashboards and issues rely on.
RESULT = {"triton", "target", "variants", "torch", "operation"}
ROW = {
    *("variant", "tuning", "compiled", "error", "vgprs", "agprs", "sgprs", "spills", "scratch_bytes", "lds_bytes"),
    *(
        "waves_per_simd",
        "hot_loop",
        "seconds",
        "mode",
        "heads",
        "dim",
        "dtype",
        "accepted",
        "matrix_instructions",
        "code_bytes",
        "unread",
    ),
}
LOOP = {"total", "valu", "salu", "mfma", "lds", "vmem", "keys"}


class Fresh(NamedTuple):
    result: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def fresh(once: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """One real run of all workers: classic for gfx950 in both modes, its files saved."""

    def run() -> list[Any]:
        folder = str(tmp_path_factory.mktemp("saved"))
        arguments = ["compile", "fp8_mqa_logits", "--target", "hip:gfx950", "--variant", "classic", "--save", folder, "--json"]
        with redirect_stdout(StringIO()) as printed:
            assert cli.main([*arguments, "--timeout", "1200"]) == 0
        return [json.loads(printed.getvalue()), folder]

    result, folder = once("test_compile_command.fresh", run)
    return Fresh(result, Path(folder))


@pytest.fixture
def compiled(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Instead of compiling, the command gets what the real run found, and leaves here what it asked for."""
    asked: list[dict[str, Any]] = []

    def compile_variants(operation: str, target: Any, **options: Any) -> dict[str, Any]:
        asked.append({"operation": operation, "target": str(target), **options})
        return fresh.result

    monkeypatch.setattr(compile_command, "compile_variants", compile_variants)
    return asked


def test_the_keys_of_the_json_are_stable(fresh: Fresh) -> None:
    assert set(fresh.result) == RESULT
    assert fresh.result["triton"] == versions.find("triton").text
    assert (fresh.result["operation"], fresh.result["target"]) == ("fp8_mqa_logits", "hip:gfx950")
    assert [(row["variant"], row["mode"]) for row in fresh.result["variants"]] == [("classic", "unclean"), ("classic", "clean")]
    for row in fresh.result["variants"]:
        assert set(row) == ROW | {"files"}
        assert set(row["hot_loop"]) == LOOP
        assert row["compiled"] is True
        assert row["error"] is None
        assert row["unread"] == []
        assert (row["heads"], row["dim"], row["dtype"]) == (64, 128, "float8_e4m3fn")
        assert row["seconds"] > 0


def test_what_is_saved_is_what_was_counted(fresh: Fresh) -> None:
    for row in fresh.result["variants"]:
        assembly = (fresh.folder / f"classic.{row['mode']}.amdgcn").read_text()
        ((name, count),) = row["matrix_instructions"].items()
        assert assembly.count(f"{name} ") == count
        arguments = json.loads((fresh.folder / f"classic.{row['mode']}.arguments.json").read_text())
        assert [argument["name"] for argument in arguments["arguments"]][:7] == [
            *("q", "k", "k_scale", "weights", "starts", "ends", "out")
        ]
        assert arguments["constants"]["CLEAN"] is (row["mode"] == "clean")
        assert arguments["lds_bytes"] == row["lds_bytes"]


def test_the_table_says_that_nothing_was_run(compiled: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "fp8_mqa_logits", "--target", "gfx950"]) == 0
    said = capsys.readouterr()
    words = " ".join(said.out.split())
    assert f"compiled for hip:gfx950 by Triton {versions.find('triton').text}; nothing was run" in words
    assert "vector / 32 keys" in words
    assert said.err == ""


def test_options_reach_the_compiler(compiled: list[dict[str, Any]]) -> None:
    options = ["--heads", "32", "--dim", "64", "--modes", "compressed,clean", "--timeout", "7", "--variant", "classic"]
    cli.main(["compile", "fp8_mqa_logits", "--target", "gfx942", *options, "--dtype", "float8_e4m3fnuz"])
    asked = compiled[0]
    assert (asked["operation"], asked["target"], asked["variant"]) == ("fp8_mqa_logits", "hip:gfx942", "classic")
    assert (asked["heads"], asked["dim"], asked["dtype"]) == (32, 64, "float8_e4m3fnuz")
    assert (list(asked["modes"]), asked["timeout"]) == (["compressed", "clean"], 7)


def row(**changes: Any) -> dict[str, Any]:
    asked = {"variant": "classic", "mode": "unclean", "heads": 64, "dim": 128, "dtype": "float8_e4m3fn"}
    found = {"accepted": True, "compiled": True, "vgprs": 128, "agprs": 44, "spills": 0, "waves_per_simd": 2.0}
    loop = {"total": 200, "valu": 150, "salu": 9, "mfma": 4, "lds": 3, "vmem": 2, "keys": 64.0}
    return dict.fromkeys(ROW) | asked | found | {"hot_loop": loop} | changes


def write(folder: Path, triton: str, *rows: dict[str, Any]) -> str:
    file = folder / f"{triton}.json"
    result = {"triton": triton, "torch": "2.9.0", "operation": "fp8_mqa_logits", "target": "hip:gfx950", "variants": rows}
    file.write_text(json.dumps(result))
    return str(file)


@pytest.fixture
def two_results(tmp_path: Path) -> list[str]:
    cannot = row(variant="gluon_cdna4", accepted=False, compiled=False, error="needs Gluon | 3.6", hot_loop=None, vgprs=None)
    emulated = {"lds_cycles": 1040, "lds_ideal_cycles": 1000, "worst_error": 4.25e-8, "cases": 26}
    return [write(tmp_path, "3.5.1", cannot, row(agprs=0)), write(tmp_path, "3.6.0", row(emulated=emulated))]


def test_markdown_has_a_row_for_each_compile(two_results: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "--from", *two_results, "--markdown"]) == 0
    header, rule, *rows, empty, words = capsys.readouterr().out.splitlines()
    assert header == (
        "| Triton | variant | compiles | vector / 32 keys | LDS cycles / ideal | registers | waves / SIMD | spills | emulator |"
    )
    assert rule == "|" + " --- |" * 9
    assert rows == [
        "| 3.5.1 | gluon_cdna4 | no: needs Gluon \\| 3.6 |  |  |  |  |  |  |",
        "| 3.5.1 | classic | yes | 75 | not emulated | 128 | 2 | 0 | not emulated |",
        "| 3.6.0 | classic | yes | 75 | 1040 / 1000 | 128 + 44 | 2 | 0 | 4.2e-08 in 26 cases |",
    ]
    assert empty == ""
    assert words.startswith(
        "Target hip:gfx950, output unclean, heads 64, dims 128, dtype float8_e4m3fn. This is no run on hardware"
    )
    assert "an emulator that executed" in words


def test_markdown_of_a_fresh_compile_tells_its_modes_apart(compiled: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "fp8_mqa_logits", "--target", "gfx950", "--markdown"]) == 0
    header, _, *rows, _, words = capsys.readouterr().out.splitlines()
    assert header.startswith("| Triton | variant | output | compiles |")
    assert [line.split(" | ")[2] for line in rows] == ["unclean", "clean"]
    assert all("not emulated" in line for line in rows)
    assert "This is no run on hardware" in words
    assert "an emulator that" not in words


def test_results_of_other_tritons_can_be_shown_as_tables(two_results: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "--from", *two_results]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "by Triton 3.5.1; nothing was run" in words
    assert "by Triton 3.6.0; nothing was run" in words
    assert "gluon_cdna4, unclean: cannot run there: needs Gluon | 3.6" in words


@pytest.mark.parametrize(
    ("heads", "keys", "figure"), [(64, 64.0, 75), (32, 64.0, 150), (128, 32.0, 75), (64, None, None), (64, 0.0, None)]
)
def test_vector_instructions_are_scaled_to_32_keys_of_64_heads(heads: int, keys: float | None, figure: float | None) -> None:
    loop = {"valu": 150, "keys": keys}
    assert compile_command.vector_per_32_keys({"heads": heads, "hot_loop": loop}) == figure


def test_a_variant_that_should_compile_and_does_not_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = row(compiled=False, error="the compiler died of SIGABRT", hot_loop=None)
    assert cli.main(["compile", "--from", write(tmp_path, "3.6.0", row(), broken)]) == 1
    assert "classic, unclean: does not compile: the compiler died of SIGABRT" in " ".join(capsys.readouterr().out.split())


UNREAD = "machine code: nvdisasm cannot read it: no such architecture"


def test_a_figure_that_cannot_be_read_is_a_dash_and_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "3.6.0", row(hot_loop=None, unread=[UNREAD]))
    assert cli.main(["compile", "--from", file]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["matrix", "instructions", "-"] in lines
    assert f"classic, unclean: not read, {UNREAD}" in " ".join(word for line in lines for word in line)
    assert cli.main(["compile", "--from", file, "--markdown"]) == 0
    said = capsys.readouterr().out
    assert "| 3.6.0 | classic | yes | - | not emulated | 128 + 44 | 2 | 0 | not emulated |" in said
    assert f"Not read: classic, unclean, Triton 3.6.0: {UNREAD}." in said


def test_what_could_not_be_saved_fails_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = row(error="compiled, and not saved: OSError: [Errno 28] No space left on device")
    assert cli.main(["compile", "--from", write(tmp_path, "3.6.0", full)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "fp8_mqa_logits compiled for hip:gfx950" in said
    assert "classic, unclean: compiled, and not saved: OSError: [Errno 28] No space left on device" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "operation: none named"),
        (["fp8_mqa_logit", "--target", "gfx950"], "no operation 'fp8_mqa_logit'; the nearest are fp8_mqa_logits"),
        (["fp8_mqa_logits", "--target", "gfx9500"], "which is no AMD architecture; the nearest are gfx950"),
        (["fp8_mqa_logits", "--target", "cpu"], "target: got cpu, needs a GPU such as hip:gfx950 or cuda:90"),
        (["fp8_mqa_logits", "--target", "gfx950", "--variant", "clasic"], "no variant 'clasic'; the nearest are classic"),
        (["fp8_mqa_logits", "--target", "gfx950", "--modes", "dirty"], "mode: got 'dirty', needs one of unclean, clean"),
        (["fp8_mqa_logits", "--target", "gfx950", "--save", __file__], "File exists"),
        (["--from", "/nowhere.json"], "No such file or directory: '/nowhere.json'"),
        (["--from", __file__], "does not hold what capgate compile --json prints"),
        (["fp8_mqa_logits", "--from", "a.json"], "--from: shows what was compiled earlier"),
        (["--from", "a.json", "--json"], "--from: shows what was compiled earlier"),
    ],
)
def test_errors_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("capgate: ")
    assert words in said.err
    assert said.err.count("\n") == 1


def test_other_json_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text('{"rows": []}')
    assert cli.main(["compile", "--from", str(tmp_path / "bench.json")]) == 2
    assert "does not hold what capgate compile --json prints" in capsys.readouterr().err


def test_what_compile_prints_can_be_read_again(fresh: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fresh.json").write_text(json.dumps(fresh.result))
    for form in ([], ["--markdown"]):
        assert cli.main(["compile", "--from", str(tmp_path / "fresh.json"), *form]) == 0
        assert "classic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compiled": "yes"}, 'variants[0].compiled: got "yes", needs to be boolean'),
        ({"heads": -1}, "variants[0].heads: got -1, needs to be bigger than or equal to 0"),
        ({"heads": 1.5}, "variants[0].heads: got 1.5, needs to be integer"),
        ({"error": {}}, "variants[0].error: got an object, needs to be string or null"),
        ({"hot_loop": {"valu": 1}}, "variants[0].hot_loop: got an object, needs to contain"),
        ({"hot_loop": [1]}, "variants[0].hot_loop: got a list of 1, needs to be object or null"),
        ({"matrix_instructions": {"mfma": "many"}}, 'variants[0].matrix_instructions.mfma: got "many", needs to be integer'),
        (
            {"emulated": {"lds_cycles": 1}},
            "variants[0].emulated: got an object, missing dependency lds_ideal_cycles for lds_cycles",
        ),
        ({"waves_per_simd": float("inf")}, "variants[0].waves_per_simd: got Infinity, needs to be number or null"),
    ],
)
def test_a_wrong_result_is_refused_with_the_place(
    changes: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "3.6.0", row(**changes))
    assert cli.main(["compile", "--from", file]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"capgate: {file}: does not hold what capgate compile --json prints: {words}")
    assert said.err.count("\n") == 1


def test_a_loop_without_heads_has_no_scaled_figure() -> None:
    """Keys are written without queries."""
    assert compile_command.vector_per_32_keys({"heads": None, "hot_loop": {"valu": 150, "keys": 64.0}}) is None


def test_strings_of_a_result_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loud = "[red]x[/] \x1b]8;;http://there\x07 \u202e a|b `c` *d* <e> &amp; [f](g) \\\n"
    rows = [
        row(variant=loud, mode=loud, dtype=loud, matrix_instructions={loud: 1}, tuning={loud: loud}, files=[loud]),
        row(variant=loud, mode="clean", dtype=loud, compiled=False, error=loud, hot_loop=None),
    ]
    file = write(tmp_path, "3.6.0", *rows)
    assert cli.main(["compile", "--from", file]) == 1
    said = capsys.readouterr().out
    assert set(filter(lambda letter: not letter.isprintable(), said)) == {"\n"}
    assert "[red]x[/]" in said
    assert cli.main(["compile", "--from", file, "--markdown"]) == 1
    said = capsys.readouterr().out
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(said)
    assert [token.type for token in tokens if token.level == 0 and token.nesting >= 0] == ["table_open", "paragraph_open"]
    assert {child.type for token in tokens for child in token.children or []} <= {"text", "text_special"}


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = versions.find
    monkeypatch.setattr(versions, "find", lambda name: versions.Build(name, None) if name == "triton" else found(name))
    with compat.override(disable=["sm120"]):  # nobody has asked under these switches yet
        assert cli.main(["compile", "fp8_mqa_logits", "--target", "gfx950"]) == 2
    assert capsys.readouterr().err.startswith("capgate: triton: needs Triton: found no Triton")
