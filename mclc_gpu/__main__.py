"""`python -m mclc_gpu`: the command line without an installed script, as torchrun starts it."""

import os

from mclc_gpu.cli.main import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from mclc_gpu.distributed import exit_process

        exit_process(code)
    raise SystemExit(code)
