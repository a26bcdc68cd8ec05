"""capgate compare: columns, deltas and their noise, what it refuses, and what it prints."""

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt  # rich brings it

from capgate.compat import versions
from capgate.compat.terminal import plain
from capgate.kernels import cli
from capgate.kernels.tools.compare.stacks import Metric, Stack, Value, compare, load
from capgate.kernels.tools.compare.tables import lines, markdown, notes

OLD, NEW = Stack("3.5.1", "classic", True), Stack("3.6.0", "classic", True)
GLUON, SKIPPED = Stack("3.6.0", "gluon_hopper", True), Stack("3.6.0", "gluon_hopper", False)
TOKENS, TOP = Metric("8k1", "total tok/s"), Metric("recall", "top keys, prefill", is_part=True)


def run(triton: str, serving: dict[tuple[str, bool], list[float]], recall: float = 0.98) -> dict[str, Any]:
    """What capgate bench writes, with these total tokens per second by variant and clean_logits, a figure for each round."""
    stack = {"device": "a GPU", "target": "cuda:90", "multiprocessors": 132, "serial": "GPU-1"}
    rows = [
        {"workload": "8k1", "variant": variant, "clean_logits": clean, "metrics": {"total tok/s": rates}}
        for (variant, clean), rates in serving.items()
    ]
    accuracy = [
        {**row, "workload": "recall", "metrics": {"top keys, prefill": [recall] * len(rates)}}
        for row, rates in zip(rows, serving.values(), strict=True)
    ]
    return {
        "stack": {**stack, "triton": triton, "torch": "2.11", "runtime": "13.0", "driver": "580", "python": "3.12"},
        "flush_gb": 8.0,
        "workloads": {"8k1": {"requests": 64, "share": "logits"}, "recall": {"top_k": 512}},
        "rows": [],
        "serving": rows,
        "accuracy": accuracy,
    }


@pytest.fixture
def runs() -> dict[str, dict[str, Any]]:
    new = {("classic", True): [110.0, 109.0, 111.0], ("gluon_hopper", True): [121.0] * 3, ("gluon_hopper", False): [132.0] * 3}
    return {"new.json": run("3.6.0", new, recall=0.97), "old.json": run("3.5.1", {("classic", True): [98.0, 100.0, 101.0]})}


def kernel_row(operation: str, medians: list[float]) -> dict[str, Any]:
    row = {"workload": "a", "variant": "classic", "clean_logits": True, "operation": operation, "medians_ms": medians}
    return {**row, "flops": 8e12, "least_bytes": 4e9}


# Arithmetic


def test_columns_are_stacks_and_deltas_are_to_what_each_triton_did_before(runs):
    found = compare(runs)
    assert list(found.stacks) == [OLD, NEW, GLUON, SKIPPED], "older Tritons first, Gluon after classic, the flag last"
    assert found.baselines == (NEW, OLD)
    assert found.values[TOKENS][OLD] == Value(median=100.0, low=98.0, high=101.0, rounds=3)


def test_deltas_are_to_medians_and_their_noise_is_both_spreads(runs):
    found = compare(runs)
    change, noise = found.delta(TOKENS, NEW, OLD)
    assert change == pytest.approx(0.10)
    assert noise == pytest.approx(1.1 * (1.0 / 110 + 1.5 / 100))
    assert found.delta(TOKENS, SKIPPED, OLD).change == pytest.approx(0.32)
    assert found.delta(TOKENS, SKIPPED, NEW).change == pytest.approx(0.20)
    assert found.delta(TOKENS, SKIPPED, NEW).noise == pytest.approx(1.2 * 1.0 / 110)


def test_deltas_of_parts_are_differences(runs):
    change, noise = compare(runs).delta(TOP, GLUON, OLD)
    assert (change, noise) == (pytest.approx(-0.01), 0)


def test_no_delta_of_a_baseline_to_itself_nor_of_an_older_triton_to_a_newer(runs):
    found = compare(runs)
    assert found.delta(TOKENS, NEW, NEW) is None
    assert found.delta(TOKENS, OLD, NEW) is None


def test_one_round_tells_no_noise(runs):
    runs["old.json"]["serving"][0]["metrics"]["total tok/s"] = [100.0]
    found = compare(runs)
    assert found.delta(TOKENS, NEW, OLD) == (pytest.approx(0.10), None)
    assert found.delta(TOKENS, GLUON, NEW).noise is not None


def test_kernels_are_compared_by_their_rates(runs):
    del runs["new.json"]
    (old,) = runs.values()
    old["rows"] = [kernel_row("fp8_mqa_logits", [4.0, 8.0, 2.0])]
    assert compare(runs).values[Metric("a", "TFLOP/s")][OLD] == Value(median=2000.0, low=1000.0, high=4000.0, rounds=3)
    old["rows"] = [kernel_row("fp8_paged_mqa_logits", [4.0, 2.0])]
    assert compare(runs).values[Metric("a", "GB/s")][OLD].median == pytest.approx(1500.0)


def test_a_row_that_a_stack_lacks_is_an_empty_cell(runs):
    runs["new.json"]["rows"] = [kernel_row("fp8_mqa_logits", [4.0])]
    found = compare(runs)
    assert found.delta(Metric("a", "TFLOP/s"), OLD, NEW) is None
    line = next(line for line in lines(found) if line.label == "a, TFLOP/s")
    assert line.cells == ["", "2,000", "", ""]


@pytest.mark.parametrize(
    ("present", "baseline"),
    [
        ([("classic", False), ("classic", True)], ("classic", True)),
        ([("gluon_hopper", True), ("classic", False)], ("classic", False)),
        ([("gluon_hopper", True), ("reference", True)], ("reference", True)),
    ],
)
def test_the_baseline_is_what_ran_before(present, baseline):
    assert compare({"a": run("3.6.0", {key: [1.0] for key in present})}).baselines == (Stack("3.6.0", *baseline),)


# What it refuses


@pytest.mark.parametrize(
    ("key", "value"), [("device", "another GPU"), ("target", "hip:gfx950"), ("multiprocessors", 114), ("serial", "GPU-2")]
)
def test_runs_of_different_gpus_are_refused(runs, key, value):
    runs["old.json"]["stack"][key] = value
    with pytest.raises(ValueError, match=rf"^old.json: another GPU: {key} {value}, new.json has"):
        compare(runs)


def test_runs_of_different_workloads_are_refused(runs):
    changed = copy.deepcopy(runs)
    changed["old.json"]["workloads"]["8k1"]["requests"] = 32
    with pytest.raises(ValueError, match=r"^old.json: another workload 8k1: requests 32, new.json has 64$"):
        compare(changed)
    changed = copy.deepcopy(runs)
    changed["old.json"]["workloads"]["8k1"]["share"] = "logits and selection"
    with pytest.raises(ValueError, match=r"^old.json: another workload 8k1: share logits and selection"):
        compare(changed)
    del runs["old.json"]["workloads"]["recall"]
    with pytest.raises(ValueError, match=r"^old.json: other workloads: 8k1; new.json has 8k1, recall$"):
        compare(runs)


def test_runs_with_different_flushes_are_refused(runs):
    runs["old.json"]["flush_gb"] = 0
    with pytest.raises(ValueError, match=r"^old.json: flushed 0 GB before a call, new.json 8.0$"):
        compare(runs)


def test_a_stack_in_two_files_is_refused(runs):
    runs["again.json"] = runs["old.json"]
    with pytest.raises(ValueError, match=r"^again.json: holds Triton 3.5.1, classic, clean on, as old.json does$"):
        compare(runs)


def test_variants_without_a_baseline_are_refused():
    with pytest.raises(ValueError, match="no run has the classic or the reference variant"):
        compare({"a": run("3.6.0", {("gluon_hopper", True): [1.0]})})


@pytest.mark.parametrize("text", ["no json", "[]", '{"variants": []}', '{"stack": {}, "rows": []}'])
def test_files_of_something_else_are_refused(tmp_path, text, capsys):
    (tmp_path / "other.json").write_text(text)
    assert cli.main(["compare", str(tmp_path / "other.json")]) == 2
    assert "other.json: does not hold what capgate bench --json writes" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


# What it prints


@pytest.fixture
def files(runs, tmp_path) -> list[str]:
    for name, results in runs.items():
        (tmp_path / name).write_text(json.dumps(results))
    return [str(tmp_path / name) for name in runs]


def test_the_table_has_values_both_deltas_and_their_noise(files, capsys):
    assert cli.main(["compare", *files]) == 0
    said = capsys.readouterr().out
    words = " ".join(said.split())
    assert "8k1, total tok/s 100 110 121 132" in words
    assert "vs Triton 3.6.0 +10.00% ±1.00% +20.00% ±1.09%" in words
    assert "vs Triton 3.5.1 +10.00% ±2.65% +21.00% ±1.81% +32.00% ±1.98%" in words
    assert "recall, top keys, prefill 0.9800 0.9700 0.9700 0.9700" in words
    assert "vs Triton 3.5.1 -0.0100 ±0.0000 -0.0100 ±0.0000 -0.0100 ±0.0000" in words
    assert "Not a serving engine" in words
    assert "…" not in said, "nothing is cut off"


def test_markdown_is_one_table_with_its_notes(files, capsys):
    assert cli.main(["compare", *files, "--markdown"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[0].startswith("|  | Triton 3.5.1, classic, clean on | Triton 3.6.0, classic, clean on |")
    assert rows[2] == "| **8k1, total tok/s** | 100 | 110 | 121 | 132 |"
    assert rows[3] == "| vs Triton 3.6.0 |  |  | +10.00% ±1.00% | +20.00% ±1.09% |"


def test_the_notes_say_what_the_figures_are(runs):
    said = " ".join(notes(compare(runs)))
    assert "a GPU (cuda:90)" in said
    assert "Triton 3.6.0: torch 2.11, runtime 13.0, driver 580, Python 3.12." in said
    assert "vs Triton 3.5.1: its classic variant with clean on." in said
    assert "top keys: the part of float32's top keys" in said


def test_an_unknown_noise_is_a_question_mark(runs):
    for results in runs.values():
        for row in results["serving"]:
            row["metrics"]["total tok/s"] = row["metrics"]["total tok/s"][:1]
    assert "+20.00% ±? |" in markdown(compare(runs))


HOSTILE = "[bold]x[/] :smile: \x1b]8;;http://there\x07 \u202e a|b `c` *d* _e_ <b>f</b> &amp; [g](h) $\\frac$ $ \n# i"


@pytest.fixture
def hostile(runs, tmp_path) -> str:
    """A file whose strings are whatever a terminal, Markdown, HTML or a formula could make something of."""
    results = runs["new.json"]
    results["stack"].update(dict.fromkeys(("device", "target", "triton", "torch", "driver"), HOSTILE))
    results["workloads"][HOSTILE] = {}
    for kind in ("serving", "accuracy"):
        results[kind][1]["variant"] = HOSTILE
        for row in results[kind]:
            row["workload"] = HOSTILE
            row["metrics"] = {HOSTILE: [0.5, 0.75]}
    (tmp_path / "hostile.json").write_text(json.dumps(results))
    return str(tmp_path / "hostile.json")


def test_strings_of_a_file_are_text_on_a_terminal(hostile, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["compare", hostile]) == 0
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert set(filter(lambda letter: not letter.isprintable(), shown)) == {"\n"}
    assert plain(HOSTILE) in shown


def test_strings_of_a_file_are_text_in_markdown(hostile, capsys):
    assert cli.main(["compare", hostile, "--markdown"]) == 0
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(capsys.readouterr().out)
    assert [token.type for token in tokens if token.level == 0 and token.nesting >= 0] == ["table_open", "paragraph_open"]
    inline = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inline} <= {"text", "text_special", "strong_open", "strong_close"}
    assert plain(HOSTILE) in "".join(child.content for child in inline)


def test_strings_of_a_file_are_text_in_a_picture(hostile, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # for names as long as these
        assert cli.main(["compare", hostile, "--plot", str(tmp_path / "p.svg")]) == 0
    picture = (tmp_path / "p.svg").read_text()
    ElementTree.fromstring(picture)
    assert "&lt;b&gt;f&lt;/b&gt;" in picture
    assert "$\\frac$" in picture


def test_a_figure_that_stands_twice_is_refused(runs):
    runs["new.json"]["serving"].append(runs["new.json"]["serving"][0])
    with pytest.raises(ValueError, match=r"^new.json: holds 8k1, total tok/s of Triton 3.6.0, classic, clean on twice$"):
        compare(runs)


def test_the_plot_has_a_bar_for_each_stack(files, tmp_path):
    pytest.importorskip("matplotlib")
    assert cli.main(["compare", *files, "--plot", str(tmp_path / "p.svg")]) == 0
    picture = (tmp_path / "p.svg").read_text()
    for words in ("Triton 3.5.1, classic, clean on", "Triton 3.6.0, gluon_hopper, clean off", "132%", "indexer"):
        assert words in picture


def test_a_plot_needs_rates(files, tmp_path, capsys):
    for file in map(Path, files):
        file.write_text(json.dumps({**json.loads(file.read_text()), "serving": []}))
    assert cli.main(["compare", *files, "--plot", str(tmp_path / "p.svg")]) == 2
    assert "--plot: no workload has a rate for Triton 3.5.1, classic, clean on" in capsys.readouterr().err


def test_it_works_without_torch(files, monkeypatch):
    monkeypatch.setattr(versions, "find", lambda name: versions.Build(name, None))
    assert cli.main(["compare", *files]) == 0


def test_what_bench_writes_can_be_compared(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = str(tmp_path / "b.json")
    arguments = ["bench", "--workload", "f,decode-skewed,recall", "--variants", "reference", "--repeats", "2", "--rounds", "2"]
    assert cli.main([*arguments, "--json", file]) == 0
    found = compare(load([file]))
    assert {metric.workload for metric in found.values} == {"f", "decode-skewed", "recall"}
    assert {stack.clean for stack in found.stacks} == {True, False}
    assert all(row[found.baselines[0]].rounds == 2 for row in found.values.values())


# Formats


def test_formats_score_the_same_activations(monkeypatch, capsys):
    """Bytes are those of the formats; with few keys to find fp4 finds fewer than fp8, and of both most."""
    pytest.importorskip("torch")
    from capgate.kernels.tools.compare import formats
    from capgate.kernels.tools.workloads import catalogue

    (small,) = catalogue.SMALL_ACCURACY
    rows = {row.name: row for row in formats.figures(small, seeds=2)}
    assert rows["bytes of a key and its scales"].values == {"fp8": [132], "mxfp8": [132], "mxfp4": [68]}
    decode = rows["bytes read, decode"].values
    keys, scales = 2 * 128, 2 * 64 * 4  # of the requests, and of their queries
    assert decode["mxfp8"][0] - decode["fp8"][0] == scales
    assert decode["mxfp8"][0] - decode["mxfp4"][0] == keys * 64 + 2 * 64 * 64
    parts = [row for row in rows.values() if row.is_part]
    assert len(parts) == 4
    for row in parts:
        assert all(len(values) == 2 and all(0.6 < value <= 1 for value in values) for values in row.values.values()), row
        assert max(row.values["mxfp4"]) < min(row.values["fp8"]), row.name
    monkeypatch.setattr(catalogue, "ACCURACY", (small,))
    assert cli.main(["compare", "--formats", "--markdown"]) == 0
    table, said = capsys.readouterr().out.split("\n\n")
    assert table.startswith("|  | fp8 | mxfp8 | mxfp4 |")
    assert "| **bytes of a key and its scales** | 132 | 132 | 68 |\n| vs fp8 |  | +0.0% | -48.5% |" in table
    assert "Activations are synthetic" in said
    assert "Seeds 1 to 6" in said


@pytest.mark.parametrize("more", [["--plot", "p.svg"], ["a.json"]])
def test_formats_go_with_no_file(more, capsys):
    assert cli.main(["compare", "--formats", *more]) == 2
    assert "--formats: computes its figures" in capsys.readouterr().err


def test_a_comparison_needs_files_or_formats(capsys):
    assert cli.main(["compare"]) == 2
    assert "FILE: got none, needs what capgate bench --json wrote, or --formats" in capsys.readouterr().err
