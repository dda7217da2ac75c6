"""Every mistake is an error or a warning that names the place and the remedy."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerFilter, LayerLRP, attach_rules, errors, plan, presets
from captum_lrp_stab.errors import InputError, LayerFilterError, ModelError, RuleError, RuleMapError
from captum_lrp_stab.rules.input_layer import ZBoxRule
from captum_lrp_stab.rules.standard import AlphaBetaRule, EpsilonRule, GammaRule, PassRule
from captum_lrp_stab.rules.standard import ZeroRule as Zero
from captum_lrp_stab.stabilizers import Additive

X = torch.tensor([[1.0, -2.0, 0.5], [0.5, 1.0, 1.0]])


def net() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), body, nn.Flatten(), nn.Linear(4, 2)).eval()


# Name maps

BAD_MAPS: dict[str, tuple[Any, str]] = {
    "no-such-layer": ([(["99"], Zero, {})], r"entry 0 \(ZeroRule\) names '99', .*are 0 ... 4"),
    "misspelt": ([(["2.00"], Zero, {})], r"not a leaf module of Seq.*; did you mean '2.0'\?"),
    "container": ([(["2"], Zero, {})], r"'2', which contains other layers; .* '2.0' to '2.1'"),
    "twice": (
        [(["0", "4"], Zero, {}), (["4"], GammaRule, {})],
        r"entry 1 \(GammaRule\) names '4', which entry 0 \(ZeroRule\) names already; .* one rule",
    ),
    "gamma-on-relu": ([(["1"], GammaRule, {})], "'1' is a ReLU, .* give it PassRule or no rule"),
    "gamma-on-flatten": ([(["3"], GammaRule, {})], "'3' is a Flatten, .*give it no rule"),
    "pass-on-flatten": ([(["3"], PassRule, {})], "'3' is a Flatten, which changes the shape"),
    "unknown-keyword": ([(["0"], GammaRule, {"gama": 1})], r"entry 0 \(GammaRule\).*'gama'"),
    "missing-keyword": ([(["0"], ZBoxRule, {"low": 0})], r"entry 0 \(ZBoxRule\).*'high'"),
    "bad-value": ([(["0"], GammaRule, {"gamma": -1})], r"entry 0 \(GammaRule\).*gamma is -1; give"),
    "instance": ([(["0"], GammaRule(), {})], r"entry 0: the rule is GammaRule\(.*the class itself"),
    "text-for-list": ([("0", Zero, {})], "entry 0: layer names are '0'; give a list of str"),
    "None-for-list": ([(None, Zero, {})], "entry 0: layer names are None; give a list of str"),
    "no-names": ([([], Zero, {})], r"entry 0 \(ZeroRule\) names no layer: .*widen the filter"),
    "no-parameters": ([(["0"], Zero)], r"entry 0 is .*give \(layer names, rule class, parameters"),
    "None-for-dict": ([(["0"], Zero, None)], "entry 0 .*parameters are None; give a dict, {}"),
    "text": ("epsilon", r"name_map is a str; give a list of \(layer names, rule class, param"),
}
USES = {"LRP": LRP, "attach_rules": attach_rules, "plan": lambda model, m: plan(model, X, m)}


@pytest.mark.parametrize("use", USES.values(), ids=[*USES])
@pytest.mark.parametrize(("name_map", "message"), BAD_MAPS.values(), ids=[*BAD_MAPS])
def test_name_map(name_map, message, use) -> None:
    with pytest.raises(RuleMapError, match=message):
        use(net(), name_map)


def test_filter_that_selects_nothing() -> None:
    layers = LayerFilter(net())
    message = "of its leaf indices 0 to 5 it meets 2, of types Flatten, GELU; the target types are"
    with pytest.raises(LayerFilterError, match=message):
        layers(lambda n: 3 <= n <= 4)
    with pytest.raises(LayerFilterError, match="it meets 0; the target types are Linear"):
        layers(lambda n: n > 99, target_types=(nn.Linear,))


# Rules

NAN = math.nan
BAD_PARAMETERS: dict[str, tuple[Callable[[], Any], str]] = {
    "gamma-negative": (lambda: GammaRule(-0.1), "GammaRule: gamma is -0.1; give a finite number"),
    "gamma-nan": (lambda: GammaRule(NAN), "GammaRule: gamma is nan; give a finite number >= 0"),
    "gamma-text": (lambda: GammaRule("0.1"), "GammaRule: gamma is '0.1'; give a number >= 0"),
    "gamma-bias": (lambda: GammaRule(bias="none"), "bias is 'none'; give 'scaled' or 'captum'"),
    "epsilon-negative": (lambda: EpsilonRule(-1), "EpsilonRule: epsilon is -1; give a finite"),
    "epsilon-nan": (lambda: EpsilonRule(NAN), "EpsilonRule: epsilon is nan; give a finite"),
    "alpha-beta": (lambda: AlphaBetaRule(2, 0.5), r"alpha - beta is 1.5; .*alpha=1.5, beta=0.5"),
    "alpha-negative": (lambda: AlphaBetaRule(-1, -2), "AlphaBetaRule: alpha is -1; give a finite"),
    "alpha-nan": (lambda: AlphaBetaRule(NAN, 1), "AlphaBetaRule: alpha is nan; give a finite"),
    "box-empty": (lambda: ZBoxRule(1, 1), r"low \(from 1\) must be below high \(up to 1\)"),
    "box-upside-down": (lambda: ZBoxRule(torch.ones(3), 0.5), r"low \(from 1\) must be below"),
    "box-nan": (lambda: ZBoxRule(NAN, 1), "low >= high or NaN leaves no box"),
    "box-text": (lambda: ZBoxRule("0", 1), "ZBoxRule: low is '0'; give a number or a tensor"),
    "box-shapes": (
        lambda: ZBoxRule(torch.zeros(2), torch.ones(3)),
        r"shapes \(2,\) and \(3,\), which do not broadcast; give both the shape \(1, channels, 1",
    ),
    "stabilizer": (lambda: GammaRule(stabilizer="0.1"), "stabilizer is '0.1'; give a number eps"),
    "stabilizer-negative": (lambda: GammaRule(stabilizer=-1), "epsilon is -1.0; give a finite"),
}


@pytest.mark.parametrize(("make", "message"), BAD_PARAMETERS.values(), ids=[*BAD_PARAMETERS])
def test_rule_parameter(make, message) -> None:
    with pytest.raises((RuleError, errors.StabilizerError), match=message):
        make()


TWO = {"low": torch.zeros(2), "high": torch.ones(2)}
KEEP = "must keep shape, dtype and device"
BAD_IN_PASS: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "box-shape": ("0", ZBoxRule, TWO, r"'0': low has shape \(2,\), .*give shape \(1, 3\)"),
    "pass-shape": ("0", PassRule, {}, r"PassRule on layer '0': it turns \(2, 3\) into \(2, 4\)"),
    "shape": ("4", Zero, {"stabilizer": lambda z: z[:1]}, rf"returned \(1, 2\) torch.*{KEEP}"),
    "dtype": ("4", GammaRule, {"stabilizer": Tensor.double}, f"returned .*float64 .*{KEEP}"),
    "type": ("4", EpsilonRule, {"stabilizer": len}, f"returned <class 'int'> .*{KEEP}"),
}


@pytest.mark.parametrize(
    ("layer", "rule", "given", "message"), BAD_IN_PASS.values(), ids=[*BAD_IN_PASS]
)
def test_rule_in_the_pass(layer, rule, given, message) -> None:
    error = errors.StabilizerError if "stabilizer" in given else RuleError
    with pytest.raises(error, match=message):
        LRP(net(), [([layer], rule, given)]).attribute(X, target=0)


def test_input_outside_the_box() -> None:
    lrp = LRP(net(), [(["0"], ZBoxRule, {"low": -1, "high": 1})])
    with pytest.warns(
        errors.InputWarning, match=r"'0': .*from -2 to 1, outside the box \[-1, 1\].*after n"
    ):
        lrp.attribute(X, target=0)


# Models


class Wrapped(nn.Module):
    """A model around a function of a linear layer and the input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer, x)


def poisoned() -> nn.Module:
    model = net()
    model[2][0].weight.data[1, 1] = NAN
    return model


FIXED_NORM = nn.BatchNorm1d(3, track_running_stats=False).eval()
BAD_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "train-dropout": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)),
        r"'1' \(Dropout\) in train mode .*; call model.eval\(\)",
    ),
    "train-batch-norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
        r"'0' \(BatchNorm1d\) in train mode .*; call model.eval\(\)",
    ),
    "train-rrelu": (lambda: nn.Sequential(nn.Linear(3, 2), nn.RReLU()), "'1' .RReLU. in train"),
    "batch-statistics": (
        lambda: nn.Sequential(FIXED_NORM, nn.Linear(3, 2)),
        "batch norm '0' normalises by the statistics of the batch, .*running statistics",
    ),
    "functional-dropout": (
        lambda: Wrapped(lambda layer, x: F.dropout(layer(x), training=True)),
        r"dropout 'dropout_0' is active, .*; call model.eval\(\)",
    ),
    "native-dropout": (
        lambda: Wrapped(lambda layer, x: torch.dropout(layer(x), 0.1, True)),
        "dropout 'dropout_0' is active",
    ),
    "compiled": (lambda: torch.compile(net()), "was made by torch.compile, .*_orig_mod"),
    "tuple": (lambda: Wrapped(lambda layer, x: (layer(x), x)), "returns a tuple; .*wrap the model"),
    "detached-input": (lambda: Wrapped(lambda layer, x: layer(x.detach())), "Wrapped does not dep"),
    "detached-output": (lambda: Wrapped(lambda layer, x: layer(x).detach()), r"remove .*detach\("),
    "no-grad": (lambda: Wrapped(torch.no_grad()(lambda layer, x: layer(x))), "remove torch.no_gr"),
    "argmax": (lambda: Wrapped(lambda layer, x: layer(x).sort(1).indices * 1.0), "or argmax from"),
    "nan-parameter": (poisoned, "parameter or buffer '2.0.weight' has 1 non-finite .*; repair"),
    "function": (lambda: F.relu, "explains a torch.nn.Module; the model is a function"),
}


@pytest.mark.parametrize(("make", "message"), BAD_MODELS.values(), ids=[*BAD_MODELS])
def test_model(make, message) -> None:
    with pytest.raises(ModelError, match=message):
        LRP(make()).attribute(X, target=0)


CONVERTED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "scripted": (torch.jit.script, "RecursiveScriptModule is a TorchScript module, .*scripted or"),
    "traced": (lambda m: torch.jit.trace(m, X), "TopLevelTracedModule is a TorchScript module, "),
    "scripted-part": (
        lambda m: nn.Sequential(torch.jit.script(m)),
        r"'0' \(RecursiveScriptModule\) is a TorchScript module, .*explain the model it was",
    ),
    "quantized": (
        lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}),
        r"'0' \(Linear\) is quantized, .*; explain the floating-point model",
    ),
}
RULES = {"default": None, "preset": presets.epsilon(), "name_map": [(["0"], Zero, {})]}


@pytest.mark.parametrize("given", RULES.values(), ids=[*RULES])
@pytest.mark.parametrize(("convert", "message"), CONVERTED.values(), ids=[*CONVERTED])
def test_converted_model(convert, message, given) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates all of these
        model = convert(net())
    for use in (lambda: LRP(model, given).attribute(X, target=0), lambda: plan(model, X, given)):
        with pytest.raises(ModelError, match=message):
            use()


def test_layers_of_layer_lrp() -> None:
    model, foreign = net(), nn.Linear(3, 4)
    for layer in (foreign, [model[0], foreign]):
        with pytest.raises(ModelError, match=r"layer Linear\(.*\) is no module of Sequential"):
            LayerLRP(model, layer)
    model[0].unused = foreign
    with pytest.raises(ModelError, match=r"layer '0\.unused' takes no part .* does not run it"):
        LayerLRP(model, foreign).attribute(X, target=0)


# Inputs and targets

BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "nan": (torch.where(X == -2, NAN, X), r"input 0 has 1 non-finite .*\(nan\) at \(0, 1\); clean"),
    "inf": (X / 0.0, r"input 0 has 6 non-finite values, the first \(inf\) at \(0, 0\); clean"),
    "integers": (X.long(), "input 0 has dtype torch.int64; .*the embedding"),
    "second": ((X, X.bool()), "input 1 has dtype torch.bool"),
    "no-tensor": ((X, 3), "input 1 is a int; give a tensor"),
    "list": ([X], "inputs is a list; give a tensor or a tuple of tensors"),
}
BAD_TARGETS: dict[str, tuple[Any, str]] = {
    "missing": (None, "target None leaves 2 values per sample .*give a target that selects one"),
    "out-of-range": (7, r"target 7 does not fit the model's output of shape \(2, 2\)"),
    "tensor-out-of-range": (torch.tensor([0, 7]), r"target tensor\(\[0, 7\]\) does not fit"),
    "list-too-long": ([0, 1, 0], r"target \[0, 1, 0\] does not fit"),
    "tuple-too-long": ((0, 1), r"target \(0, 1\) does not fit"),
    "text": ("cat", "target 'cat' does not fit"),
}
CASES = {f"input-{k}": (inputs, 0, message) for k, (inputs, message) in BAD_INPUTS.items()}
CASES |= {f"target-{k}": (X, target, message) for k, (target, message) in BAD_TARGETS.items()}


@pytest.mark.parametrize("explainer", [LRP, lambda m: LayerLRP(m, m[2])], ids=["LRP", "LayerLRP"])
@pytest.mark.parametrize(("inputs", "target", "message"), CASES.values(), ids=[*CASES])
def test_inputs_and_targets(explainer, inputs, target, message) -> None:
    with pytest.raises(InputError, match=message):
        explainer(net()).attribute(inputs, target=target)


def test_batch_of_no_samples_is_no_mistake() -> None:
    assert LRP(net()).attribute(X[:0], target=1).shape == (0, 3)


# NaN and Inf that arise on the way


def poles(*layers: str, weight: float = 1.0, nonfinite: Any = "warn") -> LRP:
    """Each z is x, and x is -2 once: there z + 2 is 0, under a coefficient of 1 for target 1."""
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))
    for layer in model:
        layer.weight.data = weight * torch.eye(3)
    return LRP(model, [(list(layers), Zero, {"stabilizer": Additive(2.0)})], nonfinite=nonfinite)


@pytest.mark.parametrize("layers", ["0", "1", "02", "012"])
def test_pole_is_reported_with_the_first_such_layer(layers) -> None:
    """The first that relevance reaches, which is the last of the network."""
    place = rf"first arose in layer '{layers[-1]}' under ZeroRule\(.*Additive"
    message = rf"{place}.*at output \(0, 1\) .*s\(z\) = 0, .*; take one that moves"
    with pytest.warns(errors.NonFiniteRelevanceWarning, match=message):
        warned = poles(*layers).attribute(X, target=1)
    with pytest.raises(errors.NonFiniteRelevanceError, match=message):
        poles(*layers, nonfinite="raise").attribute(X, target=1)
    ignored = poles(*layers, nonfinite="ignore").attribute(X, target=1)
    assert not ignored[0].isfinite().any() and ignored[1].isfinite().all()
    torch.testing.assert_close(warned, ignored, equal_nan=True)


def test_pole_under_a_coefficient_of_zero_is_none() -> None:
    relevance = poles("0", "1", "2", nonfinite="raise").attribute(X, target=0)
    expected = torch.zeros_like(X)
    expected[:, 0] = X[:, 0] * (X[:, 0] / (X[:, 0] + 2)) ** 3
    torch.testing.assert_close(relevance, expected)


def test_overflow_in_the_forward_pass_is_reported() -> None:
    between = LRP(Wrapped(lambda layer, x: layer(torch.exp(1000 * x))), fallbacks="ignore")
    places = {"in layer '1' under": poles("2", weight=1e25), r"in operation 'exp_0':": between}
    for place, lrp in places.items():
        with pytest.warns(errors.NonFiniteRelevanceWarning, match=f"arose {place}"):
            lrp.attribute(X, target=0)


def test_nonfinite_takes_three_values() -> None:
    with pytest.raises(ValueError, match="nonfinite is 'no'; give 'warn', 'raise' or 'ignore'"):
        LRP(net(), nonfinite="no")


def test_a_lazy_module_must_have_run() -> None:
    model = nn.Sequential(nn.LazyConv2d(2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.rand(1, 3, 5, 5)
    for explain in (LRP(model).attribute, lambda x, target: plan(model, x)):
        with pytest.raises(ModelError, match=r"'0' \(LazyConv2d\).* call the model once"):
            explain(x, target=0)
    model(x)
    assert LRP(model).attribute(x, target=0).shape == x.shape
