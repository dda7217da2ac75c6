"""Which rule an operation of a pass gets, and the name by which it gets it.

A rule is set on a layer: a module of one operation, or a functional call by its name. Set on a
module of the user's own it serves the layers that the module runs; if there are none, its sums;
and if there are none either, its concatenations. What a module runs is known only when it has
run, so that a pass in which a rule served sums before the module's first layer is run again.
"""

import warnings
from collections.abc import Container, Sequence

from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.dispatch.naming import Naming
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.dispatch.weights import Owners
from captum_lrp_stab.errors import RuleError, RuleMapWarning
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.rules import affine_builders, contractions, sums
from captum_lrp_stab.rules.affine import Affine, Dense
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.contractions import IsWeights
from captum_lrp_stab.rules.rule_set import Layer, Layers, Positions, RuleSet
from captum_lrp_stab.rules.standard import ZeroRule
from captum_lrp_stab.rules.sums import Serving

Rules = tuple[Rule, ...]
"""One for each variant of a pass; empty where none has a rule."""


class PlainRule(ZeroRule):
    """LRP-0 by the layer's own gradient, as where there is no rule; for one variant of several."""

    def coefficient(self, op: Affine, x: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """Return the vector-Jacobian product of the layer itself."""
        return op.vjp(c, x, op.weight)


class Assignment:
    """The rules of one pass.

    Args:
        naming: Where the pass is.
        rule_sets: One for each variant.
    """

    def __init__(self, naming: Naming, rule_sets: Sequence[RuleSet]) -> None:
        self.named = {name: rule for s in reversed(rule_sets) for name, rule in s.named.items()}
        self.serving: dict[str, Serving] = {}  # what each module with a rule is known to run
        self._is_late = False
        self.served: set[str] = set()  # layers whose rule met an operation it can serve
        self._naming, self._rule_sets = naming, rule_sets
        self._owners = Owners(naming.modules)
        self._uses: list[Layer] = []
        self._positions = Positions()
        # as far as is known before the pass: not which layers it runs, nor which are functional
        self._depth = sum(isinstance(module, types.Linear) for module in naming.modules.values())

    @property
    def layers(self) -> Layers:
        """The layers that the pass has run."""
        return Layers(self._uses, self._positions.count)

    @property
    def is_late(self) -> bool:
        """Whether the pass has shown something that earlier operations should have known."""
        by_depth = any(one.composite and one.composite.is_by_depth for one in self._rule_sets)
        return self._is_late or (by_depth and self._depth != self._positions.count)

    def know(self, other: "Assignment") -> None:
        """Take over what another pass of the same operations has shown."""
        self.serving, self._depth, self._positions = other.serving, other._depth, other._positions

    def operation(self, call: TorchCall, is_weights: IsWeights) -> tuple[Operation, Serving]:
        """Return the record of an operation, and what it is to a rule.

        That is ``Serving.LAYERS`` for a layer; else ``NOTHING``, unless a rule is set on it.
        """
        naming, current = self._naming, self._naming.current
        is_layer = call.func in affine_builders.BUILDERS
        if call.kind.contracts:
            is_layer = contractions.is_layer(call, is_weights)
        as_what = Serving.LAYERS if is_layer else Serving.NOTHING
        has_rule = current in self.named and naming.is_leaf
        if has_rule and not is_layer:
            as_what = sums.serving(call)
        if naming.is_own(call, is_layer) or (has_rule and self._is_served(current, as_what)):
            return Operation(current, type(naming.module).__name__), as_what
        owner = self._owner(call, is_layer)
        if owner and isinstance(naming.module, nn.MultiheadAttention):  # its output projection
            return Operation(owner, type(naming.modules[owner]).__name__), as_what
        operation = Operation(*naming.of(call), owner=owner)
        if is_layer or operation.name not in self.named:
            return operation, as_what if is_layer else Serving.NOTHING
        return operation, sums.serving(call)

    def _owner(self, call: TorchCall, is_layer: bool) -> str:
        """Return the name of a layer whose weights an operation uses without calling it."""
        if is_layer and call.kind.contracts:
            op, _ = contractions.of_call(call)
            owner = self._owners.of((op.weight,), "linear") if isinstance(op, Dense) else None
        elif call.kind.of_layers:
            owner = self._owners.of(call.tensors, call.name)
        else:
            return ""
        return "" if owner is None or owner in self._naming.entered else owner

    def _is_served(self, name: str, as_what: Serving) -> bool:
        """Return whether the rule of a module serves what it runs now."""
        known = self.serving.get(name, Serving.NOTHING)
        if as_what > known:
            self._is_late |= known > Serving.NOTHING
            self.serving[name] = as_what
        return bool(as_what) and as_what >= known

    def constant(self, call: TorchCall) -> None:
        """Note that a layer runs on constants, where its rule has nothing to do."""
        can_be_served = call.kind.contracts or call.name in sums.NAMES
        if call.func in affine_builders.BUILDERS or can_be_served:
            self.served.add(self._naming.current)

    def of_layer(self, operation: Operation, call: TorchCall, is_first: bool) -> Rules:
        """Return the rules of a layer; none if no variant has one for it.

        Args:
            operation: Its record.
            call: What it calls.
            is_first: Whether it reads an input of the model (``first_layers``).
        """
        name, owner = operation.name, operation.owner
        self.served |= {name, owner} if owner else {name}
        module = self._naming.modules.get(name)
        name = owner if owner in self.named and name not in self.named else name
        called = nn.Linear if call.kind.contracts else types.of_function(call.name)
        operation.layer = (called if module is None else type(module)) or nn.Module
        layer = Layer(name, operation.layer, is_first, self._positions.of(name, operation.layer))
        self._uses.append(layer)
        return _each([one.rule_of(layer, self._depth) for one in self._rule_sets])

    def of_sum(self, name: str) -> Rules:
        """Return the rules that are set on a sum, or on the module that runs it."""
        self.served.add(name)
        return _each([one.named.get(name) for one in self._rule_sets])

    def restart(self) -> None:
        """Forget a pass, except what the rules of modules serve, and how many layers it has run."""
        self._is_late, self._depth = False, self._positions.count
        self._uses, self._positions = [], Positions()
        self.served.clear()

    def refuse_unserved(self, ran: Sequence[Operation], used: Container[int]) -> None:
        """Raise RuleError if a rule met no operation it serves.

        Args:
            ran: The operations of the pass.
            used: Parameters of which it has made others, by their identity.

        Warns:
            RuleMapWarning: The pass did not run the layer, but used weights computed from its own.
        """
        for name in sorted(self.named.keys() - self.served):
            rule, module = self.named[name], self._naming.modules.get(name)
            kind = next((o.kind for o in ran if o.name == name), None)
            if module is None and kind is not None:
                raise RuleError(
                    f"{type(rule).__name__} on '{name}': this {kind} is neither a layer with "
                    "weights nor a sum, and takes no rule; leave it out of the name_map"
                )
            if module is None:
                layers = ", ".join(o.name for o in ran if o.rule is not None)
                raise RuleError(
                    f"{type(rule).__name__} on '{name}': the pass ran no layer or sum of this "
                    f"name; the layers it ran are {layers or 'none'} (captum_lrp_stab.plan lists "
                    "them all)"
                )
            passing = isinstance(module, types.Activation + types.Dropout)  # served as they are
            if name not in self._naming.entered or passing:
                if self._is_used_in_part(name, used):
                    message = (
                        f"{type(rule).__name__} on layer '{name}' has no effect: the model does "
                        "not run the layer, but makes other weights of its own; name what reads "
                        "those, as captum_lrp_stab.plan lists it, or give LRP a preset"
                    )
                    warnings.warn(message, RuleMapWarning, stacklevel=2)
                continue
            raise RuleError(
                f"{type(rule).__name__} on layer '{name}' ({type(module).__name__}): the layer ran "
                "no linear operation, average pool, batch norm or sum of its own that the rule "
                f"could serve; {self._rule_sets[0].remedy}"
            )

    def _is_used_in_part(self, name: str, used: Container[int]) -> bool:
        """Return whether a layer that the pass has not run has parameters that it used."""
        modules, entered = self._naming.modules, self._naming.entered
        own = {id(t) for t in modules[name].parameters(recurse=False) if id(t) in used}
        elsewhere = (modules[other].parameters(recurse=False) for other in entered if own)
        return bool(own - {id(t) for parameters in elsewhere for t in parameters})


def _each(rules: Sequence[Rule | None]) -> Rules:
    if all(rule is None for rule in rules):
        return ()
    return tuple(PlainRule() if rule is None else rule for rule in rules)
