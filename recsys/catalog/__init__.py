"""The catalog: item ids, attributes and what a request may be shown."""

from recsys.catalog.catalog import Catalog
from recsys.catalog.filters import CatalogFilter
from recsys.catalog.index import ItemIndex

__all__ = ["Catalog", "CatalogFilter", "ItemIndex"]
