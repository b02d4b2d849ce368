"""The kernels that score masks compile ahead of time for A100 and H100 without register spills."""

from aot_table import compiled_rows


def test_scoring_compiles_without_spills() -> None:
    rows, _ = compiled_rows("scoring", "shares")
    assert len(rows) == 8
    for row in rows:
        # 16 warps can have 128 at most.
        assert row["registers"] <= (80 if row["shape"].startswith("64") else 128), row
