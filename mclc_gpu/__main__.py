"""`python -m mclc_gpu`: the command line without an installed script, as torchrun starts it."""

from mclc_gpu.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
