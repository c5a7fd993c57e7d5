"""Names for annotations: references to objects, generic in the type of the value."""

from __future__ import annotations

from ._base.references import DynamicObjectRefGenerator, ObjectRef, ObjectRefGenerator

__all__ = ["DynamicObjectRefGenerator", "ObjectRef", "ObjectRefGenerator"]
