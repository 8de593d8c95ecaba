"""The document that the tests of the report share."""

from __future__ import annotations

import copy

import pytest

from tests.bench.page.document import synthetic_document

from .reading import Doc


@pytest.fixture(scope="package")
def synthetic() -> Doc:
    return synthetic_document()


@pytest.fixture
def document(synthetic: Doc) -> Doc:
    return copy.deepcopy(synthetic)
