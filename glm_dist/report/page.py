"""The page: style, scripts and data in one HTML file that needs nothing else.

Its Content-Security-Policy names the hash of each script and style, so a browser runs nothing that
came in with a run's texts, and lets the page load nothing from elsewhere.
"""

import base64
import hashlib
import html
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import glm_dist
from glm_dist.checkpoint.manifest import Json
from glm_dist.json_text import json_text

STYLES = ("uplot.min.css", "page.css")
SCRIPTS = (
    "uplot.min.js",
    "dom.js",
    "series.js",
    "metrics.js",
    "charts.js",
    "row.js",
    "tables.js",
    "page.js",
)
"""In the order of their use. uPlot draws 100,000 points in milliseconds, on a canvas and without
dependencies; its licence is beside it."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<link rel="icon" href="data:,">
{styles}
</head>
<body>
<noscript><p class="note">This page draws its charts with JavaScript, which is switched off.</p>
</noscript>
<div id="page"></div>
<script type="application/json" id="data">{data}</script>
{scripts}
</body>
</html>
"""


def unique_labels(folders: Sequence[Path]) -> list[str]:
    """Return a short name for each run: the end of its path that no other run has.

    Args:
        folders: Run folders, all different.
    """
    paths = [folder.absolute().parts for folder in folders]
    labels = []
    for parts in paths:
        size = 1
        while size < len(parts) and sum(each[-size:] == parts[-size:] for each in paths) > 1:
            size += 1
        labels.append("/".join(parts[-size:]))
    return labels


def render_page(
    runs: Sequence[Mapping[str, Json]], labels: Sequence[str], *, refresh_seconds: float = 0.0
) -> str:
    """Write the page.

    Args:
        runs: Output of ``read_run``.
        labels: Name of each run.
        refresh_seconds: Pause between two requests for new records; 0: the page never asks.
    """
    data = {
        "program": f"glm_dist {glm_dist.__version__}",
        "generated": round(time.time(), 3),
        "refresh_seconds": refresh_seconds,
        "runs": [{"label": label, **run} for label, run in zip(labels, runs, strict=True)],
    }
    styles = [_asset(name) for name in STYLES]
    scripts = [_asset(name) for name in SCRIPTS]
    return TEMPLATE.format(
        policy=policy(styles, scripts, may_connect=refresh_seconds > 0),
        title=html.escape(", ".join(labels[:3]) + (" …" if len(labels) > 3 else "")),
        styles="\n".join(f"<style>{text}</style>" for text in styles),
        data=as_json(data),
        scripts="\n".join(f"<script>{text}</script>" for text in scripts),
    )


def as_json(data: object) -> str:
    """Encode data so that no text in it can end a script element."""
    text = json_text(data)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy(styles: Sequence[str], scripts: Sequence[str], *, may_connect: bool) -> str:
    """Return the Content-Security-Policy of the page.

    Args:
        styles: Content of each style element.
        scripts: Content of each script element.
        may_connect: The page asks its server for new records.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {' '.join(map(_hash, styles))}",
            "img-src data:",
            "connect-src 'self'" if may_connect else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _asset(name: str) -> str:
    return files("glm_dist.report").joinpath("assets", name).read_text(encoding="utf-8").strip()
