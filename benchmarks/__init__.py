"""Measurements on real text; a leaf: nothing imports it."""
