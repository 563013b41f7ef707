"""The fusion report: what it counts, and that docs/fusion.md is a page that it has written."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import zoo
from tests.suites.fusion import COLUMNS, HEAD, LIBRARIES, TITLES, Line, kind_of, line_of, main, markdown, of_zoo, page

PAGE = Path(__file__).parents[2] / "docs" / "fusion.md"
KINDS = ("kernels", *LIBRARIES, "other")


def rows(text: str, title: str) -> list[list[str]]:
    """Cells of the table of models under a title."""
    section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    end = next(n for n, line in enumerate(lines) if line.startswith("| other ATen call"))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:end]]


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("aten.mm.default", "products"), ("aten.baddbmm.default", "products"),
        ("aten._addmm_activation.default", "products"), ("aten.linear.default", "products"),
        ("aten.convolution_backward.default", "convolutions"), ("aten.mkldnn_rnn_layer.default", "recurrent"),
        ("aten._scaled_dot_product_flash_attention_for_cpu.default", "attention"),
        ("aten.upsample_bilinear2d.default", "other"), ("aten._transformer_encoder_layer_fwd.default", "other"),
        ("aten.embedding_dense_backward.default", "other"), ("aten.topk.default", "other"),
        ("transformers.grouped_mm_fallback.default", "products"), ("aten._grouped_mm.default", "products"),
        ("transformers.grouped_mm_fallback_backward.default", "products"),
    ],
)  # fmt: skip
def test_kinds(call: str, kind: str) -> None:
    assert kind_of(call) == kind


def test_shares_of_counters() -> None:
    first = {
        "graph_ops": 10, "fused_ops": 7, "bytes_read": 600, "bytes_written": 400, "gemm_bytes": 100,
        "extern_bytes": {"aten.convolution.default": 200, "aten.topk.default": 50},
    }  # fmt: skip
    line = line_of("net", "step", [first])
    assert [line.share(kind) for kind in KINDS] == [0.65, 0.1, 0.2, 0.0, 0.0, 0.05]
    assert line.ops == 0.7 and line.calls == {"aten.topk.default": 50}
    second = {**first, "graph_ops": 30, "fused_ops": 1, "extern_bytes": {"aten.topk.default": 350}}
    line = line_of("net", "step", [first, second])
    assert line.share("other") == 0.2 and line.calls == {"aten.topk.default": 400} and line.ops == 0.2


def test_what_was_measured_is_kept(tmp_path) -> None:
    keep, page_file = tmp_path / "lines", tmp_path / "page.md"
    options = ["--suites", "zoo", "--only", "tree_net", "--keep", str(keep), "--markdown", str(page_file)]
    line = Line("tree_net", "step", 0.5, {"kernels": 60, "other": 40}, {"aten.topk.default": 40})
    keep.write_text(json.dumps({"suite": "zoo", "lines": [asdict(line)]}) + "\n")
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0 and "tree_net step: other 40.0%" in result.output
    assert [row[:2] for row in rows(page_file.read_text(), TITLES["zoo"])] == [["tree_net", "step"]]
    assert len(keep.read_text().splitlines()) == 1


def test_a_model_is_measured_and_written() -> None:
    lines = [*of_zoo("graph_network", "tiny"), *of_zoo("lstm", "tiny")]
    assert [(line.model, line.form) for line in lines] == [
        (model, form) for model in ("graph_network", "lstm") for form in ("step", "forward")
    ]
    for line in lines:
        assert sum(line.share(kind) for kind in KINDS) == pytest.approx(1)
        assert min(line.moved.values()) >= 0 and 0 < line.ops < 1 and line.moved["products"] > 0
    assert lines[3].moved["recurrent"] > 0
    text = page({"zoo": markdown(TITLES["zoo"], lines)}, "")
    assert [row[:2] for row in rows(text, TITLES["zoo"])] == [[line.model, line.form] for line in lines]
    assert page({}, text) == text, "what is not measured again stays"


def test_the_committed_page() -> None:
    """Every model of the zoo, twice; shares of a row that sum to all; and the sentence that counts them."""
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    found = rows(text, TITLES["zoo"])
    assert [row[:2] for row in found] == [[name, form] for name in zoo.ENTRIES for form in ("step", "forward")]
    for row in found:
        shares = [float(cell.removesuffix("%")) for cell in row[3:-1]]
        assert len(shares) == len(KINDS) and min(shares) >= 0 and sum(shares) == pytest.approx(100, abs=0.31)
        assert bool(row[-1]) or shares[-1] == 0
    below, total = re.search(r"below 5 % in (\d+) of (\d+) programs", text).groups()  # type: ignore[union-attr]
    assert (int(below), int(total)) == (sum(float(row[-2].removesuffix("%")) < 5 for row in found), len(found))
