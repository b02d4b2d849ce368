"""What a Triton kernel takes of a GPU, found out by compiling it ahead of time, with or without a GPU."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Machine:
    """A kernel in machine code.

    Attributes
    ----------
    registers : int
        Per thread.
    spills : int
        Bytes of stack per thread.
    shared : int
        Bytes per program.
    assembly : str
        NVIDIA: what ``nvdisasm`` prints; AMD: what LLVM prints.
    """

    registers: int
    spills: int
    shared: int
    assembly: str


def machine_code(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    architecture: str,
    num_warps: int = 4,
    enable_fp_fusion: bool = False,
) -> Machine:
    """Compile a kernel for one architecture.

    Parameters
    ----------
    kernel : function decorated with ``triton.jit``
        Decorated outside Triton's interpreter, so in a process without ``TRITON_INTERPRET=1``.
    signature : dict
        Type of each argument by name, for example ``{"p_x": "*fp32", "size": "i32"}``. It may name more than
        the kernel has, and leave out those in `constexprs`.
    constexprs : dict
        Value of each ``tl.constexpr`` argument by name.
    architecture : str
        "sm_80" (A100), "sm_90" (H100, H200), or of AMD for example "gfx942" (MI300).
    num_warps, enable_fp_fusion
        Launch options.

    Raises
    ------
    RuntimeError
        The kernel was decorated for the interpreter.
    """
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            "kernel is interpreted: compile ahead of time in a process without TRITON_INTERPRET=1"
        )
    types = {name: "constexpr" if name in constexprs else signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=constexprs)
    options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
    nvidia = architecture.startswith("sm_")
    target = GPUTarget("cuda", int(architecture[3:]), 32) if nvidia else GPUTarget("hip", architecture, 64)
    compiled = triton.compile(source, target=target, options=options)
    shared = compiled.metadata.shared
    if not nvidia:
        text = compiled.asm["amdgcn"]
        registers, stack = _number(r"; NumVgprs: (\d+)", text), _number(r"; ScratchSize: (\d+)", text)
        return Machine(registers, stack, shared, text)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _output("cuobjdump", "--dump-resource-usage", cubin)
        text = _output("nvdisasm", "-c", cubin)
    return Machine(_number(r"\bREG:(\d+)", usage), _number(r"\bSTACK:(\d+)", usage), shared, text)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in the compiler's report"
    return int(found[1])


def _output(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
