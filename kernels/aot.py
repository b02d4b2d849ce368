"""What a Triton kernel takes of a GPU, found out by compiling it ahead of time, with or without a GPU."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def resources(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    arch: int,
    num_warps: int = 4,
    enable_fp_fusion: bool = False,
) -> dict[str, int]:
    """Compile a kernel for an NVIDIA architecture and read its resource usage from the machine code.

    Parameters
    ----------
    kernel : function decorated with ``triton.jit``
        Decorated outside Triton's interpreter, so in a process without ``TRITON_INTERPRET=1``.
    signature : dict
        Type of each argument by name, for example ``{"p_x": "*fp32", "size": "i32"}``. It may name more than
        the kernel has, and leave out those in `constexprs`.
    constexprs : dict
        Value of each ``tl.constexpr`` argument by name.
    arch : int
        Compute capability times ten: 80 (A100), 90 (H100, H200).
    num_warps, enable_fp_fusion
        Launch options.

    Returns
    -------
    dict
        ``registers`` per thread, ``spills`` (bytes of stack per thread), ``shared`` (bytes per program).

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
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        report = subprocess.run(
            [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", report)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    return {"registers": registers, "spills": stack, "shared": compiled.metadata.shared}
