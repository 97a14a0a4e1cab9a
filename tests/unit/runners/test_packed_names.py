"""What a sweep is called in a packed file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.packed.names import NAME, file_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("2026-01-02_03-04-05_topk", "2026-01-02_03-04-05_topk"),
        ("_try", "try"), ("__", "sweep"), ("", "sweep"), ("..", "sweep"), ("-o", "o"),
        ("a b/\u00fc:c", "a-b---c"), (".a.", "a"), ("x" * 61, "x" * 60), ("_" + "x" * 60, "x" * 60),
        ("\n", "sweep"), ("x\n", "x"),
    ],
)  # fmt: skip
def test_the_nearest_allowed_name(text: str, name: str) -> None:
    assert file_name(text) == name


@given(st.text() | st.text("_-.a9", max_size=70))
def test_every_text_gives_an_allowed_name_that_stays(text: str) -> None:
    assert NAME.fullmatch(file_name(text))
    assert file_name(file_name(text)) == file_name(text)
