"""Attention whose mask lies in memory: loops keep to its edges, and results are eager's whatever it holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.codegen.triton.chain_parts import LONG
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.attentions import Form
from tests.triton.interpreted.test_attention_gradients import step_of

torch.set_num_threads(1)
NONE = float("-inf")
Made = tuple[Form, torch.Tensor]
Masks = Callable[[int, int], Made]
MASKS: dict[str, Masks] = {}
BATCH, HEADS = 2, 2


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


def added(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.softmax(q @ k.mT * 0.25 + mask, dim=-1) @ v


def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """As older GPT-2s have it, with a padding mask that is added."""
    scores = torch.where(seen[0], q @ k.mT * 0.25, torch.finfo(q.dtype).min)
    ids = seen[1:, None, -1:, :].to(q.dtype)
    return F.softmax(scores + (1 - ids) * torch.finfo(q.dtype).min, dim=-1) @ v


def old(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """As BERT has it."""
    return F.softmax((q @ k.mT + (1.0 - ids[:, None, None, :].to(q.dtype)) * -10000.0) * 0.25, dim=-1) @ v


def seen_of(queries: int, keys: int) -> torch.Tensor:
    rows, columns = positions(queries, keys)
    return columns <= rows


@mask
def added_infinities(queries: int, keys: int) -> Made:
    """In one entry the first queries see nothing."""
    seen = torch.stack([seen_of(queries, keys), seen_of(queries, keys) & (torch.arange(keys) > keys // 6)])
    return added, torch.where(seen, 0.0, NONE)[:, None].to(torch.bfloat16)


@mask
def added_least_numbers(queries: int, keys: int) -> Made:
    found = torch.where(seen_of(queries, keys), 0.0, torch.finfo(torch.bfloat16).min)
    found[queries // 2] = torch.finfo(torch.bfloat16).min
    return added, found.to(torch.bfloat16)


@mask
def added_numbers(queries: int, keys: int) -> Made:
    """A window that sees distances, in front of what is hidden."""
    rows, columns = positions(queries, keys)
    found = torch.where(seen_of(queries, keys) & (columns > rows - 60), (columns - rows) * 0.125, -1e9)
    return added, found.to(torch.bfloat16)


@mask
def replaced_and_padded(queries: int, keys: int) -> Made:
    seen = seen_of(queries, keys).repeat(1 + BATCH, 1, 1)
    seen[1:, -1] = torch.arange(keys) < torch.tensor([[keys], [keys // 2 + 1]])
    return replaced, seen


@mask
def old_padding(queries: int, keys: int) -> Made:
    return old, (torch.arange(keys) < torch.tensor([[keys // 2 + 1], [keys]])).long()


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


@pytest.mark.parametrize("sizes", [(150, 290), (21, 37), (133, 5)])
@pytest.mark.parametrize("name", MASKS)
def test_results_and_gradients_are_as_in_eager(name: str, sizes: tuple[int, int]) -> None:
    form, mask = MASKS[name](*sizes)
    texts = agree(step_of(form), [*inputs(*sizes), mask])
    assert len(texts) == 3 and all("first = tl.min(" in text or "first = v" in text for text in texts), texts


@pytest.mark.suite
@pytest.mark.parametrize("name", ["causal", "padding", "left_padding"])
def test_float32_keeps_the_contract(name: str) -> None:
    form, mask = MASKS[name](90, 75)
    agree(step_of(form), [*inputs(90, 75, torch.float32), mask])


def parts(text: str) -> tuple[str, str]:
    """The loops of a kernel: over blocks with masks, and over those without."""
    masked, whole = text.split("\n    for ")[1:]
    assert masked.startswith("step in range(0, ") and whole.startswith(
        "j_start in range(whole_first, whole_last, JBLOCK)"
    )
    return masked, whole


def test_masks_are_read_in_no_block_that_is_seen_whole() -> None:
    form, mask = causal(200, 200)
    _, texts = compiled_on(step_of(form), [*inputs(200, 200), mask])
    for masked, whole in map(parts, texts):
        assert masked.count("tl.load(") == whole.count("tl.load(") + 1
        assert masked.count('float("-inf")') > whole.count('float("-inf")')


def test_blocks_that_are_hidden_are_not_read() -> None:
    """Their values are NaN, and so is a weight of 0 times NaN."""
    q, k, v = inputs(200, 200)
    v[:, :, 150:] = float("nan")
    form, mask = causal(200, 200)
    (found,), (text,) = compiled_on(lambda *args: (form(*args),), [q, k, v, mask])
    block = 128  # rows of a block
    assert "first = tl.min(" in text
    assert not found[:, :, :block].isnan().any() and found[:, :, 150:].isnan().all()


def test_nothing_is_found_out_for_gradients_that_are_not_wanted() -> None:
    form, mask = causal(64, 64)
    for step, kernels in ((form, 2), (step_of(form), 6)):
        args = [*inputs(64, 64), mask]
        with override(templates="always", cache=False):
            stats = graphc.compile(step, backend="triton").explain(*args).stats
        assert stats["kernel_calls"] == kernels, stats


def test_layers_share_the_edges_of_their_mask() -> None:
    def layers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            q = filled(q, k, v, mask)
        return q

    args = [*inputs(90, 90), causal(90, 90)[1]]
    with override(templates="always", cache=False):
        compiled = graphc.compile(layers, backend="triton")
        found = compiled(*args)
        stats = compiled.explain(*args).stats
    assert stats["kernel_calls"] == 4, stats
    assert_contract(found, layers(*args), layers(*exact(args)))


# what else there is between the products


def capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = 5.0 * torch.tanh(q @ k.mT / 5.0)
    return F.softmax(scores.masked_fill(mask[:, :, : q.shape[-2], : k.shape[-2]] == 0, NONE), dim=-1) @ v


def biased(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A bias per head, which is no mask."""
    slopes = torch.arange(1, HEADS + 1, dtype=q.dtype)[:, None, None] * 0.25
    bias = slopes * mask[0, 0, : q.shape[-2], : k.shape[-2]].to(q.dtype).cumsum(-1).sin()
    scores = q @ k.mT + bias
    return F.softmax(scores.masked_fill(mask[:, :, : q.shape[-2], : k.shape[-2]] == 0, NONE), dim=-1) @ v


def shared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """All query heads on the first key head, whose gradients are loops over heads."""
    scores = torch.einsum("bhid,bjd->bhij", q, k[:, 0]) * 0.25
    scores = scores.masked_fill(mask[:, :, : q.shape[-2], : k.shape[-2]] == 0, NONE)
    return torch.einsum("bhij,bjd->bhid", F.softmax(scores, dim=-1), v[:, 0])


@pytest.mark.parametrize("form", [capped, biased, shared])
@pytest.mark.parametrize("sizes", [(150, 290), pytest.param((280, 270), marks=pytest.mark.suite)])
def test_other_forms_are_as_in_eager(form: Form, sizes: tuple[int, int]) -> None:
    texts = agree(step_of(form), [*inputs(*sizes), causal(*sizes)[1]])
    # blocks of few positions go across heads
    assert (form is shared and sizes[0] < LONG) or all("first = tl.min(" in text for text in texts), texts


def test_dropout_is_drawn_at_the_same_places() -> None:
    def dropped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = (q @ k.mT).masked_fill(mask[0, 0, : q.shape[-2], : k.shape[-2]] == 0, NONE)
        return F.dropout(F.softmax(scores, dim=-1), 0.4) @ v

    args, found = [*inputs(150, 290), causal(150, 290)[1]], []
    for backend, given in (("triton", args), ("interpret", args), ("interpret", exact(args))):
        torch.manual_seed(0)
        with override(templates="always", cache=False):
            compiled = graphc.compile(step_of(dropped), backend=backend)
            found.append(compiled(*given))
            if backend == "triton":
                assert any("whole_last" in text for text in compiled.source(*given).values())
    for mine, theirs, true in zip(*found, strict=True):
        assert_contract(mine, theirs, true.to(torch.float64))


# numbers that hide, and do not


_MORE = [pytest.param(name, marks=pytest.mark.suite) for name in ("old_padding", "added_infinities")]


@pytest.mark.parametrize("name", ["added_numbers", "replaced_and_padded", *_MORE])
def test_scores_that_are_as_large_as_masks_count(name: str) -> None:
    """Queries so long that -10,000 hides nothing for certain; and some that are infinite."""
    form, mask = MASKS[name](150, 200)
    q, k, v = inputs(150, 200)
    agree(step_of(form), [q * 500, k * 40, v, mask])
    q[0, 1, 5, 3], q[1, 0, 70, 0] = float("inf"), float("nan")
    (found,), _ = compiled_on(lambda *args: (form(*args),), [q, k, v, mask])
    assert torch.equal(found.isnan(), form(q, k, v, mask).isnan())


def test_hidden_keys_show_where_masks_are_added_and_not_where_they_replace() -> None:
    q, k, v = inputs(150, 150)
    k[0, 1, 149] = float("nan")
    seen = seen_of(150, 150)
    for form, mask in ((added, torch.where(seen, 0.0, NONE).to(q.dtype)), (chosen, seen)):
        (found,), (text,) = compiled_on(lambda *args, form=form: (form(*args),), [q, k, v, mask])
        wanted = form(q, k, v, mask)
        assert "first = tl.min(" in text and torch.equal(found.isnan(), wanted.isnan())
        assert int(wanted[0, 1].isnan().any(-1).sum()) == (150 if form is added else 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_of_masks_that_are_no_numbers_are_as_in_eager(value: float) -> None:
    form, mask = added_numbers(150, 200)
    mask[70, 3], mask[20, 190] = value, value
    agree(step_of(form), [*inputs(150, 200), mask])
