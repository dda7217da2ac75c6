"""Captum's metrics and methods around LRP, each against its formula worked out here by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import (
    NoiseTunnel,
)
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, LayerLRP, presets, stabilizers
from tests.helpers.layers import relative_error
from tests.helpers.networks import TwoInputs, build, cnn
from tests.helpers.small_pictures import IMAGES, SAMPLES, TARGETS, N, small, without_bias

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = (
    torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)),
    torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)),
)
PAIR_TARGETS = [(1, 2), (0, 3), (1, 0)]
SCALE = 0.7
NAME_MAP = [(["0"], GammaRule, {"gamma": 0.3}), (["3", "6"], EpsilonRule, {"epsilon": 0.05})]
RULES = {
    "none": None,
    "name_map": NAME_MAP,
    "callable": lambda model: NAME_MAP,
    "epsilon": presets.epsilon(0.01),
    "epsilon_plus": presets.epsilon_plus(),
    "box": presets.epsilon_gamma_box(-6.0, 6.0),
}
PAIR_RULES = {
    "none": None,
    "name_map": [(["left"], GammaRule, {}), (["right", "head"], EpsilonRule, {"epsilon": 0.1})],
    "preset": presets.epsilon(0.01),
}


class Noise:
    """A perturbation for ``infidelity`` that keeps what it drew: noise and what it was made of."""

    def __init__(self, size: float = 0.1) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(0)
        self.drawn: list[tuple[Tensor, ...]] = []

    def __call__(self, inputs: Any) -> tuple[Any, Any]:
        several = inputs if isinstance(inputs, tuple) else (inputs,)
        noise = tuple(
            self.size * torch.randn(x.shape, dtype=x.dtype, generator=self.generator)
            for x in several
        )
        self.drawn.append(noise)
        moved = tuple(x - n for x, n in zip(several, noise, strict=True))
        return (noise, moved) if isinstance(inputs, tuple) else (noise[0], moved[0])


def infidelity_by_hand(
    score: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    relevances: tuple[Tensor, ...],
    drawn: list[tuple[Tensor, ...]],
    normalize: bool = False,
) -> Tensor:
    r"""E over I of (I . phi - (f(x) - f(x - I)))^2, one sample and one draw at a time.

    ``score(i, *inputs)`` is the score of sample ``i``'s target, for inputs of a single sample.
    """
    found = []
    for i in range(N):
        products, falls = [], []
        for noise in drawn:
            per_sample = len(noise[0]) // N
            for k in range(i * per_sample, (i + 1) * per_sample):
                products.append(
                    sum((n[k] * r[i]).sum() for n, r in zip(noise, relevances, strict=True))
                )
                x = [one[i : i + 1] for one in inputs]
                moved = [one - n[k] for one, n in zip(x, noise, strict=True)]
                falls.append(score(i, *x) - score(i, *moved))
        product, fall = torch.stack(products), torch.stack(falls)
        beta = (product * fall).mean() / (product**2).mean() if normalize else 1.0
        found.append(((beta * product - fall) ** 2).mean())
    return torch.stack(found).detach()


def score_of_images(model: nn.Module) -> Callable[..., Tensor]:
    return lambda i, x: model(x)[0, TARGETS[i]]


# infidelity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_infidelity_is_its_formula(rules, normalize) -> None:
    model = build(cnn)
    relevance = LRP(model, rules).attribute(IMAGES, target=TARGETS)
    noise = Noise()
    given: dict[str, Any] = {"target": TARGETS, "n_perturb_samples": SAMPLES}
    found = infidelity(model, noise, IMAGES, relevance, normalize=normalize, **given)
    expected = infidelity_by_hand(
        score_of_images(model), (IMAGES,), (relevance,), noise.drawn, normalize
    )
    assert relative_error(found, expected) <= 1e-10
    other = infidelity_by_hand(
        score_of_images(model), (IMAGES,), (relevance.roll(1, 0),), noise.drawn, normalize
    )
    assert relative_error(found, other) > 1e-3  # of another sample's relevance


@pytest.mark.parametrize("rules", PAIR_RULES.values(), ids=PAIR_RULES)
@pytest.mark.parametrize("batch", [None, N, 2 * N])
def test_infidelity_of_several_inputs(rules, batch) -> None:
    model = build(TwoInputs)
    explainer = LRP(model, rules)
    given: dict[str, Any] = {"target": PAIR_TARGETS, "additional_forward_args": SCALE}
    relevances = explainer.attribute(PAIR, **given)
    noise = Noise()
    found = infidelity(
        model,
        noise,
        PAIR,
        relevances,
        n_perturb_samples=SAMPLES,
        max_examples_per_batch=batch,
        **given,
    )
    assert len(noise.drawn) == (1 if batch is None else SAMPLES * N // batch)

    def score(i: int, a: Tensor, b: Tensor) -> Tensor:
        return model(a, b, SCALE)[(0, *PAIR_TARGETS[i])]

    assert relative_error(found, infidelity_by_hand(score, PAIR, relevances, noise.drawn)) <= 1e-10
    without = (relevances[0], torch.zeros_like(relevances[1]))
    other = infidelity_by_hand(score, PAIR, without, noise.drawn)
    assert relative_error(found, other) > 1e-5  # without the second input's relevance


@infidelity_perturb_func_decorator(multiply_by_inputs=True)
def remove_some(inputs: Tensor) -> Tensor:
    """Set a tenth of the features to 0; Captum makes the perturbation, 1 where it is removed."""
    generator = torch.Generator().manual_seed(1)
    return inputs * (torch.rand(inputs.shape, generator=generator) < 0.9)


def test_infidelity_of_lrp_0_on_a_linear_model_is_0() -> None:
    """R = w x says exactly by how much the score falls when features are set to 0."""
    model = build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    relevance = LRP(model, presets.zero()).attribute(IMAGES, target=TARGETS)
    given: dict[str, Any] = {"target": TARGETS, "n_perturb_samples": SAMPLES}
    assert (infidelity(model, remove_some, IMAGES, relevance, **given) < 1e-25).all()
    for wrong in (
        -relevance,
        2 * relevance,
        relevance.flip(3),
        LRP(model, presets.zero()).attribute(IMAGES, target=1),
        LRP(model, presets.epsilon_plus_flat()).attribute(IMAGES, target=TARGETS),
    ):
        assert (infidelity(model, remove_some, IMAGES, wrong, **given) > 1e-3).all()


def test_a_wrong_attribution_has_a_worse_infidelity() -> None:
    model = build(small)
    given: dict[str, Any] = {"target": TARGETS, "n_perturb_samples": 200, "normalize": True}
    relevance = LRP(model, presets.epsilon()).attribute(IMAGES, target=TARGETS)
    right = infidelity(model, remove_some, IMAGES, relevance, **given)
    noise = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(0))
    for wrong in (relevance.roll(1, 0), relevance.roll((3, 3), (2, 3)), noise.double()):
        assert (infidelity(model, remove_some, IMAGES, wrong, **given) > 1.5 * right).all()


# sensitivity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_sensitivity_is_its_formula(rules) -> None:
    model = build(cnn)
    noise = Noise(0.02)
    found = sensitivity_max(
        LRP(model, rules).attribute,
        IMAGES,
        lambda x: noise(x)[1],
        n_perturb_samples=SAMPLES,
        target=TARGETS,
    )
    ((drawn,),) = noise.drawn
    expected = []
    for i, target in enumerate(TARGETS):
        explainer = LRP(model, rules, optimize=False)
        x = IMAGES[i : i + 1]
        relevance = explainer.attribute(x, target=target)
        moved = [
            explainer.attribute(x - n, target=target)
            for n in drawn[i * SAMPLES : (i + 1) * SAMPLES]
        ]
        expected.append(max((m - relevance).norm() / relevance.norm() for m in moved))
    assert relative_error(found, torch.stack(expected)) <= 1e-8


def test_sensitivity_of_several_inputs() -> None:
    model = build(TwoInputs)
    explainer = LRP(model, PAIR_RULES["name_map"])
    given: dict[str, Any] = {"target": PAIR_TARGETS, "additional_forward_args": SCALE}
    noise = Noise(0.02)
    found = sensitivity_max(
        explainer.attribute, PAIR, lambda pair: noise(pair)[1], n_perturb_samples=1, **given
    )
    (drawn,) = noise.drawn
    relevances = torch.cat(explainer.attribute(PAIR, **given), dim=1)
    pair = tuple(x - n for x, n in zip(PAIR, drawn, strict=True))
    moved = torch.cat(explainer.attribute(pair, **given), dim=1)
    expected = (moved - relevances).norm(dim=1) / relevances.norm(dim=1)
    assert relative_error(found, expected) <= 1e-10


IN_PROPORTION = [presets.zero(), presets.epsilon(1e-9), [(["0", "3", "6"], GammaRule, {})]]


@pytest.mark.parametrize("rules", IN_PROPORTION, ids=["zero", "epsilon", "gamma"])
def test_sensitivity_to_a_tenth_more_of_everything_is_a_tenth(rules) -> None:
    """Without biases the score, and with it the relevance, grows in proportion to the input."""
    model = without_bias(build(cnn))

    def sensitivity(attribute: Callable[..., Any]) -> Tensor:
        return sensitivity_max(
            attribute, IMAGES, lambda x: 1.1 * x, n_perturb_samples=1, target=TARGETS
        )

    def of_a_layer(inputs: Any, **given: Any) -> tuple[Tensor]:
        """In a tuple, which ``sensitivity_max`` needs: of a tensor it takes apart the samples."""
        return (LayerLRP(model, model[3], rules).attribute(inputs, **given),)

    tenth = torch.full((N,), 0.1, dtype=torch.float64)
    assert relative_error(sensitivity(LRP(model, rules).attribute), tenth) <= 1e-4
    assert relative_error(sensitivity(of_a_layer), tenth) <= 1e-4
    moved = [(["0", "3", "6"], EpsilonRule, {"stabilizer": stabilizers.Additive(0.1)})]
    assert relative_error(sensitivity(LRP(model, moved).attribute), tenth) > 1e-2


# NoiseTunnel -------------------------------------------------------------------------------------

SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "smoothgrad": lambda r: r.mean(0),
    "smoothgrad_sq": lambda r: (r**2).mean(0),
    "vargrad": lambda r: r.var(0, correction=0),
}


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_noise_tunnel_is_what_it_says_of_single_runs(rules, kind, batch) -> None:
    model = build(cnn)
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    smooth = NoiseTunnel(LRP(model, rules)).attribute(
        IMAGES,
        nt_type=kind,
        nt_samples=SAMPLES,
        nt_samples_batch_size=batch,
        stdevs=0.2,
        target=TARGETS,
    )
    handle.remove()
    assert sum(map(len, seen)) == N * SAMPLES
    for i, target in enumerate(TARGETS):
        noisy = torch.cat([x.unflatten(0, (N, -1))[i] for x in seen])
        single = LRP(model, rules, optimize=False)
        several = torch.cat([single.attribute(x[None], target=target) for x in noisy])
        assert relative_error(smooth[i], SMOOTH[kind](several)) <= 1e-7
        assert relative_error(smooth[i], SMOOTH[kind](several[:-1])) > 1e-3  # one run too few


@pytest.mark.parametrize("kind", SMOOTH)
def test_noise_tunnel_of_several_inputs_with_deltas(kind) -> None:
    model = build(TwoInputs)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.register_forward_pre_hook(
        lambda module, given: seen.append((given[0].detach(), given[1].detach()))
    )
    given: dict[str, Any] = {"additional_forward_args": SCALE, "return_convergence_delta": True}
    explainer = LRP(model, PAIR_RULES["name_map"])
    smooth, deltas = NoiseTunnel(explainer).attribute(
        PAIR, nt_type=kind, nt_samples=SAMPLES, stdevs=(0.2, 0.1), target=PAIR_TARGETS, **given
    )
    handle.remove()
    ((a, b),) = seen
    targets = [target for target in PAIR_TARGETS for _ in range(SAMPLES)]
    singles, single_deltas = explainer.attribute((a, b), target=targets, **given)
    assert torch.allclose(deltas, single_deltas, rtol=1e-9)
    for one, several in zip(smooth, singles, strict=True):
        expected = torch.stack([SMOOTH[kind](r) for r in several.split(SAMPLES)])
        assert relative_error(one, expected) <= 1e-10
