"""`trainrun completion`: the script that makes a shell complete command lines of trainrun."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from trainrun.cli.echo import echo

VARIABLE = "_TRAINRUN_COMPLETE"  # by which click's script asks, made of the program's name

# A key, a kind of fault, and every other start of a longer text: without a space behind it.
_NOSPACE = """\
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=:@] ]]; then
        compopt -o nospace 2>/dev/null
    fi

    return 0
"""


class _Bash(BashComplete):
    """click's script for bash, without a space after what is not complete."""

    source_template = BashComplete.source_template.replace("    return 0\n", _NOSPACE)

    @staticmethod
    def _check_version() -> None:
        """Do not start a bash to look at its version.

        The script may be meant for another machine.
        """


_SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def command(*, shell: str) -> None:
    """Print the completion script for a shell.

    It completes commands, run ids, plugins, hooks, keys of -o, checkpoint steps and faults.

    For bash, in ~/.bashrc: eval "$(trainrun completion bash)"

    For zsh, in ~/.zshrc after compinit: eval "$(trainrun completion zsh)"

    For fish, once: trainrun completion fish > ~/.config/fish/completions/trainrun.fish
    """
    from trainrun.cli.main import cli  # noqa: PLC0415 - main imports its commands lazily

    echo(_SHELLS[shell](cli, {}, "trainrun", VARIABLE).source(), nl=False)
