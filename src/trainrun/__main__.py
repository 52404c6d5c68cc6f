"""The command `trainrun`, also as `python -m trainrun`: it handles signals before anything slow is imported."""

from trainrun import interrupts


def main() -> None:
    """Import the command line and run it."""
    interrupts.install()
    from trainrun.cli.main import main as run  # noqa: PLC0415 - it takes a tenth of a second

    run()


if __name__ == "__main__":
    main()
