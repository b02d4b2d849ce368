"""Memory of the emulated machine: accesses of a warp's threads, checked for bounds and races.

Each tensor of a launch is an area of a virtual address space, far from the others, so that an access beyond
its end meets nothing. Two accesses to a byte race if they come from two threads, nothing orders them, one of
them is a write that changes the byte, and they are not both atomic (or volatile). What orders two threads of
a program is a barrier of the program, or one of their warp; a shuffle, vote or reduction of the warp orders
reads before it and writes after it, for a thread has its values before it gives them away. Nothing orders two
programs.

The functions are called from the machine code of the kernels, once for an instruction of a warp.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from mclc_gpu.kernels.jit_cpu import c_function, compiled

LANES = 32
AREA_BITS = 40  # of an address: what lies above them is the number of the area, counted from 1
ROW = 8 * LANES  # bytes between the elements of a vector access in the buffer `data`
OPERATIONS = ("add", "min", "max", "exch", "cas", "and", "or", "xor")  # of atomic instructions
LETTERS = "bsuf"  # kinds of numbers that they compute with


class Slot(IntEnum):
    """Places of the numbers, int64, that a launch and its machine code share."""

    BUDGET = 0  # blocks of instructions that a warp may still run before it pauses
    FAULT = 1
    FAULT_SITE = 2
    FAULT_ADDRESS = 3
    FAULT_THREAD = 4
    EPOCH = 5  # number of barriers that the program has passed
    MOMENT = 6  # number of barriers that the warp has passed, of the program or its own
    EXCHANGE = 7  # number of barriers, shuffles, votes and reductions that the warp has passed
    FIRST_THREAD = 8  # of the warp
    THREADS = 9  # of a program
    PROGRAM_X = 10
    PROGRAM_Y = 11
    PROGRAM_Z = 12
    PROGRAMS_X = 13
    PROGRAMS_Y = 14
    PROGRAMS_Z = 15
    PROGRAM = 16  # its number in the launch
    SHARED = 17  # address of the description (see `Area`) of the program's shared memory
    AREAS = 18  # address of the descriptions of the tensors
    AREAS_NUMBER = 19
    RACES = 20  # address of the counts of races [kinds, sites]; 0: races are not looked for
    SITES = 21
    LENGTH = 22


class Area(IntEnum):
    """Columns of the description, int64, of a piece of memory."""

    FIRST = 0  # virtual address
    END = 1
    REAL = 2  # address in this computer's memory
    SHADOW = 3  # address of what is known of the accesses to each byte: int32 [bytes, Shadow.LENGTH]
    LENGTH = 4


class Shadow(IntEnum):
    """Columns of what is known of the accesses to a byte.

    A thread of `READER` is -1 for none, -2 - w for several of warp w, and `_MANY` for several of several
    warps; those of programs likewise.
    """

    WRITE_EPOCH = 0
    WRITE_MOMENT = 1
    WRITER = 2
    WRITE_ATOMIC = 3
    READ_EPOCH = 4
    READ_EXCHANGE = 5
    READER = 6
    WRITING_PROGRAM = 7
    PROGRAM_ATOMIC = 8
    READING_PROGRAM = 9
    LENGTH = 10


class Fault(IntEnum):
    """Reasons to stop a launch."""

    NONE = 0
    OUTSIDE = 1
    MISALIGNED = 2
    ALONE = 3
    FREED = 4


class Race(IntEnum):
    """Kinds of races, by the later access and the earlier one."""

    READ_AFTER_WRITE = 0
    WRITE_AFTER_WRITE = 1
    WRITE_AFTER_READ = 2
    PROGRAMS = 3
    LENGTH = 4


_MANY = np.int32(-1 << 30)
_NOBODY = np.int32(-1)
_SHADOW_BYTES = 4 * int(Shadow.LENGTH)
_AREA_LENGTH = int(Area.LENGTH)
_NUMBER = types.int64
_ENOUGH = 1 << 20  # length of arrays whose true one is known elsewhere; nothing looks at it


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """Return an address as a pointer."""
    pointer = ir.IntType(8).as_pointer()
    return types.voidptr(types.int64), lambda _, builder, __, args: builder.inttoptr(args[0], pointer)


@compiled()
def _numbers(address):
    """Return the int64 numbers from an address on."""
    return carray(_pointer(address), _ENOUGH, np.int64)


@compiled()
def _shadow(address):
    """Return the columns of `Shadow` of a byte."""
    return carray(_pointer(address), _ENOUGH, np.int32)


@compiled()
def _get(address, width):
    """Return the bytes at an address as uint64."""
    if width == 4:
        return np.uint64(carray(_pointer(address), 1, np.uint32)[0])
    if width == 8:
        return carray(_pointer(address), 1, np.uint64)[0]
    if width == 2:
        return np.uint64(carray(_pointer(address), 1, np.uint16)[0])
    return np.uint64(carray(_pointer(address), 1, np.uint8)[0])


@compiled()
def _set(address, width, value):
    """Store the low bytes of a uint64 at an address."""
    if width == 4:
        carray(_pointer(address), 1, np.uint32)[0] = np.uint32(value)
    elif width == 8:
        carray(_pointer(address), 1, np.uint64)[0] = value
    elif width == 2:
        carray(_pointer(address), 1, np.uint16)[0] = np.uint16(value)
    else:
        carray(_pointer(address), 1, np.uint8)[0] = np.uint8(value)


@compiled()
def _stop(slots, fault, site, address, lane):
    """Note the first fault, and let the warp pause."""
    if slots[Slot.FAULT] == 0:
        slots[Slot.FAULT] = fault
        slots[Slot.FAULT_SITE] = site
        slots[Slot.FAULT_ADDRESS] = address
        slots[Slot.FAULT_THREAD] = slots[Slot.FIRST_THREAD] + lane
    slots[Slot.BUDGET] = 0


@compiled()
def _find(slots, address, size, shared, lane, site):
    """Return the real address of an access and the address of its shadow; 0, 0 if it must not be."""
    number = (address >> AREA_BITS) - 1
    if shared:
        area = _numbers(slots[Slot.SHARED])
    elif 0 <= number < slots[Slot.AREAS_NUMBER]:
        area = _numbers(slots[Slot.AREAS] + 8 * _AREA_LENGTH * number)
    else:
        _stop(slots, 1, site, address, lane)
        return 0, 0
    if address < area[Area.FIRST] or address + size > area[Area.END]:
        _stop(slots, 1, site, address, lane)
        return 0, 0
    if address % size:
        _stop(slots, 2, site, address, lane)
        return 0, 0
    offset = address - area[Area.FIRST]
    return area[Area.REAL] + offset, area[Area.SHADOW] + _SHADOW_BYTES * offset


@compiled()
def _report(slots, race, site):
    _numbers(slots[Slot.RACES])[race * slots[Slot.SITES] + site] += 1


@compiled()
def _unordered(slots, epoch, same_moment, thread, own):
    """Check if nothing orders an earlier access by a thread, or several (see `Shadow`), before one of `own`.

    `same_moment`: nothing has ordered the threads of the warp since.
    """
    if thread == own or thread == _NOBODY or epoch != slots[Slot.EPOCH]:  # noqa: SIM109 (types differ)
        return False
    if thread == _MANY:
        return True
    warp = thread >> 5 if thread >= 0 else -2 - thread
    return warp != own >> 5 or same_moment


@compiled()
def _note_read(slots, shadow, size, ordered, lane, site):
    """Look for races of a read with earlier writes, and note it."""
    own = slots[Slot.FIRST_THREAD] + lane
    program = slots[Slot.PROGRAM]
    for i in range(size):
        byte = _shadow(shadow + _SHADOW_BYTES * i)
        same = byte[Shadow.WRITE_MOMENT] == slots[Slot.MOMENT]
        apart = _unordered(slots, byte[Shadow.WRITE_EPOCH], same, byte[Shadow.WRITER], own)
        if apart and not (ordered and byte[Shadow.WRITE_ATOMIC]):
            _report(slots, 0, site)
        writing = byte[Shadow.WRITING_PROGRAM]
        if writing != _NOBODY and writing != program and not (ordered and byte[Shadow.PROGRAM_ATOMIC]):
            _report(slots, 3, site)
        if ordered:
            continue
        reading = byte[Shadow.READING_PROGRAM]
        byte[Shadow.READING_PROGRAM] = _MANY if reading != _NOBODY and reading != program else program
        before = byte[Shadow.READER]
        if byte[Shadow.READ_EPOCH] != slots[Slot.EPOCH] or before == _NOBODY:
            byte[Shadow.READER] = own
        elif before != own:
            warp = before >> 5 if before >= 0 else -2 - before
            if before == _MANY or warp != own >> 5:
                byte[Shadow.READER] = _MANY
            else:
                same = byte[Shadow.READ_EXCHANGE] == slots[Slot.EXCHANGE]
                byte[Shadow.READER] = -2 - warp if same else own
        byte[Shadow.READ_EPOCH] = slots[Slot.EPOCH]
        byte[Shadow.READ_EXCHANGE] = slots[Slot.EXCHANGE]


@compiled()
def _note_write(slots, shadow, size, atomic, differs, lane, site):
    """Look for races of a write with earlier accesses, and note it; `differs`: it changes the bytes."""
    own = slots[Slot.FIRST_THREAD] + lane
    program = slots[Slot.PROGRAM]
    for i in range(size):
        byte = _shadow(shadow + _SHADOW_BYTES * i)
        if differs:
            same = byte[Shadow.WRITE_MOMENT] == slots[Slot.MOMENT]
            apart = _unordered(slots, byte[Shadow.WRITE_EPOCH], same, byte[Shadow.WRITER], own)
            if apart and not (atomic and byte[Shadow.WRITE_ATOMIC]):
                _report(slots, 1, site)
            same = byte[Shadow.READ_EXCHANGE] == slots[Slot.EXCHANGE]
            if _unordered(slots, byte[Shadow.READ_EPOCH], same, byte[Shadow.READER], own):
                _report(slots, 2, site)
            writing = byte[Shadow.WRITING_PROGRAM]
            other = writing != _NOBODY and writing != program and not (atomic and byte[Shadow.PROGRAM_ATOMIC])
            reading = byte[Shadow.READING_PROGRAM]
            if other or (reading != _NOBODY and reading != program):
                _report(slots, 3, site)
        byte[Shadow.WRITE_EPOCH] = slots[Slot.EPOCH]
        byte[Shadow.WRITE_MOMENT] = slots[Slot.MOMENT]
        byte[Shadow.WRITER] = own
        byte[Shadow.WRITE_ATOMIC] = atomic
        byte[Shadow.WRITING_PROGRAM] = program
        byte[Shadow.PROGRAM_ATOMIC] = atomic


@c_function(types.void(*[_NUMBER] * 9))
def load(context, addresses, data, mask, width, elements, shared, ordered, site):
    """Load vectors of `elements` numbers of `width` bytes in the threads of `mask`, into `data`.

    The addresses are int64 [32]; the numbers of element e lie together at data + e ROW. `ordered` accesses do
    not race with each other.
    """
    slots = _numbers(context)
    at = _numbers(addresses)
    for lane in range(LANES):
        if mask >> lane & 1:
            place, shadow = _find(slots, at[lane], width * elements, shared, lane, site)
            if place:
                if slots[Slot.RACES]:
                    _note_read(slots, shadow, width * elements, ordered, lane, site)
                for e in range(elements):
                    _set(data + e * ROW + lane * width, width, _get(place + e * width, width))


@c_function(types.void(*[_NUMBER] * 9))
def store(context, addresses, data, mask, width, elements, shared, ordered, site):
    """Store vectors of numbers; the arguments are those of `load`."""
    slots = _numbers(context)
    at = _numbers(addresses)
    for lane in range(LANES):
        if mask >> lane & 1:
            place, shadow = _find(slots, at[lane], width * elements, shared, lane, site)
            if place:
                for e in range(elements):
                    value = _get(data + e * ROW + lane * width, width)
                    if slots[Slot.RACES]:
                        differs = _get(place + e * width, width) != value
                        own = shadow + _SHADOW_BYTES * e * width
                        _note_write(slots, own, width, ordered, differs, lane, site)
                    _set(place + e * width, width, value)


@compiled()
def _float_of(bits, width):
    """Return the float32 or float64 with some bits as float64, which holds both."""
    place = np.empty(1, np.uint64)
    place[0] = bits
    return np.float64(place.view(np.float32)[0]) if width == 4 else place.view(np.float64)[0]


@compiled()
def _bits_of(value, width):
    place = np.zeros(1, np.float64)
    if width == 4:
        place.view(np.float32)[0] = np.float32(value)
    else:
        place[0] = value
    return place.view(np.uint64)[0]


@compiled()
def _combined(operation, letter, width, before, value, second):
    """Return what an atomic operation leaves behind."""
    if operation == 3:
        return value
    if operation == 4:
        return second if before == value else before
    if operation == 5:
        return before & value
    if operation == 6:
        return before | value
    if operation == 7:
        return before ^ value
    if letter == 3:
        a, b = _float_of(before, width), _float_of(value, width)
        # The sum of two float32 numbers, rounded to float64 and then to float32, is the sum rounded once.
        return _bits_of(a + b if operation == 0 else min(a, b) if operation == 1 else max(a, b), width)
    if operation == 0:
        return before + value
    unused = np.uint64(64 - 8 * width)
    if letter == 1:
        a, b = np.int64(before << unused), np.int64(value << unused)
        less = a < b
    else:
        less = before < value
    return before if less == (operation == 1) else value


@c_function(types.void(*[_NUMBER] * 9))
def atomic(context, addresses, data, mask, width, code, letter, shared, site):
    """Apply an atomic operation in one thread after the other.

    Parameters
    ----------
    data : address
        The operands in row 0, those of ``cas`` that replace in row 1; row 0 receives what was there before.
    code, letter : int
        Indices of OPERATIONS and LETTERS.
    """
    slots = _numbers(context)
    at = _numbers(addresses)
    for lane in range(LANES):
        if mask >> lane & 1:
            place, shadow = _find(slots, at[lane], width, shared, lane, site)
            if place:
                value, before = _get(data + lane * width, width), _get(place, width)
                second = _get(data + ROW + lane * width, width)
                after = _combined(code, letter, width, before, value, second)
                if slots[Slot.RACES]:
                    _note_write(slots, shadow, width, 1, True, lane, site)
                _set(place, width, after)
                _set(data + lane * width, width, before)
