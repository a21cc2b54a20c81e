"""Of the site that `make docs` writes into `docs/site`: Sphinx, the pages as they are, Python's reference from docstrings."""

from __future__ import annotations

__all__ = ()

import nemo_edge

project, author, release = "nemo-edge", "the nemo-edge authors", nemo_edge.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"nemo-edge {release}"
exclude_patterns = ["site", "notebooks"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
nitpicky = False
