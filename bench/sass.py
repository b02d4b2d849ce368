"""Inner loops in what nvdisasm prints."""

import re

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)([^;]*);")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_BRANCH = re.compile(r"\((\.L_x_\d+)\)")


def inner_bodies(assembly: str) -> list[list[str]]:
    """All innermost loops of a disassembled kernel, as the names of their instructions without modifiers.

    A loop lies between a branch backwards and where it leads.
    """
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := _INSTRUCTION.search(line):
            if found[1] == "BRA" and (target := _BRANCH.search(found[2])):
                branches.append((len(opcodes), target[1]))
            opcodes.append(found[1])
    loops = {(labels[target], place) for place, target in branches if labels[target] <= place}
    inner = [
        loop for loop in loops if not any(o != loop and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)
    ]
    return [opcodes[first : last + 1] for first, last in sorted(inner)]
