"""The emulator itself, on tiny kernels: instructions, threads of a warp, warps, races, bounds, counts."""

import doctest
from fractions import Fraction

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from mclc_gpu.bench.ptx import launch as launch_module
from mclc_gpu.bench.ptx.launch import emulated
from mclc_gpu.bench.ptx.machine import ORDERS, MachineError, RaceError
from mclc_gpu.bench.ptx.syntax import UnknownInstruction, parse, shuffled, split_operands

SIZE = 256
RNG = np.random.default_rng(0)
WORDS = torch.from_numpy(RNG.integers(-(1 << 31), 1 << 31, (3, SIZE), dtype=np.int64).astype(np.int32))


@triton.jit
def fuse(p_a, p_b, p_c, p_out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(p_out + i, tl.fma(tl.load(p_a + i), tl.load(p_b + i), tl.load(p_c + i)))


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, 24), (np.float64, 53)])
def test_fused_products_are_rounded_once(dtype: type, bits: int) -> None:
    a, b = (RNG.integers(1 << (bits - 1), 1 << bits, SIZE).astype(dtype) for _ in range(2))
    c = -(a * b)
    rows = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    error = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in rows]
    out = torch.zeros(SIZE, dtype=torch.from_numpy(a).dtype)
    with emulated():
        fuse[(1,)](*map(torch.from_numpy, (a, b, c)), out, SIZE, num_warps=2)
    assert out.tolist() == error
    assert any(error)


@triton.jit
def float_steps(p_a, p_b, p_out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    a = tl.load(p_a + i)
    b = tl.load(p_b + i)
    tl.store(p_out + i, a + b)
    tl.store(p_out + SIZE + i, a * b)
    tl.store(p_out + 2 * SIZE + i, tl.div_rn(a, b))
    tl.store(p_out + 3 * SIZE + i, tl.sqrt_rn(tl.abs(a)))
    tl.store(p_out + 4 * SIZE + i, tl.minimum(a, b))
    tl.store(p_out + 5 * SIZE + i, tl.maximum(a, b))
    tl.store(p_out + 6 * SIZE + i, tl.floor(a))
    tl.store(p_out + 7 * SIZE + i, a.to(tl.int32).to(tl.float32))


def test_float_arithmetic_is_that_of_ieee() -> None:
    a = RNG.normal(0, 10.0 ** RNG.integers(-44, 9, SIZE)).astype(np.float32)
    b = RNG.normal(0, 10.0 ** RNG.integers(-44, 9, SIZE)).astype(np.float32)
    a[:4] = np.nan, 3e38, -np.inf, 0
    a[4:6], b[4:6] = 1e12, np.nan
    out = torch.zeros(8, SIZE)
    with emulated():
        float_steps[(1,)](torch.from_numpy(a), torch.from_numpy(b), out, SIZE, enable_fp_fusion=False)
    whole = np.trunc(np.nan_to_num(a.astype(np.float64), nan=0)).clip(-(1 << 31), (1 << 31) - 1)
    with np.errstate(all="ignore"):
        expected = [
            a + b, a * b, a / b, np.sqrt(np.abs(a)), np.fmin(a, b), np.fmax(a, b),
            np.floor(np.where(np.abs(a) < np.finfo(np.float32).tiny, 0, a)),  # ftz
            whole.astype(np.int32).astype(np.float32),
        ]  # fmt: skip
    np.testing.assert_array_equal(out.numpy(), np.stack(expected))


@triton.jit
def integer_steps(p_a, p_b, p_out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    a = tl.load(p_a + i)
    b = tl.load(p_b + i)
    tl.store(p_out + i, a * b)
    tl.store(p_out + SIZE + i, tl.umulhi(a.to(tl.uint32), b.to(tl.uint32)).to(tl.int32))
    tl.store(p_out + 2 * SIZE + i, a // b)
    tl.store(p_out + 3 * SIZE + i, a % b)
    tl.store(p_out + 4 * SIZE + i, a >> (b & 31))
    tl.store(p_out + 5 * SIZE + i, (a.to(tl.uint32) >> (b & 31).to(tl.uint32)).to(tl.int32))
    tl.store(p_out + 6 * SIZE + i, a << (b & 31))
    tl.store(p_out + 7 * SIZE + i, (a.to(tl.int64) * b + 7 >> 20).to(tl.int32))
    tl.store(p_out + 8 * SIZE + i, tl.minimum(a, b) ^ tl.maximum(a.to(tl.int16), b.to(tl.int16)))


def test_integer_arithmetic() -> None:
    a, b = WORDS[0], WORDS[1] >> torch.arange(SIZE) % 28
    b[b == 0] = 3
    out = torch.zeros(9, SIZE, dtype=torch.int32)
    with emulated():
        integer_steps[(1,)](a, b, out, SIZE)
    x, y = a.numpy().astype(object), b.numpy().astype(object)
    shift, unsigned = y & 31, x & 0xFFFFFFFF
    quotient = [abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1) for p, q in zip(x, y, strict=True)]
    expected = [
        x * y, (unsigned * (y & 0xFFFFFFFF)) >> 32, quotient, x - np.array(quotient) * y, x >> shift,
        unsigned >> shift, x << shift, (x * y + 7) >> 20,
        np.minimum(x, y) ^ torch.maximum(a.short(), b.short()).numpy().astype(object),
    ]  # fmt: skip
    for row, wanted in zip(out, expected, strict=True):
        np.testing.assert_array_equal(
            row.numpy().astype(object) & 0xFFFFFFFF, np.array(wanted, object) & 0xFFFFFFFF
        )


@triton.jit
def assembly(p_a, p_b, p_c, p_out, CODE: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    a = tl.load(p_a + i)
    b = tl.load(p_b + i)
    c = tl.load(p_c + i)
    tl.store(p_out + i, tl.inline_asm_elementwise(CODE, "=r,r,r,r", [a, b, c], tl.int32, True, 1))


def prmt(a: int, b: int, c: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    chosen = [(source[c >> 4 * k & 7], c >> 4 * k & 8) for k in range(4)]
    return int.from_bytes([(255 if byte & 128 else 0) if sign else byte for byte, sign in chosen], "little")


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("popc.b32 $0, $1;", lambda a, b, c: a.bit_count()),
        ("clz.b32 $0, $1;", lambda a, b, c: 32 - a.bit_length()),
        ("brev.b32 $0, $1;", lambda a, b, c: int(f"{a:032b}"[::-1], 2)),
        ("lop3.b32 $0, $1, $2, $3, 0xCA;", lambda a, b, c: (a & b) | (~a & c)),
        ("shf.l.wrap.b32 $0, $1, $2, $3;", lambda a, b, c: (b << 32 | a) << (c & 31) >> 32),
        ("shf.r.clamp.b32 $0, $1, $2, $3;", lambda a, b, c: (b << 32 | a) >> min(c, 32)),
        ("prmt.b32 $0, $1, $2, $3;", prmt),
        ("bfe.u32 $0, $1, 5, 11;", lambda a, b, c: a >> 5 & 0x7FF),
        ("shl.b32 $0, $1, $3;", lambda a, b, c: a << c if c < 32 else 0),
        ("mad.lo.s32 $0, $1, $2, $3;", lambda a, b, c: a * b + c),
        ("mul.hi.u32 $0, $1, $2;", lambda a, b, c: a * b >> 32),
        ("rem.u32 $0, $1, $2;", lambda a, b, c: a % b),
    ],
)
def test_instruction(code: str, value) -> None:
    out = torch.zeros(SIZE, dtype=torch.int32)
    with emulated():
        assembly[(1,)](*WORDS, out, code, SIZE, num_warps=1)
    words = [[word & 0xFFFFFFFF for word in row] for row in WORDS.tolist()]
    expected = [value(*three) & 0xFFFFFFFF for three in zip(*words, strict=True)]
    assert [word & 0xFFFFFFFF for word in out.tolist()] == expected


def test_an_unknown_instruction_is_named() -> None:
    code = "dp4a.u32.u32 $0, $1, $2, $3;"
    with emulated(), pytest.raises(UnknownInstruction, match=r"dp4a\.u32\.u32.*test_emulator\.py:\d+"):
        assembly[(1,)](*WORDS, torch.zeros(SIZE, dtype=torch.int32), code, SIZE, num_warps=1)


@triton.jit
def collect(p_x, p_out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(p_x + i)
    tl.store(p_out + i, tl.cumsum(x, 0))
    tl.store(p_out + SIZE + i, tl.zeros_like(x) + tl.sum(x, 0))
    tl.store(p_out + 2 * SIZE + i, tl.zeros_like(x) + tl.max(x, 0))
    tl.store(p_out + 3 * SIZE + i, tl.zeros_like(x) + tl.argmin(x, 0))
    tl.store(p_out + 4 * SIZE + i, tl.sort(x))
    tl.store(p_out + 5 * SIZE + i, tl.gather(x, (i * 7 + 3) % SIZE, 0))
    tl.store(p_out + 6 * SIZE + i, tl.reshape(tl.trans(tl.reshape(x, [16, SIZE // 16])), [SIZE]))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("warps", [1, 2, 8])
def test_shuffles_reductions_and_layouts(warps: int, order: str) -> None:
    x = WORDS[0] >> 12
    out = torch.zeros(7, SIZE, dtype=torch.int32)
    with emulated(order, races=True, seed=warps):
        collect[(1,)](x, out, SIZE, num_warps=warps)
    everywhere = torch.ones_like(x)
    expected = [
        x.cumsum(0), everywhere * x.sum(), everywhere * x.max(), everywhere * x.argmin(), x.sort().values,
        x[(torch.arange(SIZE) * 7 + 3) % SIZE], x.reshape(16, -1).T.reshape(-1),
    ]  # fmt: skip
    assert torch.equal(out, torch.stack(expected).int())


def test_lanes_of_a_shuffle() -> None:
    assert [shuffled("bfly", lane, 5, 31) for lane in (0, 6)] == [(5, True), (3, True)]
    assert [shuffled("up", lane, 3, 0) for lane in (2, 9)] == [(2, False), (6, True)]
    assert [shuffled("down", lane, 3, 31) for lane in (2, 30)] == [(5, True), (30, False)]
    # In segments of eight lanes, as the upper bits of the last operand say.
    assert [shuffled("idx", lane, 2, 31 | 24 << 8) for lane in (1, 9)] == [(2, True), (10, True)]


@triton.jit
def logarithm(p_x, p_out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(p_out + i, libdevice.log(tl.load(p_x + i)) + libdevice.erf(tl.load(p_x + i)))


def test_threads_that_branch_apart_meet_again() -> None:
    x = torch.from_numpy(10.0 ** RNG.uniform(-320, 300, SIZE))
    out = torch.zeros_like(x)
    with emulated():
        logarithm[(1,)](x, out, SIZE)
    torch.testing.assert_close(out, x.log() + x.erf(), rtol=1e-14, atol=1e-14)


@triton.jit
def draw_numbers(p_counter, p_numbers, p_best, p_lock, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(p_numbers + i + tl.program_id(0) * SIZE, tl.atomic_add(p_counter + i % 2, 1 + i % 2))
    tl.atomic_max(p_best + i % 4, i - 100)
    tl.atomic_cas(p_lock, tl.program_id(0), tl.program_id(0) + 1)


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(order: str) -> None:
    counter, best = torch.zeros(2, dtype=torch.int32), torch.full((4,), -1000, dtype=torch.int32)
    numbers, lock = torch.zeros(2 * SIZE, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with emulated(order, races=True):
        draw_numbers[(2,)](counter, numbers, best, lock, SIZE)
    assert counter.tolist() == [SIZE, 2 * SIZE]
    assert best.tolist() == [SIZE - 104 + k for k in range(4)]
    assert sorted(numbers[::2].tolist()) == list(range(SIZE))
    assert lock.item() == 2


@triton.jit
def neighbors(p_x, p_out, BARRIER: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(p_x + i, i)
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_out + i, tl.load(p_x + (i + 1) % SIZE))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("warps", [1, 4])
def test_a_race_is_found(warps: int, order: str) -> None:
    def run(barrier: bool, races: bool = True) -> list[int]:
        out = torch.zeros(SIZE, dtype=torch.int32)
        with emulated(order, races=races):
            neighbors[(1,)](torch.full((SIZE,), -1, dtype=torch.int32), out, barrier, SIZE, num_warps=warps)
        return out.tolist()

    right = [(i + 1) % SIZE for i in range(SIZE)]
    assert run(barrier=True) == right
    with pytest.raises(RaceError, match=r"neighbors, test_emulator\.py:\d+.*reads what another thread wrote"):
        run(barrier=False)
    # In one order of the warps or another the result is wrong, too.
    assert warps == 1 or order == "interleaved" or run(barrier=False, races=False) != right


@triton.jit
def everywhere(p_x, value):
    tl.store(p_x, value + tl.program_id(0) // 2)


def test_a_race_of_two_programs_is_found() -> None:
    with emulated(races=True):
        everywhere[(2,)](torch.zeros(1, dtype=torch.int32), 5)  # both write the same
    with emulated(races=True), pytest.raises(RaceError, match="another program of the launch"):
        everywhere[(3,)](torch.zeros(1, dtype=torch.int32), 5)


@triton.jit
def copy(p_x, p_out, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + i, tl.load(p_x + i, i < size, 0))


@triton.jit
def copy_odd_bytes(p_x, p_out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(p_out + i, tl.load((p_x + 1).to(tl.pointer_type(tl.int32)) + i))


def test_accesses_outside_of_a_tensor_are_found() -> None:
    x = torch.arange(100, dtype=torch.int32)
    storage = torch.zeros(300, dtype=torch.int32)
    with emulated():
        copy[(2,)](x, storage[:128], 100, 64)
    assert torch.equal(storage[:100], x)
    # A part of a tensor is a tensor of its own: what lies beyond it is outside.
    with emulated(), pytest.raises(MachineError, match=r"test_emulator\.py.*outside.*512 bytes into"):
        copy[(3,)](x, storage[:128], 100, 64)
    with emulated(), pytest.raises(MachineError, match=r"ld\.global.*outside"):
        copy[(2,)](x, storage, 101, 64)
    with emulated(), pytest.raises(MachineError, match="misaligned"):
        copy_odd_bytes[(1,)](x.view(torch.uint8), storage, 16)


def test_launches_and_instructions_are_counted() -> None:
    x, out = torch.arange(100, dtype=torch.int32), torch.zeros(192, dtype=torch.int32)
    with emulated() as emulator:
        copy[(3,)](x, out, 100, 64, num_warps=2)
    (launch,) = emulator.launches
    assert (launch.kernel, launch.grid, launch.warps) == ("copy", (3, 1, 1), 2)
    assert launch.counts.opcodes["st.global.b32"] == 3 * 2
    assert launch.counts.total == sum(launch.counts.lines.values()) == emulator.counts.total
    assert all(line.startswith("test_emulator.py:") for line in launch.counts.lines)


@triton.jit(do_not_specialize=["size"])
def copy_any(p_x, p_out, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + i, tl.load(p_x + i, i < size, 0))


@pytest.mark.parametrize(("kernel", "variants"), [(copy, 4), (copy_any, 2)])
def test_variants_are_those_of_triton(kernel, variants: int) -> None:
    x, out = torch.zeros(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    with emulated(record=True) as emulator:
        for size in (0, 1, 16, 17, 33, 48, 1 << 33):
            kernel[(1,)](x, out, size, 64)
    # One for an argument of 1, multiples of 16, other numbers, numbers of 64 bits.
    assert len(emulator.variants) == variants


def test_example() -> None:
    result = doctest.testmod(launch_module)
    assert (result.failed, result.attempted) == (0, 4)


def test_operands() -> None:
    assert split_operands("{%r1, %r2}, [ %rd3 + 8 ], 0f3F800000") == (
        "{%r1, %r2}",
        "[ %rd3 + 8 ]",
        "0f3F800000",
    )


def test_a_module_without_a_kernel() -> None:
    with pytest.raises(UnknownInstruction, match="no entry"):
        parse(".version 8.4")
