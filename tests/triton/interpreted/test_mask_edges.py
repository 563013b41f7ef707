"""Attention whose mask lies in memory: loops keep to its edges, and results are eager's whatever it holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.attentions import Form
from tests.triton.interpreted.test_attention_gradients import step_of

torch.set_num_threads(1)
NONE = float("-inf")
Made = tuple[Form, torch.Tensor]
Masks = Callable[[int, int], Made]
MASKS: dict[str, Masks] = {}
BATCH, HEADS = 2, 3


def mask(make: Masks) -> Masks:
    MASKS[make.__name__] = make
    return make


def filled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As minGPT and most tutorials write it."""
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(mask[..., : q.shape[-2], : k.shape[-2]] == 0, NONE)
    return F.softmax(scores, dim=-1) @ v


def chosen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return F.softmax(torch.where(seen, (q @ k.mT) / q.shape[-1] ** 0.5, NONE), dim=-1) @ v


def padded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Causal by position, and what pads a batch is hidden too."""
    ahead = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.mT * 0.25).masked_fill(ahead, NONE)
    return F.softmax(scores.masked_fill(ids[:, None, None, :] == 0, NONE), dim=-1) @ v


def positions(queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(queries)[:, None], torch.arange(keys)


@mask
def causal(queries: int, keys: int) -> Made:
    size = max(queries, keys) + 3
    return filled, torch.tril(torch.ones(1, 1, size, size))


@mask
def window(queries: int, keys: int) -> Made:
    rows, columns = positions(queries, keys)
    return chosen, (columns <= rows) & (columns > rows - 50)


@mask
def documents(queries: int, keys: int) -> Made:
    """Causal within documents, others in each entry of the batch."""
    rows, columns = positions(queries, keys)
    starts = torch.tensor([[0, 70, 90, 190], [0, 10, 150, 151]])
    found = [torch.bucketize(x, row, right=True) for row in starts for x in (rows, columns)]
    same = torch.stack([found[0] == found[1], found[2] == found[3]])
    return filled, (same & (columns <= rows))[:, None].to(torch.uint8)


@mask
def padding(queries: int, keys: int) -> Made:
    """Keys behind a length, none of them in one entry."""
    return chosen, (torch.arange(keys) < torch.tensor([[keys], [keys // 3 + 1]]))[:, None, None, :]


@mask
def left_padding(queries: int, keys: int) -> Made:
    """With causal positions, the first queries of an entry see nothing."""
    return padded, (torch.arange(keys) >= torch.tensor([[0], [keys // 5 + 1]])).long()


@mask
def right_padding(queries: int, keys: int) -> Made:
    return padded, (torch.arange(keys) < torch.tensor([[keys // 2 + 1], [keys]])).long()


@mask
def holes(queries: int, keys: int) -> Made:
    """A part that is seen, with holes, and queries and keys that see or show nothing."""
    found = torch.rand(1, queries, keys, generator=torch.Generator().manual_seed(3)) < 0.8
    found[..., : queries // 3, keys // 2 :] = False
    found[..., queries // 2, :] = False
    found[..., keys // 4] = False
    return chosen, found


@mask
def nothing_hidden(queries: int, keys: int) -> Made:
    return filled, torch.ones(queries, keys)


@mask
def all_hidden(queries: int, keys: int) -> Made:
    return filled, torch.zeros(queries, keys)


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.bfloat16, width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(BATCH, HEADS, size, width) for size in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def exact(args: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.double() if x.is_floating_point() else x for x in args]


def compiled_on(step: Callable[..., object], args: list[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], list[str]]:
    """Results, and the texts of kernels that hold products."""
    with override(templates="always", cache=False):
        compiled = graphc.compile(step, backend="triton")
        found = compiled(*args)
        stats = compiled.explain(*args).stats
        texts = [text for text in compiled.source(*args).values() if "tl.dot(" in text]
    assert stats["gemm_calls"] == 0, stats
    return found, texts


def agree(step: Callable[..., tuple[torch.Tensor, ...]], args: list[torch.Tensor]) -> list[str]:
    """Compare with eager, in results and in where they are NaN; gives the kernels' texts."""
    found, texts = compiled_on(step, args)
    for mine, theirs, true in zip(found, step(*args), step(*exact(args)), strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())
        bad = theirs.isnan()
        assert_contract(mine.masked_fill(bad, 0), theirs.masked_fill(bad, 0), true.masked_fill(bad, 0))
    return texts


@pytest.mark.parametrize("sizes", [(200, 200), (150, 290), (21, 37), (133, 5)])
@pytest.mark.parametrize("name", MASKS)
def test_results_and_gradients_are_as_in_eager(name: str, sizes: tuple[int, int]) -> None:
    form, mask = MASKS[name](*sizes)
    texts = agree(step_of(form), [*inputs(*sizes), mask])
    assert len(texts) == 3 and all("first = tl.min(" in text or "first = v" in text for text in texts), texts


@pytest.mark.parametrize("name", ["causal", "padding", "left_padding"])
def test_float32_keeps_the_contract(name: str) -> None:
    form, mask = MASKS[name](90, 75)
    agree(step_of(form), [*inputs(90, 75, torch.float32), mask])


def test_what_hides_nothing_is_read_in_no_block_that_is_seen_whole() -> None:
    form, mask = causal(200, 200)
    for text in agree(step_of(form), [*inputs(200, 200), mask]):
        masked, whole = text.split("for ")[1:]
        assert masked.startswith("step in range(0, steps)") and "float(\"-inf\"), v" in masked + "float(\"-inf\"), v"
        assert whole.startswith("j_start in range(whole_first, whole_last, JBLOCK)")
        assert masked.count("tl.load(") == whole.count("tl.load(") + 1
