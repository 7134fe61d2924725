"""What users do: true utilities, and clicks, carts and purchases drawn from them.

A user who examines an item of a slate clicks with probability sigmoid(bias of the scene + utility). Position p,
counted from 0, is examined with probability (p + 1) ** -decay of the scene, independently of everything else.
After a click the item goes to the cart, and from there it is bought, with probabilities that rise with the same
utility. All functions are pure: utilities are in log odds, arrays are (n,) moments by (n, m) items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.datasets.marketplace.settings import (
    DAY,
    INTEREST_WEIGHTS,
    STYLE,
    SUCCESSOR_WEIGHTS,
    Bools,
    Doubles,
    Indices,
    Ints,
    Scene,
)

if TYPE_CHECKING:
    from recsys.datasets.marketplace.catalog import Catalog
    from recsys.datasets.marketplace.people import Moments


@dataclass(frozen=True, slots=True)
class SceneTraits:
    """How people behave on one surface.

    Attributes:
        intent: added log odds for the leaf that is wanted.
        successor: added log odds for the leaves that the wanted one leads to, times how likely they are.
        interest: added log odds for the lasting interests, times their weight.
        click, cart, purchase: biases in log odds.
        decay: exponent of the examination probability.
    """

    intent: float
    successor: float
    interest: float
    click: float
    cart: float
    purchase: float
    decay: float


TRAITS: Final[dict[Scene, SceneTraits]] = {
    Scene.HOME: SceneTraits(2.4, 0.8, 2.2, click=-3.9, cart=-3.5, purchase=-1.0, decay=0.6),
    Scene.SEARCH: SceneTraits(3.4, 0.2, 0.2, click=-3.9, cart=-3.5, purchase=-0.9, decay=0.9),
    Scene.ITEM: SceneTraits(2.6, 2.0, 0.4, click=-3.9, cart=-3.4, purchase=-0.9, decay=0.7),
    Scene.CART: SceneTraits(1.2, 3.4, 0.2, click=-3.8, cart=-2.2, purchase=0.2, decay=0.4),
    Scene.BROWSE: SceneTraits(3.0, 0.5, 0.5, click=-2.0, cart=-3.9, purchase=-1.0, decay=0.0),
}
_STYLE_WEIGHT = 1.9
_APPEAL_WEIGHT = 0.6
_FRESH_WEIGHT = 0.5
_FRESH_DAYS = 10.0
_DEEPER = 0.3  # weight of the utility in the decisions after the click


def _columns() -> dict[str, Doubles]:
    names = ("intent", "successor", "interest", "click", "cart", "purchase", "decay")
    return {name: np.array([getattr(TRAITS[scene], name) for scene in Scene]) for name in names}


_BY_SCENE: Final = _columns()


@dataclass(frozen=True, slots=True)
class Response:
    """What users did with their slates; every array is (n, k).

    Attributes:
        examined: the item was looked at.
        clicks: implies examined.
        carts: implies a click.
        purchases: implies a cart.
        value_micros: int64, the price where bought, else 0.
    """

    examined: Bools
    clicks: Bools
    carts: Bools
    purchases: Bools
    value_micros: Ints


def utility(catalog: Catalog, moments: Moments, items: Indices, scene: Ints) -> Doubles:
    """How much the user of each moment wants each item, in log odds.

    Args:
        catalog: the items.
        moments: (n,) who wants what.
        items: (n, m) item indices; -1 gives minus infinity.
        scene: (n,) where; may differ from the moments' own scene.

    Returns:
        (n, m) float64.
    """
    known = np.maximum(items, 0)
    leaf = catalog.leaf[known]
    wanted = _BY_SCENE["intent"][scene][:, None] * (leaf == moments.intent[:, None])
    successors = catalog.tree.successors[moments.intent]
    following = sum(weight * (leaf == successors[:, rank, None]) for rank, weight in enumerate(SUCCESSOR_WEIGHTS))
    lasting = sum(weight * (leaf == moments.interests[:, rank, None]) for rank, weight in enumerate(INTEREST_WEIGHTS))
    taste = np.einsum("nd,nmd->nm", moments.desire, catalog.style[known]) / np.sqrt(STYLE)
    price = moments.thrift[:, None] * (catalog.price_position[known] - moments.price_level[:, None]) ** 2
    age = np.maximum(moments.time[:, None] - catalog.created_at[known], 0) / DAY
    value = (
        wanted
        + _BY_SCENE["successor"][scene][:, None] * following
        + _BY_SCENE["interest"][scene][:, None] * lasting
        + _STYLE_WEIGHT * taste.astype(np.float64)
        + _APPEAL_WEIGHT * catalog.appeal[known]
        + _FRESH_WEIGHT * np.exp(-age / _FRESH_DAYS)
        - np.minimum(price, 3.0)
    )
    return np.where(items >= 0, value, -np.inf)


def examination(scene: Ints, positions: int) -> Doubles:
    """(n, positions) probability that each position, counted from 0, is looked at."""
    ranks = np.arange(1, positions + 1, dtype=np.float64)
    examined: Doubles = ranks[None, :] ** -_BY_SCENE["decay"][scene][:, None]
    return examined


def click_given_examined(utilities: Doubles, scene: Ints) -> Doubles:
    """(n, k) probability of a click on an item that is looked at."""
    return sigmoid(_BY_SCENE["click"][scene][:, None] + utilities)


def after_click(utilities: Doubles, scene: Ints, clicks: Bools, rng: np.random.Generator) -> tuple[Bools, Bools]:
    """Which of the clicked items go to the cart, and which of those are bought; (n, k) each."""
    deeper = _DEEPER * np.where(clicks, utilities, 0.0)
    carts = clicks & (rng.random(clicks.shape) < sigmoid(_BY_SCENE["cart"][scene][:, None] + deeper))
    buys = carts & (rng.random(clicks.shape) < sigmoid(_BY_SCENE["purchase"][scene][:, None] + deeper))
    return carts, buys


def respond(catalog: Catalog, moments: Moments, slates: Indices, scene: Ints, rng: np.random.Generator) -> Response:
    """Draw what the user of each moment does with a slate.

    Args:
        catalog: the items.
        moments: (n,) who wants what.
        slates: (n, k) item indices, position 0 first; -1 stands for an empty place.
        scene: (n,) where the slates are shown.
        rng: where the draws come from.
    """
    utilities = utility(catalog, moments, slates, scene)
    examined = (rng.random(slates.shape) < examination(scene, slates.shape[1])) & (slates >= 0)
    clicks = examined & (rng.random(slates.shape) < click_given_examined(utilities, scene))
    carts, purchases = after_click(utilities, scene, clicks, rng)
    value = np.where(purchases, catalog.price_micros[np.maximum(slates, 0)], 0)
    return Response(examined, clicks, carts, purchases, value)


def sigmoid(values: Doubles) -> Doubles:
    """The logistic function; minus infinity gives 0."""
    result: Doubles = 1.0 / (1.0 + np.exp(-np.clip(values, -700.0, 700.0)))
    return np.where(np.isneginf(values), 0.0, result)
