"""The names that model versions registered before version 0.2 import from here; removed in version 0.4."""

from spin.pages.explanation import Explanation, stretches

__all__ = ["Explanation", "stretches"]
