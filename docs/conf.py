"""Sphinx: `sphinx-build -W docs <folder>`."""

project = "sqlspec"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
myst_enable_extensions = ["fieldlist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "sqlspec"
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# no inventories are fetched: the build needs no network
intersphinx_mapping: dict[str, tuple[str, str | None]] = {}
