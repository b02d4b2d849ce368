"""The kernels of the vote of components compile ahead of time for A100 and H100 without register spills."""

from aot_table import compiled_rows


def test_components_compile_without_spills() -> None:
    rows, _ = compiled_rows("components", "gray")
    assert len(rows) == 6
    for row in rows:
        # 16 warps can have 128 at most.
        assert row["registers"] <= (192 if row["shape"].startswith("64") else 128), row
