"""Answers the requests that a server has put into one batch: each is checked alone, so that a bad one does not spoil the others."""

from __future__ import annotations

__all__ = ["answer"]

from collections.abc import Mapping, Sequence

import numpy as np

from nemo_edge.backends.base import Runner
from nemo_edge.backends.feeds import check_feed
from nemo_edge.system.errors import InputError, NemoEdgeError

Answer = dict[str, np.ndarray] | NemoEdgeError
_Shapes = tuple[tuple[int, ...], ...]


def answer(runner: Runner, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[Answer]:
    """Return the outputs for each feed, or the error that is its own; feeds of the same shapes are run together."""
    answers: list[Answer | None] = [_complaint(runner, feed) for feed in feeds]
    alike: dict[_Shapes, list[int]] = {}
    for index, feed in enumerate(feeds):
        if answers[index] is None:
            alike.setdefault(tuple(feed[name].shape[1:] for name in runner.inputs), []).append(index)
    for chosen in alike.values():
        for index, found in zip(chosen, _together(runner, [feeds[i] for i in chosen]), strict=True):
            answers[index] = found
    return [found for found in answers if found is not None]


def _complaint(runner: Runner, feed: Mapping[str, np.ndarray]) -> NemoEdgeError | None:
    try:
        check_feed(feed, {name: ("batch", *dims[1:]) for name, dims in runner.inputs.items()})
        rows = {len(array) for array in feed.values()}
        if len(rows) > 1:
            raise InputError(f"the inputs have {', '.join(map(str, sorted(rows)))} rows: give each as many")
    except InputError as error:
        return error
    return None


def _together(runner: Runner, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[Answer]:
    ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
    try:
        outputs = runner({name: np.concatenate([feed[name] for feed in feeds]) for name in runner.inputs})
    except NemoEdgeError as error:
        return [error for _ in feeds]
    parts = {name: np.split(array, ends) for name, array in outputs.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(feeds))]
