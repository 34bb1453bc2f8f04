"""Fixtures of the tests of infra."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.manifests import OVERLAYS, render_overlay


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The documents that an overlay applies."""
    return render_overlay(request.param)
