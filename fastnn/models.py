"""Keras' place for models: ``fastnn.models.Sequential`` and ``fastnn.models.load_model``."""

from fastnn.saving import load_model
from fastnn.sequential import Sequential

__all__ = ["Sequential", "load_model"]
