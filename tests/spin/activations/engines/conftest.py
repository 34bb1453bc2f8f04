from __future__ import annotations

import pytest

from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.settings import BackboneSettings
from tests.spin.backbone.test_model import FAMILIES, Family
from tests.support import tiny


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A small backbone of every family, in float32."""
    family: Family = request.param
    folder = tiny.save_backbone(
        tmp_path_factory.mktemp(family.name), family.config(), tiny.build_tokenizer(special=not family.causal)
    )
    return load_backbone(BackboneSettings(model=str(folder), dtype="float32", device="cpu", batch_tokens=64))
