"""`python -m saga` is `saga`."""

from saga.cli.main import main

if __name__ == "__main__":
    main()
