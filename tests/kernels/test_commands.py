"""The commands on a CPU: the demo, the benchmark, and what they say where they cannot run."""

import json

import pytest
import torch

from capgate import compat
from capgate.compat import versions
from capgate.kernels import cli, demo
from capgate.kernels.bench.ceilings import Ceilings
from capgate.kernels.bench.peers import PEERS
from capgate.kernels.bench.workloads import WORKLOADS, causal, compressed_prefill, make, packed, serving


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """Small sizes on the CPU, also where a GPU is at hand."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_demo_agrees_and_explains_every_target(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "ON_CPU", (16, 9))
    assert cli.main(["demo", "--json", str(tmp_path / "demo.json")]) == 0
    said = json.loads((tmp_path / "demo.json").read_text())
    assert {"reference"} <= {outcome["variant"] for outcome in said["outcomes"]}
    assert all(outcome["difference"] < 5e-6 and outcome["disturbed"] == 0 for outcome in said["outcomes"])
    assert [row["target"] for row in said["stacks"]] == list(demo.TARGETS)
    assert {row["target"]: row["variant"] for row in said["stacks"]} == {
        "hip:gfx942": "classic",
        "hip:gfx950": "gluon_cdna4" if compat.capabilities("hip:gfx950").gluon_cdna4 else "classic",
        "cuda:90": "gluon_hopper" if compat.capabilities("cuda:90").gluon_hopper else "classic",
        "cpu": "reference",
    }
    assert "clean_logits=False writes" in capsys.readouterr().out


def test_the_demo_fails_when_a_branch_disagrees(monkeypatch, capsys):
    monkeypatch.setattr(demo, "ON_CPU", (8,))
    monkeypatch.setattr(demo, "calc_diff", lambda logits, exact: 1e-3)
    monkeypatch.setattr(demo, "_stacks", lambda folders: [])
    assert cli.main(["demo"]) == 1
    assert "disagreement in" in capsys.readouterr().err


def test_bench_writes_medians_with_the_stack_that_they_belong_to(tmp_path, capsys):
    file = tmp_path / "bench.json"
    arguments = ["bench", "--workload", "f", "--variants", "reference", "--repeats", "2", "--json", str(file)]
    assert cli.main(arguments) == 0
    said = json.loads(file.read_text())
    assert said["stack"]["triton"] == versions.find("triton").text
    assert [(row["workload"], row["variant"], row["clean_logits"]) for row in said["rows"]] == [
        ("f", "reference", False),
        ("f", "reference", True),
    ]
    assert all(0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"] for row in said["rows"])
    assert "these times say nothing about a GPU" in " ".join(capsys.readouterr().out.split())


def test_bench_draws_what_it_timed(tmp_path):
    assert cli.main(["bench", "--workload", "f,b", "--variants", "reference", "--repeats", "1", "--plot", f"{tmp_path}/p"]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "p.svg").read_text()
    assert "<svg" in picture
    assert "clean_logits=True" in picture


def test_bench_refuses_a_picture_of_another_kind(tmp_path, capsys):
    assert cli.main(["bench", "--plot", f"{tmp_path}/p.gif"]) == 2
    assert "needs a name that ends in .png or .svg" in capsys.readouterr().err


def test_the_floor_is_the_slower_of_operations_and_bytes():
    batch = make(WORKLOADS["f"]._replace(rows=2, keys=64, windows=causal(2, 64)), torch.device("cpu"), torch.float8_e4m3fn)
    assert batch.flops == 2 * 64 * 128 * (63 + 64)
    bytes_ = 2 * 64 * 128 + 64 * 128 + 64 * 4 + 2 * 64 * 4 + 2 * 2 * 4 + 4 * (63 + 64)
    assert Ceilings(flops=batch.flops, bytes=2 * bytes_).floor_ms(batch, clean_logits=False) == 1000
    assert Ceilings(flops=4 * batch.flops, bytes=bytes_ / 2).floor_ms(batch, clean_logits=False) == 2000


def test_peers_are_called_as_their_libraries_want_it():
    batch = make(WORKLOADS["f"]._replace(rows=2, keys=64, windows=causal(2, 64)), torch.device("cpu"), torch.float8_e4m3fn)

    def deep_gemm(q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, clean_logits=True, max_seqlen_k=0):
        return q, kv, cu_seq_len_k_end, clean_logits, max_seqlen_k

    q, kv, ends, clean_logits, max_seqlen_k = PEERS["deep_gemm"].bind(deep_gemm, batch, False, 16)()
    assert (q is batch.q, kv == (batch.k, batch.k_scale), ends is batch.ends) == (True, True, True)
    assert (clean_logits, max_seqlen_k) == (False, 16)
    assert PEERS["aiter"].bind(deep_gemm, batch, False, 16) is None


@pytest.mark.parametrize("arguments", [["--workload", "zz"], ["--variants", "fastest"]])
def test_bench_names_what_it_does_not_know(arguments, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert f"capgate: {arguments[0]}: got {arguments[1]!r}, needs one of" in capsys.readouterr().err


def test_commands_that_need_torch_say_so(monkeypatch, capsys):
    monkeypatch.setattr(versions, "find", lambda name: versions.Build(name, None))
    assert cli.main(["demo"]) == 2
    assert "needs torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "cells"), [("a", 4096 * 4097 // 2), ("d1", 16 * 1024 * 1025 // 2), ("f", 64 * 8192 - 63 * 32)]
)
def test_workloads_have_the_published_number_of_cells(name, cells):
    starts, ends = WORKLOADS[name].windows()
    assert int((ends - starts).sum()) == cells


def test_packed_requests_stay_among_their_own_keys():
    starts, ends = packed(3, 2, 5)()
    assert starts.tolist() == [0, 0, 5, 5, 10, 10]
    assert ends.tolist() == [4, 5, 9, 10, 14, 15]


def test_a_prompt_with_one_key_per_four_tokens():
    starts, ends = compressed_prefill((6, 9))()
    assert starts.tolist() == [0] * 6 + [1] * 9
    assert (ends - starts).tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_a_batch_counts_its_work():
    batch = make(serving((8, 4)), torch.device("cpu"), torch.float8_e4m3fn)
    cells = 0 + 0 + 0 + 1 + 1 + 1 + 1 + 2 + 0 + 0 + 0 + 1
    assert batch.cells == cells
    assert batch.flops == 2 * 64 * 128 * cells
    operands = 12 * 64 * 128 + 3 * 128 + 3 * 4 + 12 * 64 * 4 + 2 * 12 * 4
    assert batch.least_bytes(clean_logits=False) == operands + 4 * cells
    assert batch.least_bytes(clean_logits=True) == operands + 4 * 12 * 3
