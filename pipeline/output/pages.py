"""The templates of pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def template(package: str, name: str, filters: Mapping[str, Callable[..., Any]] | None = None) -> jinja2.Template:
    """A template of a package: values are escaped, and a name that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(name)
