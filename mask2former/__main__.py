"""`python -m mask2former COMMAND`, as torchrun starts it; the console script `mask2former` answers sooner."""

from mask2former.cli.commands import main

if __name__ == "__main__":
    main()
