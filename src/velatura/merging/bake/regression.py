"""Second moments of contexts and of what is added to them: all that a linear fit, and its error, needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from velatura.overlays.affine import AffineMap, float64_device

linalg: Any = torch.linalg  # which has no types

RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # in units of the contexts' mean variance a feature


@dataclass
class Moments:
    """Sums over tokens, of contexts c and what is added to them f, in float64, so that no context need be kept.

    cc, cf, ff: (width, width), the sums of c cᵀ, c fᵀ and f fᵀ.
    """

    count: int
    c: Tensor
    f: Tensor
    cc: Tensor
    cf: Tensor
    ff: Tensor

    @classmethod
    def zeros(cls, width: int, device: torch.device) -> Moments:
        """The moments of no token at all."""
        double_device = float64_device(device)
        vector, matrix = (
            torch.zeros(*shape, dtype=torch.float64, device=double_device) for shape in ((width,), (width, width))
        )
        return cls(0, vector, vector.clone(), matrix, matrix.clone(), matrix.clone())

    def add(self, context: Tensor, change: Tensor, *, centred: bool) -> None:
        """Count tokens in; context, change: (pictures, tokens, width).

        centred: leave out what all tokens of a picture have in common. That is right for K: q k + q b differs from q k
        by the same for every key, so softmax(q k + q b) = softmax(q k).
        """
        c, f = (tensor.to(self.c.device, torch.float64) for tensor in (context, change))
        if centred:
            c, f = (tensor - tensor.mean(dim=-2, keepdim=True) for tensor in (c, f))
        c, f = (tensor.flatten(0, -2) for tensor in (c, f))
        self.count += len(c)
        self.c += c.sum(0)
        self.f += f.sum(0)
        self.cc += c.T @ c
        self.cf += c.T @ f
        self.ff += f.T @ f

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.c + other.c,
            self.f + other.f,
            self.cc + other.cc,
            self.cf + other.cf,
            self.ff + other.ff,
        )

    def fit(self, ridge: float, *, fit_intercept: bool) -> AffineMap:
        """The affine map A c + b, or the linear one A c, that comes nearest to f: ridge regression.

        A minimises the sum of |f - A c - b|² + ridge |A|² (Hoerl and Kennard 1970), b = mean f - A mean c. As it is
        linear in f, W A is what the same fit to W f would give, whatever W: one fit serves every layer that reads c.
        """
        cc, cf = self.cc, self.cf
        if fit_intercept:
            cc = cc - torch.outer(self.c, self.c) / self.count
            cf = cf - torch.outer(self.c, self.f) / self.count
        size = cc.diagonal().mean()
        matrix: Tensor = linalg.solve(cc + ridge * size * torch.eye(len(cc), dtype=cc.dtype, device=cc.device), cf).T
        shift = (self.f - matrix @ self.c) / self.count if fit_intercept else torch.zeros_like(self.f)
        return AffineMap(matrix, shift)

    def residual(self, known: AffineMap) -> Moments:
        """The moments of c and f - A c - b, what is left to fit once a part of the change is known."""
        a, b = (tensor.to(self.cc) for tensor in (known.matrix, known.shift))
        mapped, ones = a @ self.cc + torch.outer(b, self.c), self.count * torch.outer(b, b)  # (A c + b) cᵀ
        across = mapped @ a.T + torch.outer(a @ self.c, b) + ones  # (A c + b) (A c + b)ᵀ
        crossed = a @ self.cf + torch.outer(b, self.f)  # (A c + b) fᵀ
        rest = self.f - a @ self.c - self.count * b
        return Moments(self.count, self.c, rest, self.cc, self.cf - mapped.T, self.ff - crossed - crossed.T + across)

    def squared_error(self, weight: Tensor, product: Tensor, shift: Tensor) -> float:
        """The sum of |W f - D c - d|²: what is lost of the change behind a weight W by adding D c + d."""
        w, d, extra = (tensor.to(self.cc) for tensor in (weight, product, shift))
        squares = _quadratic_trace(self.ff, w) + _quadratic_trace(self.cc, d) + self.count * extra @ extra
        across = ((w @ self.cf.T) * d).sum() + extra @ (w @ self.f - d @ self.c)
        return max(float(squares - 2 * across), 0.0)

    def squared_change(self, weight: Tensor) -> float:
        """The sum of |W f|²."""
        return float(_quadratic_trace(self.ff, weight.to(self.ff)))

    def squared_output(self, weight: Tensor) -> float:
        """The sum of |W (c + f)|²: how large K or V is, once changed."""
        return float(_quadratic_trace(self.cc + self.cf + self.cf.T + self.ff, weight.to(self.ff)))


def best_fit(fitting: Moments, choosing: Moments, *, fit_intercept: bool) -> AffineMap:
    """Fit with the ridge that does best on moments that were not fitted to, then to both."""
    unit = torch.eye(len(fitting.c), dtype=torch.float64, device=fitting.c.device)

    def loss(ridge: float) -> float:
        affine = fitting.fit(ridge, fit_intercept=fit_intercept)
        return choosing.squared_error(unit, affine.matrix, affine.shift)

    return (fitting + choosing).fit(min(RIDGES, key=loss), fit_intercept=fit_intercept)


def _quadratic_trace(moment: Tensor, weight: Tensor) -> Tensor:
    """The trace of W M Wᵀ."""
    return ((weight @ moment) * weight).sum()
