"""Where eager does something of its own that a graph must follow: the same answers, or the same errors."""

from __future__ import annotations

import copy
import linecache
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.errors import DataDependentError, FallbackWarning, UninitializedError, UnsupportedError
from tests.frontend.harness import compare
from tests.ops.expansion import ordinary

BACKENDS = ["interpret", pytest.param("c", marks=pytest.mark.skipif(not shutil.which("gcc"), reason="no compiler"))]
STATE = torch.Generator().manual_seed(5).get_state()
X, IMAGE, WINDOW = ordinary(4, 6), ordinary(2, 4, 8, 8), ordinary(4, 4, 3, 3)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors is in prototype stage.*")
        yield


def same(backend, fn, *args, calls=2, **kwargs):
    """Eager and compiled agree in results and in what they write; random numbers are drawn alike."""
    theirs, their_args, their_kwargs = copy.deepcopy((fn, args, kwargs))
    compiled = graphc.compile(fn, backend=backend, numerics="eager")
    torch.manual_seed(1)
    expected = [theirs(*their_args, **their_kwargs) for _ in range(calls)]
    torch.manual_seed(1)
    actual = [compiled(*args, **kwargs) for _ in range(calls)]
    compare((actual, args), (expected, their_args), False)
    return compiled


def refused_alike(backend, fn, *args):
    """Both raise the same class, and the compiled one names a line of this file that has `# here`."""
    with pytest.raises(Exception) as eager:
        fn(*copy.deepcopy(args))
    with pytest.raises(type(eager.value)) as ours:
        graphc.compile(fn, backend=backend)(*copy.deepcopy(args))
    assert type(ours.value) is type(eager.value)
    message = str(ours.value)
    file, _, line = message.rpartition("at ")[2].rpartition(":")
    assert file == __file__, message
    assert "# here" in linecache.getline(file, int(line)), message


PADDINGS = {
    "at the end": [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]],
    "at the start": [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]],
    "a row of padding": [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]],
}


def _layer():
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", PADDINGS)
@pytest.mark.parametrize("checked", [True, False])
def test_encoder_of_a_padded_batch(backend, where, checked):
    """Eager goes by nested tensors where the padding is at the end of each row: one program answers for both."""
    padding = torch.tensor(PADDINGS[where]).bool()
    if not checked and where == "at the start":
        padding = padding.flip(1)
    encoder = nn.TransformerEncoder(_layer(), 2, norm=nn.LayerNorm(8), mask_check=checked).eval()
    compiled = same(backend, encoder, ordinary(2, 5, 8), src_key_padding_mask=padding)
    x, other = ordinary(2, 5, 8, seed=3), padding if not checked else padding.flip(1)
    compare(compiled(x, src_key_padding_mask=other), encoder(x, src_key_padding_mask=other), False)
    assert compiled.stats().compiles == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_encoder_with_other_masks(backend):
    encoder = nn.TransformerEncoder(_layer(), 2).eval()
    x, causal = ordinary(2, 5, 8), nn.Transformer.generate_square_subsequent_mask(5)
    same(backend, encoder, x, mask=causal)
    same(backend, encoder, x)
    weights = torch.tensor([[0, 0, 0, float("-inf"), float("-inf")], [0, 0, 0, 0, 0]])
    same(backend, encoder, x, src_key_padding_mask=weights)
    same(backend, encoder, x, src_key_padding_mask=weights.flip(1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [False, True])
def test_attention_takes_eagers_path(backend, training):
    x, padding = ordinary(2, 5, 8), torch.tensor(PADDINGS["at the end"]).bool()
    same(backend, _layer().train(training), x, src_key_padding_mask=padding)
    module = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    same(backend, module, x, x, x)
    same(backend, module, x, x, x, key_padding_mask=padding, need_weights=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "module",
    [
        lambda: nn.Sequential(nn.Dropout(0.5), nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2)),
        lambda: nn.LazyLinear(3),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.LazyConv1d(2, 3)),
    ],
)
def test_lazy_modules(backend, module):
    """The first call, which makes the parameters, runs eager; then it is compiled."""
    eager, mine = module(), module()
    compiled = graphc.compile(mine, backend=backend, numerics="eager")
    torch.manual_seed(1)
    expected = [eager(X) for _ in range(3)]
    torch.manual_seed(1)
    compare([compiled(X) for _ in range(3)], expected, False)
    compare(dict(mine.state_dict()), dict(eager.state_dict()), False)
    stats = compiled.stats()
    assert (stats.eager_calls, stats.compiles, stats.hits) == (1, 1, 1)


def test_lazy_module_asked_for_its_graph():
    with pytest.raises(UninitializedError, match="call it once"):
        graphc.compile(nn.Sequential(nn.LazyLinear(3))).graph(X)


def test_lazy_module_that_never_runs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 2), nn.LazyLinear(2)

        def forward(self, x):
            return self.used(x)

    compiled = graphc.compile(Net(), backend="interpret")
    compiled(X)
    assert (compiled.stats().eager_calls, compiled.stats().compiles) == (0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("lengths", [((6, 5), (3, 2)), (torch.tensor([6, 5]), torch.tensor([3, 2]))])
def test_ctc_loss(backend, reduction, lengths):
    logs, targets = ordinary(6, 2, 5).log_softmax(2), torch.tensor([[1, 2, 3], [4, 1, 1]])
    same(backend, lambda a, b, *n: F.ctc_loss(a, b, *n, reduction=reduction), logs, targets, *lengths)
    same(backend, nn.CTCLoss(reduction=reduction), logs, targets, *lengths)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_keep_their_python_type(backend):
    def fn(x):
        return (x > 0).any().item(), (x > 9).all().item(), x.argmax().item(), x.sum().item() > 0

    same(backend, fn, X)
    found = graphc.run(graphc.trace(fn, X), X, backend=backend)
    assert [type(number) for number in found] == [bool, bool, int, bool]
    assert found == list(fn(X))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_and_allclose_are_numbers_of_the_program(backend):
    def fn(x, y):
        return torch.equal(x, y), x.equal(x), torch.allclose(x, y, rtol=1e-3), x.allclose(y[0]), torch.equal(x, y[0])

    near = X * 1.0001
    same(backend, fn, X, near)
    same(backend, fn, X, X.clone())


def test_reading_numbers_in_a_tensor_is_named():
    with pytest.raises((DataDependentError, UnsupportedError), match=r"Tensor\.tensor_split"):
        graphc.trace(lambda x, n: torch.tensor_split(x, n), X, torch.tensor([1, 2]))


@pytest.mark.parametrize("seeding", [lambda: torch.manual_seed(0), lambda: torch.set_rng_state(STATE)])
def test_setting_generators_runs_eager(seeding):
    def fn(x):
        seeding()
        return x + torch.rand(2, 3)

    compiled = graphc.compile(fn, backend="interpret")
    found = compiled(torch.zeros(2, 3))
    after = torch.get_rng_state()
    assert torch.equal(found, fn(torch.zeros(2, 3))) and torch.equal(torch.get_rng_state(), after)
    assert compiled.stats().eager_calls == 1
    assert torch.manual_seed.__module__ == "torch.random"


@pytest.mark.parametrize("backend", BACKENDS)
def test_conjugated_and_negated_views_as_results(backend):
    same(backend, torch.fft.ifft, X)
    same(backend, torch.fft.ihfft, X)
    same(backend, lambda z: (z.conj(), z.conj().imag + 1, z.mul(2).conj()), torch.complex(X, X * 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "fn",
    [
        lambda z: (z * 2).t().contiguous(),
        lambda z: z.t().reshape(-1) + 1,
        lambda z: z.clone().index_fill_(0, torch.tensor([1]), 0),
        lambda z: z.clone().mul_(2).t().copy_(z.t()),
    ],
)
def test_complex_numbers_in_other_layouts(backend, fn):
    z = torch.complex(X, X * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        same(backend, fn, z)
        same(backend, torch.fft.fftn, ordinary(5, 3, 7))


def test_complex_numbers_that_kernels_would_have_to_hold_run_op_by_op():
    z = torch.complex(X, X * 2)
    compiled = graphc.compile(lambda z: z.clone().mul_(2).t().copy_(z.t()), backend="c")
    if shutil.which("gcc"):
        with pytest.warns(FallbackWarning, match="op by op"):
            compiled(z)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_with_the_strides_of_the_whole(backend):
    same(backend, lambda x: torch.unsafe_chunk(x, 5, 1), ordinary(5, 5, 5))
    same(backend, lambda x: torch.unsafe_split(x, 2, 2), ordinary(5, 5, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_a_computed_tensor_changed_in_place(backend):
    def fn(x, b):
        p, q, r = (x + b).chunk(3, 1)
        return r * p.add_(1).sigmoid_() + q.add_(2).sigmoid_(), p

    same(backend, fn, ordinary(2, 12), ordinary(12))


def test_tensor_as_a_start():
    with pytest.raises(DataDependentError):
        graphc.trace(lambda x, start: torch.narrow(x, 1, start, 2), X, torch.tensor(1))


PARTIAL = {
    "copy_": lambda x: x[1:].copy_(x[:-1]),  # here
    "iadd": lambda x: x[1:].add_(x[:-1]),  # here
    "own tensor": lambda x: (x + 1).unfold(0, 2, 1)[:, 1].mul_(x).sum(),  # here
    "out=": lambda x: torch.sin(x[1:], out=x[:-1]),  # here
    "cat": lambda x: torch.cat([x, x], out=x.as_strided((8, 6), (6, 1))[:8]),  # here
    "index_add_": lambda x: x.index_add_(0, torch.tensor([0, 1]), x[:2]),  # here
    "foreach": lambda x: torch._foreach_add_([x[1:]], [x[:-1]]),  # here
    "expanded": lambda x: x[:1].expand(4, 6).add_(1),  # here
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PARTIAL)
def test_writing_to_memory_that_is_read(backend, name):
    refused_alike(backend, PARTIAL[name], X.flatten()[:24].view(4, 6) if name == "cat" else X)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.add_(x),
        lambda x: x[:2].add_(x[2:]),
        lambda x: x[::2].mul_(x[1::2]),
        lambda x: torch.add(x, x, out=x),
        lambda x: torch._foreach_add_([x[:2], x[2:]], [x[2:], x[:2]]) or x,
    ],
)
def test_writing_beside_memory_that_is_read(backend, fn):
    same(backend, fn, X.clone())


ERRONEOUS = {
    "softshrink": lambda: F.softshrink(X, -1.0),  # here
    "gelu": lambda: F.gelu(X, approximate="erf"),  # here
    "glu": lambda: F.glu(X, 4),  # here
    "dilation": lambda: F.conv2d(IMAGE, WINDOW, dilation=0),  # here
    "padding": lambda: F.conv2d(IMAGE, WINDOW, padding=-1),  # here
    "stride": lambda: F.conv2d(IMAGE, WINDOW, stride=0),  # here
    "groups": lambda: F.conv2d(IMAGE, WINDOW, groups=3),  # here
    "output padding": lambda: F.conv_transpose2d(IMAGE, WINDOW, output_padding=2),  # here
    "dims": lambda: torch.ones([1] * 65).sum(0),  # here
    "window": lambda: F.max_pool2d(IMAGE, 2, padding=2),  # here
    "dtype of out": lambda: torch.gather(X, 0, torch.zeros(1, 6).long(), out=torch.zeros(1, 6).double()),  # here
    "dtype of a random out": lambda: torch.multinomial(X.abs(), 2, out=torch.zeros(4, 2)),  # here
    "std": lambda: torch.zeros(3).normal_(0, -1),  # here
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ERRONEOUS)
def test_arguments_that_eager_refuses(backend, name):
    refused_alike(backend, ERRONEOUS[name])
