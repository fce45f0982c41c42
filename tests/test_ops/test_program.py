"""Memory of programs: what lives at the same time lies apart, the rest shares."""

import ctypes
import random

import pytest
import torch

from mmclipq.ops import steps
from mmclipq.ops.cpu import program
from mmclipq.ops.cpu.library import why_unavailable
from mmclipq.ops.cpu.program import CpuProgram
from mmclipq.ops.program import Slot

needs_operators = pytest.mark.skipif(
    bool(why_unavailable()), reason=f'no CPU operators: {why_unavailable()}'
)


def copies(slots):
    """A program that copies each slot to the next."""
    made = CpuProgram(externals=2)
    for src, dst in zip(slots, slots[1:], strict=False):
        made.add(steps.Copy(rows=dst.rows), {'src': src, 'dst': dst})
    return made.finish()


def test_a_chain_needs_two_slots():
    slots = [Slot((1, 64, 4, 4), torch.int8) for _ in range(9)]
    assert copies(slots).size == 2 * 64 * 16


@pytest.mark.parametrize('seed', range(5))
def test_slots_that_live_together_lie_apart(seed):
    random.seed(seed)
    slots = [Slot((random.randint(1, 5000),), torch.uint8) for _ in range(40)]
    made = CpuProgram(externals=0)
    used = {}
    for step in range(60):
        pair = random.sample(range(40), 2)
        made.add(steps.Copy(), dict(zip(('src', 'dst'), (slots[i] for i in pair), strict=True)))
        for i in pair:
            used.setdefault(i, []).append(step)
    made.finish()
    ends = []
    for i, mine in used.items():
        start, end = slots[i].start, slots[i].start + slots[i].nbytes
        assert start % 64 == 0
        ends.append(end)
        for other, theirs in used.items():
            if other == i or max(mine) < min(theirs) or max(theirs) < min(mine):
                continue
            assert end <= slots[other].start or slots[other].start + slots[other].nbytes <= start
    assert max(ends) <= made.size < sum(slot.nbytes for slot in slots)


@needs_operators
def test_working_memory_is_used_again():
    outside = [Slot((1, 8, 3, 3), torch.int8, external=i) for i in (0, 1)]
    made = copies([outside[0], *(Slot((1, 8, 3, 3), torch.int8) for _ in range(3)), outside[1]])
    codes = [torch.randint(-128, 128, (1, 8, 3, 3), dtype=torch.int8) for _ in range(3)]
    idle = None
    for given in codes:
        given = given.contiguous(memory_format=torch.channels_last)
        result = torch.empty_like(given)
        with made.memory() as memory:
            assert memory.data_ptr() % 64 == 0
            with made.memory() as other:  # a run on another thread
                assert other.data_ptr() != memory.data_ptr()
            made.run(memory, [given, result])
        assert torch.equal(result, given)
        assert idle is None or len(program._idle) == idle
        idle = len(program._idle)


def test_structures_are_as_large_as_those_in_c():
    """Places and numbers of 8 bytes first keep the two languages' layouts the same."""
    sizes = {kind.__name__: ctypes.sizeof(kind) for kind in steps.KINDS}
    assert sizes == {
        'ProductStep': 80, 'Sum': 120, 'Quantize': 80, 'Dequantize': 56, 'Copy': 56,
        'MaxPool': 160, 'Upsample': 104, 'Flatten': 56, 'RoIAlign': 120, 'Lookup': 72,
        'Pairwise': 200, 'AvgPool': 184, 'Affine': 144,
    }  # fmt: skip
