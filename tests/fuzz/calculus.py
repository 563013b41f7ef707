"""Expressions of random programs: reductions, scans, sorting, products, layers."""

from __future__ import annotations

import torch

from tests.fuzz.draw import Draw
from tests.fuzz.environments import Rejected

SUMS = ("sum", "mean", "nansum", "nanmean", "prod", "std", "var", "logsumexp", "norm")
CHOICES = ("amax", "amin", "max", "min", "argmax", "argmin", "median", "nanmedian")


def sums(g: Draw) -> str:
    x = g.any()
    dim, keep = g.dim(x), g.one("", "", ", keepdim=True")
    where = g.one(f"{dim}{keep}", f"{dim}{keep}", f"{g.dims(x)}{keep}", "")
    # of infinities, eager's running mean is NaN or not as they are ordered, and its gradient of a product is NaN
    tame = x if g.finite(x) else f"torch.isfinite({x})"
    # of one factor, the gradient is expanded or not, as autograd chooses its formula
    factors = f"{x}.detach()" if g[x].requires_grad and 1 in g[x].shape else tame
    return g.one(
        f"{x}.sum({where})",
        f"{x}.sum({where})",
        f"{x}.sum({where}{', ' if where else ''}dtype={g.float_dtype()})",
        f"{x}.mean({where})",
        f"{factors}.prod({dim}{keep})",
        f"{tame}.prod()",
        f"{x}.var({where})",
        f"{x}.nansum({where})",
        f"{x}.std({dim}, correction={g.one(0, 1)}{keep})",
        f"{x}.logsumexp({dim}{keep})",
        f"{x}.norm()",
        f"{x}.nanmean({where})",
        f"torch.linalg.vector_norm({x}, {g.one(1, 2, 3)})",
        f"{x}.norm({g.one(1, 2)}, {dim}{keep})",
        f"{x}.trace()",
        f"torch.var_mean({tame}.abs(), {dim}{keep})[{g.one(0, 1)}]",  # of a mean near 0 only rounding is left
        f"F.normalize({x}, dim={dim})",
    )


def choices(g: Draw) -> str:
    x = g.any(exact=True)
    dim, keep = g.dim(x), g.one("", "", ", keepdim=True")
    where = g.one(f"{dim}{keep}", f"{g.dims(x)}{keep}", "()")
    own = f"({x} * 1)" if 0 in g[x].stride() else x  # eager sorts an expanded one in its own memory
    return g.one(
        f"{x}.amax({where})",
        f"{x}.amin({where})",
        f"{x}.max()",
        f"{x}.min()",
        f"{x}.max({dim}{keep})[{g.one(0, 1)}]",
        f"{x}.min({dim}{keep}){g.one('.values', '.indices')}",
        f"{x}.argmax()",
        f"{x}.argmax({dim}{keep})",
        f"{x}.argmin({dim}{keep})",
        f"{x}.any({where})",
        f"{x}.all({where})",
        f"{x}.count_nonzero({dim})",
        f"{own}.median()",
        f"{x}.any()",
        f"{x}.all()",
        f"{own}.median({dim}{keep}).values",
        f"torch.aminmax({x}).max",
        f"{x}.norm(float('inf'))",
    )


def scans(g: Draw) -> str:
    x = g.any()
    dim = g.dim(x)
    exact = g.any(exact=True)
    return g.one(
        f"{x}.cumsum({dim})",
        f"{x}.cumsum({dim})",
        f"{x if g.finite(x) else exact}.cumprod(-1)",
        f"torch.logcumsumexp({x}, {dim})",
        f"{exact}.cummax({g.dim(exact)})[{g.one(0, 1)}]",
        f"{exact}.cummin({g.dim(exact)}).values",
        f"torch.diff({x}, dim={dim})",
        f"{x}.cumsum({dim}, dtype={g.float_dtype()})",
        f"torch.trapezoid({x}, dim={dim})",
    )


def order(g: Draw) -> str:
    x = g.any(exact=True)
    dim, down = g.dim(x), g.one("", ", descending=True")
    return g.one(
        f"torch.sort({x}, dim={dim}{down}, stable=True)[{g.one(0, 1)}]",
        f"torch.argsort({x}, dim={dim}{down}, stable=True)",
        f"torch.sort({x}, dim={dim}{down}).values",
        f"torch.topk({x}, 1, {dim}).values",
        f"torch.kthvalue({x}, 1, {dim}).values",
        f"torch.msort({x})",
        f"torch.searchsorted(torch.tensor([-1.0, 0.0, 2.0]), {x})",
    )


def products(g: Draw) -> str:
    x = g.matrix(1, 4)
    dtype = g[x].dtype
    rank = g[x].dim()
    inner = g[x].shape[-1]
    fits = lambda t: t.dtype == dtype and t.dim() >= 1 and t.shape[-2 if t.dim() > 1 else -1] == inner
    y = (
        g.maybe(fits, f"{x}.mT")
        if g.chance(2)
        else f"{g.pick(lambda t: t.dtype == dtype and t.dim() and t.shape[-1] == inner)}.mT"
    )
    w = g.maybe(lambda t: t.dtype == dtype and t.dim() == 2 and t.shape[1] == inner, f"{x}.reshape(-1, {x}.shape[-1])")
    z = g.pick(lambda t: t.dtype == dtype)
    letters = "abcd"[: rank - 1]
    return g.one(
        f"torch.matmul({x}, {y})",
        f"{x} @ {y}",
        f"F.linear({x}, {w})",
        f"F.linear({x}, {w}, {z})",
        f"torch.mm({x}, {y})",
        f"torch.bmm({x}, {y})",
        f"torch.addmm({z}, {x}, {y}, beta={g.one('1', '0', '0.5')}, alpha={g.one('1', '2')})",
        f"torch.outer({x}.reshape(-1), {z}.reshape(-1))",
        f'torch.einsum("{letters}i,ji->{letters}j", {x}, {w})',
        f"torch.dot({x}.reshape(-1), {x}.reshape(-1))",
        f"torch.mv({w}, {x})",
        f"torch.baddbmm({z}, {x}, {y})",
        f"torch.tensordot({x}, {w}, dims=([-1], [1]))",
        f"torch.cdist({x}, {x} + 1)",
        f"torch.linalg.multi_dot([{x}, {y}])",
        f"F.bilinear({x}, {x}, {w}[None])",
        f"F.cosine_similarity({x}, {z})",
        f"torch.kron({x}, {z})",
    )


def rows(g: Draw) -> str:
    x = g.pick(lambda t: t.is_floating_point() and 1 <= t.dim() <= 5 and t.shape[-1] != 1)  # a norm of 1 is rounding
    dim = g.dim(x)
    last = g.size(x, -1)
    w = g.maybe(lambda t: t.dtype == g[x].dtype and t.shape == g[x].shape[-1:], "None")
    # of a number that is the mean, rounding is left: no wider dtype tells how much
    few = x if g[x].dtype != torch.float64 else f"{x}.to(torch.float32)"
    return g.one(
        f"F.softmax({x}, {dim})",
        f"F.log_softmax({x}, {dim})",
        f"F.layer_norm({x}, ({last},))",
        f"F.rms_norm({x}, ({last},))",
        f"F.layer_norm({x}, ({last},), {w}, {w}, 1e-5)",
        f"F.group_norm({x}, 1)",
        f"F.glu({x}, {dim})",
        f"F.batch_norm({few}, None, None, training=True)",
        f"F.instance_norm({few})",
        f"F.softmin({x}, {dim})",
        f"F.softmax({x}, {dim}, dtype={g.float_dtype()})",
        f"F.rms_norm({x}, ({last},), {w})",
        f"F.batch_norm({x}, torch.zeros_like({x}[0, :, 0]), torch.ones_like({x}[0, :, 0]))",
    )


def layers(g: Draw) -> str:
    x = g.matrix(2, 4)
    dtype = g[x].dtype
    rank = g[x].dim()
    channels = g[x].shape[-2] if rank == 2 else g[x].shape[1]
    kernel = f"(torch.arange({channels * 4}, dtype=torch.int64) % 5 - 2).to({dtype}).reshape(2, {channels}, 2)"
    plane = f"(torch.arange({channels * 8}, dtype=torch.int64) % 5 - 2).to({dtype}).reshape(2, {channels}, 2, 2)"
    classes = g[x].shape[1] if rank == 2 else 0
    target = f"torch.arange({x}.shape[0]) % {max(classes, 1)}"
    exact = x if not g[x].requires_grad or g.environments.exact(x) else f"{x}.detach()"
    some = x if g[x].numel() else f"F.pad({x}, (1, 1, 1, 1))"  # of no elements, this loss is what is in memory
    return g.one(
        f"F.conv1d({x}, {kernel})",
        f"F.conv2d({x}, {plane}, padding=1)",
        f"F.avg_pool1d({x}, 2, padding=1)",
        f"F.avg_pool2d({x}, 2)",
        f"F.conv1d({x}, {kernel}, padding=1, stride=2)",
        f"F.adaptive_avg_pool2d({x}, 2)",
        f"F.interpolate({x}, scale_factor=2)",
        f"F.cross_entropy({x}, {target})",
        f"F.nll_loss({x}, {target})",
        f"F.max_pool2d({exact}, 2, padding={g.one(0, 1)})",
        f"F.max_pool1d({exact}, 2)",
        f"F.cross_entropy({x}, {target}, label_smoothing=0.1, reduction='none')",
        f"F.scaled_dot_product_attention({x}, {x}, {x})",
        f"F.scaled_dot_product_attention({x}, {x}, {x}, is_causal=True)",
        f"F.multi_margin_loss({some}, {target})",
        f"F.conv_transpose1d({x}, {kernel}.transpose(0, 1))",
        f"F.pixel_shuffle({x}, 1)",
        f"F.interpolate({x}, scale_factor=2, mode='{g.one('linear', 'bilinear', 'nearest-exact')}')",
        f"F.unfold({x}, 2)",
        f"F.adaptive_max_pool2d({exact}, 1)",
        f"F.lp_pool1d({x}, 2, 2)",
        f"F.local_response_norm({x}, 2)",
    )


def random(g: Draw) -> str:
    """Draws of numbers that do not depend on the dtype of the run."""
    x = g.any()
    shape = g.shape(x)
    dtype = g.float_dtype()
    return g.one(
        f"torch.rand({shape}, dtype=torch.float).to({dtype})",
        f"torch.randn({shape}, dtype=torch.float).to({dtype})",
        f"torch.randint(-3, 9, {shape})",
        f"torch.randperm({x}.numel())",
        f"F.dropout({g.floats()}, 0.4)",
        f"torch.bernoulli(torch.full({shape}, 0.4, dtype=torch.float)).to({dtype})",
        f"F.dropout({g.floats()}, 0.5, training=False)",
        f"torch.empty({shape}, dtype=torch.float).uniform_(-1, 1).to({dtype})",
        f"torch.randint_like({g.real()}, 5).to(torch.int64)",
        f"torch.empty({shape}, dtype=torch.float).normal_().to({dtype})",
        f"torch.empty({shape}, dtype=torch.int64).random_(9)",
    )


def numbers(g: Draw) -> str:
    """Of few elements, whatever there was."""
    x = g.any(exact=True)
    if g[x].is_complex():
        raise Rejected
    return g.one(f"torch.histc({x}, 3, -2, 2)", f"torch.bincount({x})", f"torch.cov({x})", f"torch.quantile({x}, 0.5)")


FAMILIES = (
    (9, sums),
    (6, choices),
    (4, scans),
    (3, order),
    (7, products),
    (6, rows),
    (4, layers),
    (1, numbers),
)
DRAWS = ((30, random),)
