from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation.judged import Judgements
from training.smec.data import VectorData, unit


@pytest.fixture(scope="session")
def labelled() -> VectorData:
    """90 documents in 15 groups of 16 dimensions; a query lies near its group's centre, and its group is right.

    The first half of the dimensions is noise alone, so that truncation must fail where learning need not.
    """
    rng = np.random.default_rng(8)
    centres = np.concatenate([np.zeros((15, 8)), rng.normal(size=(15, 8))], axis=1)
    groups = np.arange(90) % 15
    documents = centres[groups] + 0.35 * rng.normal(size=(90, 16))
    asked = np.arange(60) % 15
    queries = centres[asked] + 0.35 * rng.normal(size=(60, 16))
    judgements = Judgements.of([np.flatnonzero(groups == group) for group in asked])
    return VectorData(unit(documents.astype(np.float32)), unit(queries.astype(np.float32)), judgements)


@pytest.fixture(scope="session")
def unlabelled(labelled: VectorData) -> VectorData:
    return VectorData.unlabelled(labelled.documents)
