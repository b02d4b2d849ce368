"""The kernel of the Monte Carlo trials compiles ahead of time for A100 and H100 without register spills."""

from aot_table import compiled_rows


def test_trials_compile_without_spills() -> None:
    rows, loops = compiled_rows("trials")
    assert len(rows) == 10
    for row in rows:
        # Registers allow so many programs at a time: see the kernel's window_pixels.
        least = {"64": 32, "256": 16, "512": 8, "1024": 4, "4096": 1}[row["shape"].split()[0]]
        assert row["programs"] >= least, row
    assert len(loops) == 30
    for loop in loops:
        # Assignment: 5 differences, 6 products and sums, 5 comparisons, 2 choices. Update: 1 and 6 twice.
        if loop["shape"] == "512 pixels" and loop["loop"] != "connectivity":
            assert 12 <= loop["instructions"] < 20, loop
