"""New policies for a pipeline that is served: put beside its own, and in force with its next request, without a load.

The pipeline looks for them at each request. `policies.json` is what a version was shipped with; `policies/1.json`, `policies/2.json` …
came later, and the greatest number that can be used is in force. Numbers only grow; once the newest file is taken away, its predecessor
is in force again.
"""

from __future__ import annotations

__all__ = ["UPDATES", "PoliciesInForce", "put_policies"]

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nemo_edge.bundle.policies import POLICIES, Policies
from nemo_edge.bundle.revocations import check_trusted
from nemo_edge.bundle.signature import Trust
from nemo_edge.serving.signed import SIGNED, masked_graph, read_origin_policies
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import number_of
from nemo_edge.system.outputs import lock, remove

UPDATES = "policies"
"""The folder of a version that holds the policies that came later than its own."""

_PATIENCE_S = 60.0
"""How long an update waits for another that is being put there."""

_Seen = tuple[tuple[int, int, int], ...]
"""Number, inode and time of each file; 0 is the number of keys and of the list of revocations, by which files are taken or passed over."""


class PoliciesInForce:
    """The policies of a version folder, read anew when their files change: the newest that can be used.

    A file that was passed over is tried again when a key or the list of revocations changes; one that is in force stays so. `complain`
    gets a line on each that is passed over; with `trust`, one whose bundle is not signed by whom is trusted, or has another masked engine,
    is among them.
    """

    def __init__(self, folder: Path, complain: Callable[[str], None] = lambda message: None, trust: Trust | None = None) -> None:
        self._updates, self._complain, self._trust = folder / UPDATES, complain, trust
        self._own = self._policies = Policies.load(folder / POLICIES)
        self._graph = None if trust is None else masked_graph(check_trusted(folder / SIGNED, trust)[0])
        self._seen: _Seen = ()
        self._used: tuple[int, int, int] | None = None

    def __call__(self) -> Policies:
        """Return what is in force now: a look at a folder, and files are read only where one has changed."""
        seen = self._look()
        if seen != self._seen:
            self._policies, self._seen = self._newest(seen), seen
        return self._policies

    def _look(self) -> _Seen:
        asked = [(0, path) for path in (() if self._trust is None else self._trust.files)]
        found = []
        for number, path in (*asked, *((number, self._updates / f"{number}.json") for number in _numbers(self._updates))):
            with suppress(OSError):  # one was taken away at this moment, or is a link to nothing
                state = path.stat()
                found.append((number, state.st_ino, state.st_mtime_ns))
        return tuple(sorted(found))

    def _newest(self, seen: _Seen) -> Policies:
        for each in reversed([each for each in seen if each[0]]):
            if each == self._used:
                return self._policies
            path = self._updates / f"{each[0]}.json"
            try:
                found = Policies.load(path)
                if self._trust is not None and read_origin_policies(path.with_suffix(""), self._trust, self._graph) != found:
                    raise InputError(f"{path} has other neurons than the bundle that was signed")
                if found.fits(self._own):
                    self._used = each
                    return found.model_copy(update={"offered": self._own.offered})
                self._complain(f"{path} has neurons of another model and is passed over")
            except InputError as error:
                self._complain(f"{error}; it is passed over")
        self._used = None
        return self._own


def put_policies(folder: Path, policies: Policies, copy: Callable[[Path], object] | None = None) -> int:
    """Put policies beside those of a version folder, whole and under the next number, which is returned.

    `copy` gets a folder of that number, and puts there what a signature of their bundle is of.

    Raises `InputError` for those of another model, and where they cannot be written.
    """
    if not policies.fits(Policies.load(folder / POLICIES)):
        raise InputError(f"the neurons are not of the model that {folder} serves: ship the bundle whole, to a folder of its own")
    updates = folder / UPDATES
    with lock(updates, _PATIENCE_S):  # another update at this moment takes the next number
        number = max([0, *_numbers(updates)]) + 1
        remove(updates / str(number))  # of one that was killed
        if copy is not None:
            copy(updates / str(number))
        policies.save(updates / f"{number}.json")
    return number


def _numbers(updates: Path) -> list[int]:
    return [number for path in updates.glob("*.json") if (number := number_of(path.stem))]
