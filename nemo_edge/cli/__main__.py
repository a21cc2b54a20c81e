"""`python -m nemo_edge.cli`."""

from __future__ import annotations

__all__ = ()

from nemo_edge.cli.main import main

if __name__ == "__main__":
    main()
