"""`python -m trainrun` is the command `trainrun`."""

from trainrun.cli.main import main

if __name__ == "__main__":
    main()
