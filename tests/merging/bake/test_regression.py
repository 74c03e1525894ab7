import pytest
import torch

from velatura.merging.bake.regression import RIDGES, Moments, best_fit
from velatura.overlays.affine import AffineMap, float64_device

CPU = torch.device("cpu")
SUMS = ("count", "c", "f", "cc", "cf", "ff")


def contexts(seed: int = 0, pictures: int = 40, width: int = 5) -> torch.Tensor:
    """Contexts whose features are neither independent nor of mean zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.randn(pictures, 7, width, generator=generator, dtype=torch.float64) @ mixing + 2


def bent(context: torch.Tensor) -> torch.Tensor:
    return context.tanh() + 0.3 * context.roll(1, -1) + 0.5


def drawn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def moments_of(context: torch.Tensor, change: torch.Tensor, *, centred: bool = False) -> Moments:
    """Add contexts in several batches."""
    found = Moments.zeros(context.shape[-1], CPU)
    for c, f in zip(context.split(11), change.split(11), strict=True):
        found.add(c, f, centred=centred)
    return found


def close(ours: object, theirs: object) -> bool:
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (ours, theirs))
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_fit_is_that_of_least_squares_over_all_contexts():
    c = contexts()
    found = moments_of(c, bent(c)).fit(1e-14, fit_intercept=True)
    rows = torch.cat([c, torch.ones_like(c[..., :1])], -1).flatten(0, 1)
    expected = torch.linalg.lstsq(rows, bent(c).flatten(0, 1)).solution
    assert close(found.matrix, expected[:-1].T)
    assert close(found.shift, expected[-1])


def test_a_fit_without_a_shift_is_that_of_least_squares_through_zero():
    c = contexts()
    found = moments_of(c, bent(c)).fit(1e-14, fit_intercept=False)
    assert close(found.matrix.T, torch.linalg.lstsq(c.flatten(0, 1), bent(c).flatten(0, 1)).solution)
    assert not found.shift.any()


def test_an_affine_change_is_found_exactly():
    c = contexts()
    matrix, shift = drawn((5, 5), (5,))
    found = best_fit(
        *[moments_of(context, context @ matrix.T + shift) for context in (c, contexts(1))], fit_intercept=True
    )
    assert close(found.matrix, matrix)
    assert close(found.shift, shift)


def test_fitting_behind_a_weight_is_fitting_and_then_the_weight():
    c, [weight] = contexts(), drawn((3, 5))
    found = moments_of(c, bent(c)).fit(1e-14, fit_intercept=False)
    behind = torch.linalg.lstsq(c.flatten(0, 1), (bent(c) @ weight.T).flatten(0, 1)).solution
    assert close(weight @ found.matrix, behind.T)


def test_what_is_missed_changed_and_whole_is_what_direct_sums_say():
    c = contexts()
    f, (weight, product, shift) = bent(c), drawn((3, 5), (3, 5), (3,))
    found = moments_of(c, f)
    assert close(found.squared_error(weight, product, shift), (f @ weight.T - c @ product.T - shift).square().sum())
    assert close(found.squared_change(weight), (f @ weight.T).square().sum())
    assert close(found.squared_output(weight), ((c + f) @ weight.T).square().sum())


def test_what_is_left_of_a_change_is_what_direct_sums_say():
    c = contexts()
    matrix, shift = drawn((5, 5), (5,))
    ours = moments_of(c, bent(c)).residual(AffineMap(matrix, shift))
    theirs = moments_of(c, bent(c) - c @ matrix.T - shift)
    assert all(close(getattr(ours, name), getattr(theirs, name)) for name in SUMS)


def test_centred_moments_do_not_see_what_all_tokens_of_a_picture_share():
    c = contexts()
    f, [shared] = bent(c), drawn((len(c), 1, 5))
    ours, theirs = (moments_of(c, change, centred=True) for change in (f, f + shared))
    assert all(close(getattr(ours, name), getattr(theirs, name)) for name in SUMS[1:])
    assert ours.f.abs().max() < 1e-9


def test_moments_add_up():
    c, d = contexts(), contexts(1)
    both = moments_of(torch.cat([c, d]), bent(torch.cat([c, d])))
    added = moments_of(c, bent(c)) + moments_of(d, bent(d))
    assert all(close(getattr(both, name), getattr(added, name)) for name in SUMS)


def test_what_was_fitted_to_too_few_contexts_is_held_back():
    few = contexts(2, pictures=1)[:, :4]
    [noise] = drawn(few.shape)
    fitting, choosing = moments_of(few, 9 * noise), moments_of(contexts(3), bent(contexts(3)))
    found = best_fit(fitting, choosing, fit_intercept=False)
    assert close(found.matrix, (fitting + choosing).fit(RIDGES[-1], fit_intercept=False).matrix)


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu"), ("xpu:0", "cpu")]
)
def test_float64_sums_are_computed_on_a_device_that_has_float64(device, expected):
    assert float64_device(torch.device(device)) == torch.device(expected)
