"""Ridge regression from second moments of contexts and of their changes, so that no context has to be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from velatura.overlays.affine import AffineMap, float64_device

linalg: Any = torch.linalg  # torch.linalg has no type annotations

RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # relative to the contexts' mean variance of a feature


@dataclass
class Moments:
    """Sums in float64 over tokens, of contexts c and of what is added to them, f.

    Attributes:
        count: How many tokens were added.
        c, f: (width,), the sums of c and of f.
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
        """Return the moments of no tokens."""
        double_device = float64_device(device)
        vector = torch.zeros(width, dtype=torch.float64, device=double_device)
        matrix = torch.zeros(width, width, dtype=torch.float64, device=double_device)
        return cls(0, vector, vector.clone(), matrix, matrix.clone(), matrix.clone())

    def add(self, context: Tensor, change: Tensor, *, centred: bool) -> None:
        """Add tokens to the sums.

        Args:
            context, change: (pictures, tokens, width).
            centred: Subtract the mean over all tokens of a picture. That is right for K: q k + q b differs from q k by
                the same amount for every key, so softmax(q k + q b) = softmax(q k).
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
        """Fit f by ridge regression.

        A minimises the sum of |f - A c - b|² + ridge |A|² (Hoerl and Kennard 1970), and b = mean f - A mean c. The fit
        is linear in f, so W A is what a fit to W f would give: one fit serves every layer that reads c.

        Args:
            ridge: The penalty, relative to the contexts' mean variance of a feature.
            fit_intercept: Fit b too. Otherwise b is 0.

        Returns:
            The map A c + b.
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
        """Return the moments of c and f - A c - b, which is left to fit if a part of the change is known."""
        a, b = (tensor.to(self.cc) for tensor in (known.matrix, known.shift))
        mapped, ones = a @ self.cc + torch.outer(b, self.c), self.count * torch.outer(b, b)  # (A c + b) cᵀ
        across = mapped @ a.T + torch.outer(a @ self.c, b) + ones  # (A c + b) (A c + b)ᵀ
        crossed = a @ self.cf + torch.outer(b, self.f)  # (A c + b) fᵀ
        rest = self.f - a @ self.c - self.count * b
        return Moments(self.count, self.c, rest, self.cc, self.cf - mapped.T, self.ff - crossed - crossed.T + across)

    def squared_error(self, weight: Tensor, product: Tensor, shift: Tensor) -> float:
        """Return the sum of |W f - D c - d|²: the error of adding D c + d behind a weight.

        Args:
            weight: W, (out features, width).
            product: D, (out features, width).
            shift: d, (out features,).
        """
        w, d, extra = (tensor.to(self.cc) for tensor in (weight, product, shift))
        squares = _quadratic_trace(self.ff, w) + _quadratic_trace(self.cc, d) + self.count * extra @ extra
        across = ((w @ self.cf.T) * d).sum() + extra @ (w @ self.f - d @ self.c)
        return max(float(squares - 2 * across), 0.0)

    def squared_change(self, weight: Tensor) -> float:
        """Return the sum of |W f|², the size of the change behind a weight W."""
        return float(_quadratic_trace(self.ff, weight.to(self.ff)))

    def squared_output(self, weight: Tensor) -> float:
        """Return the sum of |W (c + f)|², the size of the changed K or V."""
        return float(_quadratic_trace(self.cc + self.cf + self.cf.T + self.ff, weight.to(self.ff)))


def best_fit(fitting: Moments, choosing: Moments, *, fit_intercept: bool) -> AffineMap:
    """Choose the ridge with the least error on moments that it is not fitted to, then fit to both with it."""
    unit = torch.eye(len(fitting.c), dtype=torch.float64, device=fitting.c.device)

    def loss(ridge: float) -> float:
        affine = fitting.fit(ridge, fit_intercept=fit_intercept)
        return choosing.squared_error(unit, affine.matrix, affine.shift)

    return (fitting + choosing).fit(min(RIDGES, key=loss), fit_intercept=fit_intercept)


def _quadratic_trace(moment: Tensor, weight: Tensor) -> Tensor:
    """Return the trace of W M Wᵀ."""
    return ((weight @ moment) * weight).sum()
