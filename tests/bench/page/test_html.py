"""The page: fetches nothing, runs no script but its own, can be read without seeing it, and stays small."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re

from tests.bench.page.document import synthetic_document

from .reading import Doc, Walk, page_of


def test_the_page_fetches_nothing(document: Doc) -> None:
    page = page_of(document)
    walk = Walk(page)
    for tag, attributes in walk.tags:
        assert tag not in {
            "link",
            "iframe",
            "img",
            "object",
            "embed",
            "base",
            "source",
            "video",
            "audio",
            "use",
            "image",
        }
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, name)
        assert not any(name.startswith("on") for name in attributes), tag
    assert "@import" not in page
    assert "url(" not in page


def test_no_script_runs_but_its_own(document: Doc) -> None:
    walk = Walk(page_of(document))
    policy = next(a["content"] for a in walk.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = walk.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(script) < 5000


def test_the_page_can_be_read_without_seeing_it(document: Doc) -> None:
    walk = Walk(page_of(document))
    levels = [int(tag[1]) for tag, _ in walk.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(heading.get("scope") in {"col", "row", "colgroup"} for heading in walk.all("th"))
    assert len(walk.all("svg")) == 12
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in walk.all("svg"))
    assert len(walk.texts["desc"]) == 12
    names = [a["id"] for _, a in walk.tags if "id" in a]
    assert len(names) == len(set(names))
    targets = {(a["href"] or "")[1:] for a in walk.all("a")}
    assert targets <= set(names)
    assert walk.all("html") == [{"lang": "en"}]


def test_size(synthetic: Doc) -> None:
    """Seven networks in two precisions, two thousand calls each."""
    page = page_of(synthetic_document(rounds=20, calls=100))
    assert len(page.encode()) < 400_000
    assert len(page.encode()) < 1.3 * len(page_of(synthetic).encode()), "the page does not grow with the calls"
