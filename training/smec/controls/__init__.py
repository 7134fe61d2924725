"""What SMEC is measured against, behind one interface: every control is a `Reducer` once it is fitted."""

from __future__ import annotations

from training.smec.controls.adaptors import MatryoshkaAdaptor, SearchAdaptor
from training.smec.controls.linear import PrincipalComponents, Truncation

__all__ = ["MatryoshkaAdaptor", "PrincipalComponents", "SearchAdaptor", "Truncation"]
