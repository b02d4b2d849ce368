"""The kernel of the Monte Carlo trials compiles ahead of time for A100 and H100 without register spills."""

from aot_table import compiled_rows


def test_trials_compile_without_spills() -> None:
    rows, loops = compiled_rows("trials")
    assert len(rows) == 10
    for row in rows:
        # Fewer registers mean more programs at a time: see the kernel's window_pixels.
        limit = {"64": 80, "256": 144, "512": 224}.get(row["shape"].split()[0], 240)
        assert row["registers"] <= limit, row
    assert len(loops) == 30
    for loop in loops:
        # Five differences, six products and sums, six comparisons, two choices: 19, and the loop's own.
        if loop["loop"] == "assign" and loop["shape"] == "512 pixels":
            assert 17 <= loop["instructions"] < 20, loop
