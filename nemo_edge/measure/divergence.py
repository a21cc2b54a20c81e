"""Where in a graph it goes wrong: the first tensor that is not finite, or that is off by more than a tolerance.

Found by bisection: each probe marks one intermediate tensor as an output and runs the graph once, so that no more than one
of them is kept. What is found is a bad tensor that is made from good ones; where an error shrinks again, there may be an earlier one.
"""

from __future__ import annotations

__all__ = ["Divergence", "EagerProbe", "GraphProbe", "Probe", "first_divergence", "first_not_finite"]

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.backends.torch import open_runner
from nemo_edge.graph.onnxfile import Graph, Place, module_path, open_graph
from nemo_edge.measure.similarity import relative_error
from nemo_edge.model.component import Component


class Divergence(BaseModel):
    """The first bad tensor of a graph."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    component: str
    tensor: str
    operator: str
    module: str
    """Path of the PyTorch module that the tensor comes from."""
    finite: bool
    error: float | None = None
    """Largest error relative to the largest value of the reference's tensor; None where only finiteness was asked for."""
    place: int
    """Its place among the tensors that were candidates, from 0."""
    candidates: int
    probes: int
    """Runs it took to find it."""


class Probe(Protocol):
    """Looks at the output of one module of a component, for one feed."""

    def modules(self) -> Sequence[str]:
        """The paths it can look at, in the order in which the modules end."""
        ...

    def __call__(self, module: str) -> np.ndarray:
        """Run and return the module's output as float32."""
        ...


class EagerProbe:
    """Looks into a component's own PyTorch module."""

    def __init__(self, component: Component, feed: Mapping[str, np.ndarray]) -> None:
        self._feed, self._runner = feed, open_runner(component)
        self._modules = {module_path(name): module for name, module in component.module.named_modules() if module_path(name)}

    def modules(self) -> Sequence[str]:
        """Every module that returns one tensor, in the order in which they end."""
        ended: list[str] = []
        self._run(self._modules, lambda path, _: ended.append(path))
        return list(dict.fromkeys(ended))

    def __call__(self, module: str) -> np.ndarray:
        """Run and return the module's output; of one that runs several times, the last."""
        seen: dict[str, Tensor] = {}
        self._run([module], seen.__setitem__)
        return seen[module].float().cpu().numpy()

    def _run(self, paths: Any, see: Callable[[str, Tensor], Any]) -> None:
        def hook(path: str) -> Any:
            def hooked(_module: object, _inputs: object, output: Any) -> None:
                first = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
                if isinstance(first, Tensor):
                    see(path, first)

            return hooked

        handles = [self._modules[path].register_forward_hook(hook(path)) for path in paths]
        try:
            self._runner(self._feed)
        finally:
            for handle in handles:
                handle.remove()


class GraphProbe:
    """Looks into an ONNX file, by modules or by the names of its tensors."""

    def __init__(
        self,
        model: Path,
        feed: Mapping[str, np.ndarray],
        provider: str = "cpu",
        threads: int | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.graph: Graph = open_graph(model)
        self._feed, self._provider, self._threads, self._weights = feed, provider, threads, weights
        self._places = self.graph.modules()

    def modules(self) -> Sequence[str]:
        """The modules that made a tensor, in the order in which they end."""
        return list(self._places)

    def __call__(self, module: str) -> np.ndarray:
        """Run and return the last tensor that the module made."""
        return self.tensor(self._places[module].tensor)

    def place(self, module: str) -> Place:
        """Where the module's output is made."""
        return self._places[module]

    def tensor(self, name: str) -> np.ndarray:
        """Run with one tensor marked as an output and return it."""
        path, marked = self.graph.path, self.graph.marked(name)
        with OnnxRuntimeRunner(path, self._provider, self._threads, graph=marked, weights=self._weights) as runner:
            return runner(self._feed)[name]


def first_divergence(component: str, reference: Probe, candidate: GraphProbe, tolerance: float) -> Divergence | None:
    """Return the first module whose output is off by more than `tolerance`, relative to its largest value; None where none is.

    A tensor that several modules end with is judged as the innermost one's. Modules whose outputs have another shape in the graph
    (an exporter may move a reshape across a border) are passed over.
    """
    known = set(reference.modules())
    modules: dict[str, str] = {}
    for module in candidate.modules():  # the innermost first
        if module in known:
            modules.setdefault(candidate.place(module).tensor, module)
    errors: dict[str, float | None] = {}

    def bad(tensor: str) -> bool | None:
        expected, got = reference(modules[tensor]), candidate(modules[tensor])
        errors[tensor] = relative_error(expected, got) if expected.shape == got.shape else None
        error = errors[tensor]
        return None if error is None else not error <= tolerance

    found = _search(candidate.graph, list(modules), bad)
    if found is None:
        return None
    error = errors[found]
    assert error is not None
    place, order = candidate.place(modules[found]), list(modules).index(found)
    return _divergence(component, place, bool(np.isfinite(error)), error, order, len(modules), 2 * len(errors))


def first_not_finite(component: str, candidate: GraphProbe) -> Divergence | None:
    """Return the first tensor of a graph that holds an Inf or a NaN, or None."""
    places = {place.tensor: place for place in candidate.graph.places()}
    probed = []

    def bad(tensor: str) -> bool:
        probed.append(tensor)
        return not np.isfinite(candidate.tensor(tensor)).all()

    found = _search(candidate.graph, list(places), bad)
    return (
        None if found is None else _divergence(component, places[found], False, None, list(places).index(found), len(places), len(probed))
    )


def _divergence(component: str, place: Place, finite: bool, error: float | None, index: int, of: int, probes: int) -> Divergence:
    return Divergence(
        component=component,
        tensor=place.tensor,
        operator=place.operator,
        module=place.module,
        finite=finite,
        error=error,
        place=index,
        candidates=of,
        probes=probes,
    )


def _search(graph: Graph, tensors: Sequence[str], bad: Callable[[str], bool | None]) -> str | None:
    """A bad tensor that is made from good ones alone; None when the last of `tensors` is good.

    `tensors` are in the order in which they are made; `bad` answers None for one that cannot be judged. Halving finds a bad one
    after a good one; as long as something that it is made from is bad too (side branches are good however late they are made),
    the search goes on among what was made up to there.
    """
    known: dict[str, bool | None] = {}

    def judged(tensor: str) -> bool | None:
        if tensor not in known:
            known[tensor] = bad(tensor)
        return known[tensor]

    ancestors = _ancestors(graph, tensors) if tensors else set()
    left = [t for t in tensors if t == tensors[-1] or t in ancestors]
    while left and judged(left[-1]) is None:
        left.pop()
    if not left or not judged(left[-1]):
        return None
    while True:
        found = _halve(left, judged)
        stops = {t for t in left if known.get(t, False) is not None}
        worse = [t for t in left if t in graph.before(found, stops) and judged(t)]
        if not worse:
            return found
        left = left[: left.index(worse[0]) + 1]


def _halve(tensors: Sequence[str], judged: Callable[[str], bool | None]) -> str:
    """A bad tensor that follows a good one, or the first; the last one is bad. What cannot be judged is passed over."""
    good, worst = -1, len(tensors) - 1
    while worst - good > 1:
        middle = next((i for i in range((good + worst) // 2, good, -1) if judged(tensors[i]) is not None), None)
        if middle is None:
            middle = next((i for i in range((good + worst) // 2, worst) if judged(tensors[i]) is not None), None)
        if middle is None:
            break
        good, worst = (good, middle) if judged(tensors[middle]) else (middle, worst)
    return tensors[worst]


def _ancestors(graph: Graph, tensors: Sequence[str]) -> set[str]:
    """Which of `tensors` the last of them is made from, in any number of steps."""
    stops, waiting = set(tensors), [tensors[-1]]
    found: set[str] = set()
    while waiting:
        for tensor in graph.before(waiting.pop(), stops) - found:
            found.add(tensor)
            waiting.append(tensor)
    return found
