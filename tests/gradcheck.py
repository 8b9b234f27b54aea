"""The public gradient check, as an assertion."""

from minibrain.study.gradcheck import check_gradient


def assert_gradient(function, x, gradient, dy, rng, **tolerances):
    """Check gradient against the slope of ⟨dy, function(x)⟩; arguments as in check_gradient."""
    check = check_gradient(function, x, gradient, dy, rng, **tolerances)
    assert check.passed, check
