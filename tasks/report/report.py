"""The report of a run: scores with intervals, training curves, answers side by side, data and origin.

The name of the page has a digest of everything that decides its content, so a run that reused every stage finds its
page. Nothing here imports torch, and pyarrow is imported only to write a page.
"""

import base64
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from tasks.config import TrainingConfig
from tasks.evaluation.tables import version_table
from tasks.publishing.facts import VersionFacts
from tasks.report import charts
from tasks.report.answers import answers
from tasks.report.data import data, preview
from tasks.report.scores import scores as scores_of
from tasks.report.training import training
from tasks.report.versions import beside, until
from tasks.report.words import FILTERS
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import digest_of, file_digest
from tasks.store.manifest import Manifest
from tasks.store.root import store_root

TEMPLATE, PLOT = (Path(__file__).with_name(name) for name in ("report.html.j2", "plot.svg.j2"))
VERSION = 6
"""Raised when the code writes another page for the same stages (docs/caching.md)."""


def write_report(stages: dict[str, ArtifactRef], decision: str = "") -> Path:
    """Write the page of these stages, or return the existing one.

    Args:
        stages: results of download, format, tokenize, train, evaluate and publish, in this order.
        decision: the sentence of the promotion.
    Returns:
        STORE/reports/<name>-<version>-<12 hex digits>.html
    """
    manifests = {name: ref.manifest for name, ref in stages.items()}
    published = manifests["publish"].facts(VersionFacts)
    decides = {
        "outputs": {name: [manifests[name].key, ref.digest] for name, ref in stages.items()},
        "decision": decision,
        "versions": [version.name for version in until(stages["publish"].path)],
        "template": [file_digest(TEMPLATE), file_digest(PLOT)],
        "version": VERSION,
    }
    file = store_root() / "reports" / f"{published.name}-{published.version}-{digest_of(decides)[:12]}.html"
    if file.exists():
        return file
    page = render(stages, manifests, decision)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.write_text(page, encoding="utf-8")
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    return file


def render(stages: Mapping[str, ArtifactRef], manifests: Mapping[str, Manifest], decision: str) -> str:
    """The page as text."""
    published = manifests["publish"]
    noted = published.facts(VersionFacts)
    scores = scores_of(stages["evaluate"].path, manifests["evaluate"])
    return (
        _environment()
        .get_template(TEMPLATE.name)
        .render(
            name=noted.name,
            version=noted.version,
            created=published.created,
            decision=decision,
            base=noted.base,
            revision=noted.revision,
            scores=scores,
            training=training(stages["train"].path, manifests["train"]),
            data=data(stages, manifests["train"].fields(TrainingConfig)),
            preview=preview(stages["tokenize"].path),
            answers=answers(stages["evaluate"].path, scores["headline"]["metric"], scores["champion"]),
            versions=version_table(beside(stages["publish"].path)),
            lineage=[(name, stages[name], manifest) for name, manifest in manifests.items()],
            chart=charts,
        )
    )


def picture(chart: charts.Chart) -> str:
    """A chart as Markdown with an embedded picture."""
    plot: Any = _environment().get_template(PLOT.name).make_module({"chart": charts})
    drawn = str(plot.picture(chart))
    return f"![{chart.title}](data:image/svg+xml;base64,{base64.b64encode(drawn.strip().encode()).decode()})"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
    )
    environment.filters.update(FILTERS)
    return environment
