"""How large a share may be when so many of so many were found: the limit that a sample sets. Knows counts, not pictures."""

from __future__ import annotations

__all__ = ["CONFIDENCE", "at_least", "at_most", "upper_bound"]

from math import ceil, exp, floor, lgamma, log, log1p

CONFIDENCE = 0.95
_HALVINGS = 60


def upper_bound(found: int, of: int) -> float:
    """Return the one-sided upper bound of a share of which `found` of `of` were seen, with a confidence of 95 %; 1 where all were.

    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial" (1934): the share p at
    which so few are seen with probability 1 - 0.95, P(X ≤ found; of, p) = 0.05. For none of n that is 1 - 0.05^(1/n).
    """
    if found >= of:
        return 1.0
    if found == 0:
        return float(1 - (1 - CONFIDENCE) ** (1 / of))
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most_found(found, of, middle) > 1 - CONFIDENCE else (low, middle)
    return high


def at_most(found: int, of: int) -> str:
    """Write the bound as "at most 26 %", rounded up: a bound that is rounded down is none."""
    return f"at most {ceil(100 * upper_bound(found, of) - 1e-9)} %"


def at_least(found: int, of: int) -> str:
    """Write the lower bound as "at least 47 %", rounded down: the upper bound of those that were not found, from the other side."""
    return f"at least {floor(100 * (1 - upper_bound(of - found, of)) + 1e-9)} %"


def _at_most_found(found: int, of: int, share: float) -> float:
    """P(X ≤ found) of a binomial distribution."""
    ways = (lgamma(of + 1) - lgamma(k + 1) - lgamma(of - k + 1) for k in range(found + 1))
    return sum(exp(way + k * log(share) + (of - k) * log1p(-share)) for k, way in enumerate(ways))
