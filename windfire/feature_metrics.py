"""Freshness and skew of the feature store as a file for Prometheus's node exporter (its textfile collector)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

if TYPE_CHECKING:
    from pathlib import Path

    from feature_store.verification import Freshness, Verification
    from feature_store.views import View


def write_freshness(path: Path, view: View, found: Freshness) -> None:
    """Write statuses and ages of a sample; the file is replaced whole."""
    registry = CollectorRegistry()
    entities = Gauge(
        "windfire_feature_sample_entities", "Sampled entities by status.", ["view", "status"], registry=registry
    )
    for status, count in found.statuses.items():
        entities.labels(view.label, status).set(count)
    age = Gauge(
        "windfire_feature_sample_age_seconds", "Age of the event times in a sample.", ["view", "percentile"],
        registry=registry,
    )  # fmt: skip
    for percentile, seconds in found.seconds.items():
        age.labels(view.label, str(percentile)).set(seconds)
    write_to_textfile(str(path), registry)


def write_skew(path: Path, view: View, found: Verification) -> None:
    """Write how many of a sample differ between store and table; the file is replaced whole."""
    registry = CollectorRegistry()
    Gauge(
        "windfire_feature_compared_entities", "Entities compared with the table.", ["view"], registry=registry
    ).labels(view.label).set(found.compared)
    Gauge("windfire_feature_skew", "Share of the compared entities that differ.", ["view"], registry=registry).labels(
        view.label
    ).set(found.skew)
    write_to_textfile(str(path), registry)
