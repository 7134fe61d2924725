"""A simulated marketplace: a seeded world with known utilities that writes tables and answers slates."""

from recsys.datasets.marketplace.behaviour import Response
from recsys.datasets.marketplace.people import Moments
from recsys.datasets.marketplace.policy import Slates
from recsys.datasets.marketplace.settings import DAY, SIZES, START, Scene, WorldSize
from recsys.datasets.marketplace.world import Marketplace, named_size
from recsys.datasets.marketplace.writing import simulate

__all__ = [
    "DAY",
    "SIZES",
    "START",
    "Marketplace",
    "Moments",
    "Response",
    "Scene",
    "Slates",
    "WorldSize",
    "named_size",
    "simulate",
]
