"""Self-contained HTML pages: one file, no network, everything that comes from outside escaped.

A page is a template in ``templates/`` that extends ``page.html``; a policy in its head forbids the browser to load
anything, so that a page shows the same on a plane as on a cluster.
"""

from __future__ import annotations

import functools
from typing import Any

import jinja2


def render_page(template: str, **values: Any) -> str:
    """Return the page that `template` makes of `values`; a name the template needs and does not get is an error."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hardware.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["count"] = "{:,}".format
    return environment


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share as a percentage; a dash for None and NaN, which compare as nothing."""
    return "–" if share is None or share != share else f"{100 * share:.{digits}f} %"
