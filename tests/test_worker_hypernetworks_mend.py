"""The MEND editor: gradient descent at the start, trainable in every part, restored from its state."""

from __future__ import annotations

import pytest
import torch

from worker.hypernetworks.mend import Factors, MendEditor, ResidualBlock, aggregate


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_factors(rows: int = 5, d_in: int = 7, d_out: int = 4, *, seed: int = 0) -> Factors:
    generator = draw(seed)
    scale = torch.logspace(-3, 1, d_in)  # inputs and gradients live on very different scales
    u = torch.randn(rows, d_in, generator=generator) * scale + 1
    return Factors(u, torch.randn(rows, d_out, generator=generator) * 1e-3)


def fitted(factors: Factors, *, rank: int = 3, seed: int = 1) -> MendEditor:
    editor = MendEditor(factors.u.shape[1], factors.v.shape[1], rank, draw(seed))
    editor.fit_normalizer(factors)
    return editor


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("log_step", [0.0, -2.5])
def test_at_its_start_the_editor_is_plain_gradient_descent(rows: int, log_step: float) -> None:
    factors = some_factors(rows)
    editor = fitted(factors)
    with torch.no_grad():
        editor.log_step.fill_(log_step)
    gradient = factors.v.T @ factors.u
    expected = -torch.tensor(log_step).exp() * gradient
    torch.testing.assert_close(
        editor(factors).dense(), expected, rtol=1e-4, atol=float(gradient.abs().max()) * 1e-5
    )


def test_a_step_at_the_start_goes_downhill() -> None:
    generator = draw(3)
    weight = torch.randn(4, 7, generator=generator, requires_grad=True)
    x, y = torch.randn(20, 7, generator=generator), torch.randn(20, 4, generator=generator)
    output = x @ weight.T
    (v,) = torch.autograd.grad((output - y).square().sum(), output)
    editor = fitted(Factors(x, v))
    with torch.no_grad():
        editor.log_step.fill_(-6.0)
        after = (x @ (weight + editor(Factors(x, v)).dense()).T - y).square().sum()
    assert after < (output - y).square().sum()


def test_every_parameter_that_can_move_receives_a_gradient_at_the_start() -> None:
    factors = some_factors()
    editor = fitted(factors)
    target = torch.randn(4, 7, generator=draw(9))
    (editor(factors).dense() - target).square().sum().backward()
    for name, parameter in editor.named_parameters():
        assert parameter.grad is not None, name
        # `down` meets `up` at zero, so it moves one step later than the rest.
        assert bool(parameter.grad.any()) is not name.endswith("down"), name
    torch.optim.SGD(editor.parameters(), lr=1e-2).step()
    editor.zero_grad()
    (editor(factors).dense() - target).square().sum().backward()
    assert all(
        parameter.grad.abs().max() > 0 for parameter in editor.parameters() if parameter.grad is not None
    )


def test_a_block_starts_as_the_identity_and_only_adds() -> None:
    block = ResidualBlock(6, 2, draw(0))
    x = torch.randn(3, 6, generator=draw(1))
    assert torch.equal(block(x), x)
    with torch.no_grad():
        block.up.normal_(generator=draw(2))
        block.bias.normal_(generator=draw(3))
    expected = x + torch.relu(x @ block.down.T @ block.up.T + block.bias)
    torch.testing.assert_close(block(x), expected)


def test_the_normalizer_is_part_of_the_state() -> None:
    factors = some_factors()
    editor = fitted(factors)
    with torch.no_grad():
        for parameter in editor.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw(4)))
    again = MendEditor(7, 4, 3, draw(99))
    again.load_state_dict(editor.state_dict())
    assert torch.equal(again(factors).dense(), editor(factors).dense())
    assert {"mean", "scale"} <= set(editor.state_dict())


def test_constant_dimensions_stay_finite() -> None:
    factors = some_factors()
    still = Factors(factors.u.clone(), factors.v)
    still.u[:, 2] = 5.0
    update = fitted(still)(still).dense()
    assert torch.isfinite(update).all()
    torch.testing.assert_close(update, -(still.v.T @ still.u), rtol=1e-4, atol=1e-6)
    same = Factors(torch.ones(3, 7), torch.ones(3, 4))
    assert torch.isfinite(fitted(same)(same).dense()).all()


@pytest.mark.parametrize(
    ("tokens", "d_in", "d_out"), [(1, 6, 4), (3, 6, 4), (5, 6, 4), (40, 6, 4), (9, 3, 8)]
)
def test_zero_tolerance_keeps_the_gradient_and_its_rank(tokens: int, d_in: int, d_out: int) -> None:
    generator = draw(tokens)
    u = torch.randn(tokens, d_in, generator=generator, dtype=torch.float64)
    v = torch.randn(tokens, d_out, generator=generator, dtype=torch.float64)
    found = aggregate(u, v, tolerance=0.0)
    assert found.u.shape == (min(tokens, d_in, d_out), d_in)
    assert found.v.shape == (min(tokens, d_in, d_out), d_out)
    torch.testing.assert_close(found.v.T @ found.u, v.T @ u, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-3])
def test_the_error_stays_within_the_tolerance(tolerance: float) -> None:
    u = torch.randn(60, 24, generator=draw(0)) * torch.logspace(0, -4, 24)
    v = torch.randn(60, 16, generator=draw(1)) * torch.logspace(0, -4, 16)
    gradient = v.double().T @ u.double()
    found = aggregate(u, v, tolerance)
    error = (found.v.double().T @ found.u.double() - gradient).norm() / gradient.norm()
    assert error <= tolerance * (1 + 1e-3)
    singular = torch.linalg.svdvals(gradient)
    fewest = next(r for r in range(1, 17) if singular[r:].norm() <= tolerance * singular.norm())
    assert len(found.u) == fewest


def test_factors_of_a_gradient_share_its_scale() -> None:
    found = aggregate(torch.randn(8, 5, generator=draw(0)) * 1e3, torch.randn(8, 5, generator=draw(1)) * 1e-3)
    torch.testing.assert_close(found.u.norm(dim=1), found.v.norm(dim=1), rtol=1e-4, atol=0)


def test_no_gradient_gives_no_update() -> None:
    found = aggregate(torch.randn(4, 5, generator=draw(0)), torch.zeros(4, 3))
    assert found.u.shape == (1, 5) and not (found.v.T @ found.u).any()
