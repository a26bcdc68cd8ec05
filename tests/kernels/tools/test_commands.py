"""The commands on a CPU: the demo, the benchmark, and what they say where they cannot run."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from capgate import compat
from capgate.compat import versions
from capgate.kernels import cli
from capgate.kernels.tools.bench import command as bench_command
from capgate.kernels.tools.bench.plot import plot
from capgate.kernels.tools.demo import decode, prefill, stacks, working
from capgate.kernels.tools.demo.agreement import duration

pytestmark = pytest.mark.usefixtures("no_gpu")


def test_the_demo_agrees_and_explains_every_target(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prefill, "ON_CPU", (16, 9))
    monkeypatch.setattr(decode, "ON_CPU", (3, 20))
    assert cli.main(["demo", "--json", str(tmp_path / "demo.json")]) == 0
    said = json.loads((tmp_path / "demo.json").read_text())
    scored = [(outcome["operation"], outcome["variant"]) for outcome in said["outcomes"]]
    assert {("fp8_mqa_logits", "reference"), ("fp8_paged_mqa_logits", "reference")} <= set(scored)
    assert all(outcome["difference"] < 5e-6 and outcome["disturbed"] == 0 for outcome in said["outcomes"])
    ends = [outcome["end_to_end"] for outcome in said["outcomes"] if outcome["operation"] == "fp8_paged_mqa_logits"]
    assert all(0 < end < 1e-3 for end in ends), "quantised logits are near those of the activations, and not the same"
    assert [row["target"] for row in said["stacks"]] == list(stacks.TARGETS)
    assert {row["target"]: row["variant"] for row in said["stacks"]} == {
        "hip:gfx942": "gluon_cdna3" if compat.capabilities("hip:gfx942").gluon_cdna3 else "classic",
        "hip:gfx950": "gluon_cdna4" if compat.capabilities("hip:gfx950").gluon_cdna4 else "classic",
        "cuda:90": "gluon_hopper" if compat.capabilities("cuda:90").gluon_hopper else "classic",
        "cpu": "reference",
    }
    shown = capsys.readouterr().out
    assert "of 16, 9 tokens" in shown, "as many lengths as prompts"
    assert "clean_logits=False writes" in shown
    assert shown.endswith("agrees with float64.\n")


def test_a_row_of_the_table_of_stacks_says_the_one_reason_that_decides(capsys):
    refused = "needs the Gluon API of Triton 3.6: found 3.5.1; needs gfx950: found gfx942"
    unread = "needs a GPU: found no GPU; on the CPU needs TRITON_INTERPRET=1"
    trace = [{"variant": "gluon_cdna4", "reason": refused}, {"variant": "classic", "reason": unread}]

    def row(target, available, reason):
        gluon = {"capability": "gluon_cdna4", "available": available, "reason": reason}
        return {"triton": "3.5.1", "target": target, "variant": "classic", "decode": {"variant": "classic"}} | {
            "trace": trace,
            "gluon": gluon,
        }

    assert stacks.decisive(row("hip:gfx942", False, refused)) == "needs gfx950: found gfx942"
    assert stacks.decisive(row("hip:gfx950", False, refused.partition("; ")[0])) == refused.partition("; ")[0]
    assert stacks.decisive(row("hip:gfx950", True, "found Triton 3.6.0; found gfx950")) == "found Triton 3.6.0; found gfx950"
    assert stacks.decisive(row("cpu", True, "found Triton 3.6.0")) == "needs a GPU: found no GPU"


def test_nobody_waits_long_without_a_word(monkeypatch, capsys):
    monkeypatch.setattr(working, "SILENCE", 0.01)
    with working.working("counting"):
        time.sleep(0.2)
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", "counting: 0 s so far")


def test_a_time_has_three_digits_and_the_unit_that_people_read_it_in():
    assert [duration(milliseconds) for milliseconds in (0.0123, 4.5678, 999.4, 999.6, 61234.0)] == [
        "12.3 us",
        "4.57 ms",
        "999 ms",
        "1 s",
        "61.2 s",
    ]


@pytest.fixture
def _short_demo(monkeypatch):
    monkeypatch.setattr(prefill, "ON_CPU", (8,))
    monkeypatch.setattr(decode, "ON_CPU", (2, 20))
    monkeypatch.setattr(stacks, "collect", lambda folders: [])


@pytest.mark.usefixtures("_short_demo")
@pytest.mark.parametrize(("part", "operation"), [(prefill, "fp8_mqa_logits"), (decode, "fp8_paged_mqa_logits")])
def test_the_demo_fails_when_a_variant_disagrees(part, operation, monkeypatch, capsys):
    monkeypatch.setattr(part, "calc_diff", lambda logits, exact: 6e-6)
    assert cli.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert "disagreement in" in said
    assert f"reference of {operation}\n" in said


@pytest.mark.usefixtures("_short_demo")
def test_the_demo_fails_when_keys_land_in_wrong_slots(monkeypatch, capsys):
    """Every variant agrees with float64 on the same cache: only the comparison with the activations can tell."""
    write = decode.quantize_keys_to_cache
    monkeypatch.setattr(decode, "quantize_keys_to_cache", lambda k, *rest, **options: write(k.flip(0), *rest, **options))
    assert cli.main(["demo"]) == 1
    assert "reference of fp8_paged_mqa_logits" in capsys.readouterr().err


def test_bench_writes_medians_with_the_stack_that_they_belong_to(tmp_path, capsys):
    file = tmp_path / "bench.json"
    arguments = ["bench", "--workload", "f,decode-skewed", "--variants", "reference", "--repeats", "3", "--rounds", "2"]
    arguments += ["--json", str(file)]
    assert cli.main(arguments) == 0
    said = json.loads(file.read_text())
    assert said["stack"]["triton"] == versions.find("triton").text
    assert [(row["workload"], row["operation"], row["variant"], row["clean_logits"]) for row in said["rows"]] == [
        ("f", "fp8_mqa_logits", "reference", False),
        ("f", "fp8_mqa_logits", "reference", True),
        ("decode-skewed", "fp8_paged_mqa_logits", "reference", False),
        ("decode-skewed", "fp8_paged_mqa_logits", "reference", True),
    ]
    for row in said["rows"]:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert len(row["medians_ms"]) == 2
        assert min(row["medians_ms"]) <= row["median_ms"] <= max(row["medians_ms"])
        assert (row["schedule_ms"] is None) == (row["operation"] == "fp8_mqa_logits")
    lines = capsys.readouterr().out.splitlines()
    assert any("these times say nothing about a GPU" in line for line in lines)
    rows = [line.split() for line in lines]
    first = next(number for number, cells in enumerate(rows) if cells[:3] == ["decode-skewed", "reference", "no"])
    assert rows[first + 1][:3] == ["8x1x92", "reference", "yes"], "the size of a shape stands below its name"
    assert rows[first + 2] == ["64", "heads"]
    table = [line for line in lines if line.startswith(" ")]
    assert max(map(len, table)) <= 80


def test_bench_knows_groups_of_workloads(capsys):
    assert cli.main(["bench", "--workload", "decode,f", "--variants", "reference", "--repeats", "1", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert list(dict.fromkeys(row["workload"] for row in rows)) == ["f", "decode-8k", "decode-8k-h32-n2", "decode-skewed"]


@pytest.mark.one_lane
def test_bench_draws_what_it_timed(tmp_path):
    arguments = ["bench", "--workload", "f,b,decode-8k", "--variants", "reference", "--repeats", "1"]
    assert cli.main([*arguments, "--plot", f"{tmp_path}/p"]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "p.svg").read_text()
    assert "<svg" in picture
    assert "fp8_paged_mqa_logits, clean_logits=True" in picture


def test_a_plot_has_the_ceilings_of_its_run():
    row = {"flops": 4e12, "least_bytes": 4e9, "median_ms": 4.0, "floor_ms": 3.0, "clean_logits": False, "variant": "classic"}
    row |= {"size": "8192x4096", "heads": 64}
    rows = [
        {**row, "operation": "fp8_mqa_logits", "workload": "a"},
        {**row, "operation": "fp8_paged_mqa_logits", "workload": "decode-8k"},
    ]
    ceilings = {"flops": 1.5e15, "copy": 3.0e12, "read": 3.05e12}
    stack = {"device": "a GPU", "triton": "3.6.0"}
    picture = plot("svg", {"rows": rows, "stack": stack, "ceilings": ceilings}).decode()
    for words in ("fp8 matmul of 8192", "device read", "what the shape allows", "8192 x 4096", "64 heads", "TFLOP/s", "GB/s"):
        assert words in picture


@pytest.mark.one_lane
def test_bench_draws_kernels_alone(tmp_path, capsys):
    assert cli.main(["bench", "--workload", "8k1,recall", "--plot", f"{tmp_path}/p.svg"]) == 2
    assert "--plot: draws kernels" in capsys.readouterr().err


def test_bench_refuses_a_picture_of_another_kind(tmp_path, capsys):
    assert cli.main(["bench", "--plot", f"{tmp_path}/p.gif"]) == 2
    assert "needs a name that ends in .png or .svg" in capsys.readouterr().err


def test_bench_says_why_a_named_variant_cannot_run(capsys):
    assert cli.main(["bench", "--workload", "f", "--variants", "gluon_hopper"]) == 2
    assert "--variants: gluon_hopper cannot run fp8_mqa_logits here: needs" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["--repeats", "--rounds"])
def test_bench_needs_something_to_take_a_median_of(number, capsys):
    assert cli.main(["bench", number, "0"]) == 2
    assert f"capgate: {number}: got 0, needs 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--workload", "zz"], ["--variants", "fastest"]])
def test_bench_names_what_it_does_not_know(arguments, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert f"capgate: {arguments[0]}: got {arguments[1]!r}, needs one of" in capsys.readouterr().err


# Results before files

SMALLEST = ["bench", "--workload", "f", "--variants", "reference", "--clean", "off", "--rounds", "1", "--repeats", "1"]
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")


@pytest.fixture
def _no_work(monkeypatch):
    """Nothing may be timed, scored, compiled or shown."""

    def work(*arguments, **options):
        pytest.fail("files come first")

    monkeypatch.setattr(bench_command, "_measure", work)
    monkeypatch.setattr("capgate.kernels.tools.demo.command._score", work)
    monkeypatch.setattr("capgate.kernels.tools.compile_command.compile_variants", work)


@pytest.mark.usefixtures("_no_work")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SMALLEST, "--json", "missing/a.json"], "--json: missing/a.json: No such file or directory"),
        ([*SMALLEST, "--json", "."], "--json: .: Is a directory"),
        ([*SMALLEST, "--json", ""], "--json: : Is a directory"),
        ([*SMALLEST, "--plot", "missing/a.svg"], "--plot: missing/a.svg: No such file or directory"),
        ([*SMALLEST, "--plot", "missing/a"], "--plot: missing/a.png: No such file or directory"),
        ([*SMALLEST, "--plot", ""], "--plot: got '', needs a file's name"),
        (["demo", "--json", "missing/a.json"], "--json: missing/a.json: No such file or directory"),
        (["demo", "--stack", "missing"], "--stack: missing: is no folder"),
        (["compile", "fp8_mqa_logits", "--target", "gfx950", "--save", "file/a"], "--save: file/a: Not a directory"),
        (["compare", "missing.json"], "[Errno 2] No such file or directory: 'missing.json'"),
        (["report", "--svg", "missing/a.svg"], "--svg: missing/a.svg: No such file or directory"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_bad_path_is_one_line_before_any_work(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert cli.main(arguments) == 2
    assert capsys.readouterr() == ("", f"capgate: {words}\n")


@FULL
def test_what_was_timed_is_shown_and_written_elsewhere_where_a_file_takes_nothing(tmp_path, capsys):
    assert cli.main([*SMALLEST, "--json", "/dev/full", "--plot", str(tmp_path / "p.png")]) == 2
    said = capsys.readouterr()
    assert "8x1024" in said.out
    assert said.err == "capgate: --json: /dev/full: No space left on device\n"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.one_lane
def test_what_was_timed_is_kept_when_the_picture_cannot_be_drawn(tmp_path, monkeypatch, capsys):
    def fails(kind, results):
        raise RuntimeError("no such font")

    monkeypatch.setattr(bench_command, "plot", fails)
    files = ["--plot", str(tmp_path / "p.svg"), "--json", str(tmp_path / "b.json")]
    assert cli.main([*SMALLEST, *files]) == 2
    said = capsys.readouterr()
    assert "8x1024" in said.out
    assert said.err == f"capgate: --plot: {tmp_path}/p.svg: RuntimeError: no such font\n"
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 1


def test_an_older_result_stays_until_there_is_a_newer_one(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    file = tmp_path / "b.json"
    file.write_text("older")
    monkeypatch.setattr(bench_command, "_measure", interrupted)
    assert cli.main([*SMALLEST, "--json", str(file)]) == 130
    assert capsys.readouterr() == ("", "capgate: interrupted\n")
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("_short_demo")
def test_what_the_demo_scored_is_kept_when_a_stack_has_no_report(tmp_path, monkeypatch, capsys):
    def ends(folders):
        raise subprocess.CalledProcessError(1, ["python"])

    monkeypatch.setattr(stacks, "collect", ends)
    assert cli.main(["demo", "--json", str(tmp_path / "d.json")]) == 2
    assert "capgate: --stack: a report ended with status 1\n" in capsys.readouterr().err
    said = json.loads((tmp_path / "d.json").read_text())
    assert (len(said["outcomes"]) > 0, said["stacks"]) == (True, [])


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "compare"])
def test_ctrl_c_ends_every_command_in_one_line(command, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    words, add_arguments, _ = cli.COMMANDS[command]
    monkeypatch.setitem(cli.COMMANDS, command, (words, add_arguments, interrupted))
    assert cli.main([command]) == 130
    assert capsys.readouterr() == ("", "capgate: interrupted\n")


@pytest.mark.one_lane
def test_ctrl_c_in_a_process_of_its_own_is_one_line_too(tmp_path):
    """Where the terminal sends the signal, and where libraries are still being imported."""
    code = (
        "import os, signal, sys\n"
        "from capgate.kernels import cli\n"
        "from capgate.kernels.tools.bench import timing\n"
        "timing.this_device = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(cli.main())"
    )
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background shells have it ignored
    command = [sys.executable, "-c", code, "bench"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=tmp_path, preexec_fn=heard)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "capgate: interrupted\n")


def test_json_on_standard_output_stands_alone(monkeypatch, capfd):
    measure = bench_command._measure

    def loud(*arguments):
        os.write(1, b"[library] compiling\n")
        print("[library] done")
        return measure(*arguments)

    monkeypatch.setattr(bench_command, "_measure", loud)
    assert cli.main([*SMALLEST, "--json", "-"]) == 0
    said = capfd.readouterr()
    assert len(json.loads(said.out)["rows"]) == 1
    assert "[library] compiling\n[library] done\n" in said.err


@pytest.mark.parametrize("size", ["-1", "nan", "inf"])
def test_bench_needs_a_size_to_flush(size, capsys):
    assert cli.main(["bench", "--flush-gb", size]) == 2
    assert f"capgate: --flush-gb: got {float(size)}, needs 0 or more" in capsys.readouterr().err


def test_commands_that_need_torch_say_so(monkeypatch, capsys):
    monkeypatch.setattr(versions, "find", lambda name: versions.Build(name, None))
    assert cli.main(["demo"]) == 2
    assert "needs torch" in capsys.readouterr().err
