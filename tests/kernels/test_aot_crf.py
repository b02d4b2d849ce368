"""The kernel of the dense CRF compiles ahead of time for A100 and H100, and keeps everything in registers."""

from aot_table import compiled_rows


def test_kernel_compiles_without_spills() -> None:
    rows, loops = compiled_rows("crf")
    assert len(rows) == len(loops) == 8
    for row in rows:
        # 20 warps of 32 threads fit 65,536 registers: five programs at a time hide what loads cost.
        assert row["registers"] <= 102, row
        assert row["programs"] >= 5, row
    for loop in loops:
        assert 10 < loop["instructions"] <= 21, loop
