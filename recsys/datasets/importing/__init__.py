"""Logs of many forms as the tables of `recsys.records`: streaming, bounded in memory, every row accounted for."""

from recsys.datasets.importing.chunks import Limits
from recsys.datasets.importing.registry import ImportReport, Progress, import_dataset, known_datasets

__all__ = ["ImportReport", "Limits", "Progress", "import_dataset", "known_datasets"]
