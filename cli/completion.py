"""``onnxcomp completion``: what a shell needs to complete the command line."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete, get_completion_class

from onnxcomp.cli.completing import wire

__all__ = ["VARIABLE", "answer", "completion"]

VARIABLE = "_ONNXCOMP_COMPLETE"
"""The environment variable in which a script says that it wants proposals."""

_PROGRAM = "onnxcomp"

# As click's own but for models, which only a shell lists as it lists files, and for words that go on. Nothing of an
# item is cut at commas: pipelines have them.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n'
    local response completion type value words=("${COMP_WORDS[@]}") at=$COMP_CWORD
    local word="${words[at]#[\\"\\']}"
    if [[ ${words[at - 1]} == '=' ]]; then  # bash takes --flag=value for three words
        words=("${words[@]:0:at - 1}" "${words[@]:at}") at=$((at - 1))
    fi

    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$at %(complete_var)s=bash_complete $1)

    COMPREPLY=()
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            compopt -o default
        elif [[ $type == 'model' ]]; then
            compopt -o filenames
            COMPREPLY+=($(compgen -d -- "$word"; compgen -f -X '!*.onnx' -- "$word"))
        else
            [[ $type == 'open' ]] && compopt -o nospace
            COMPREPLY+=("$value")
        fi
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a completions open response
    (( ! $+commands[%(prog_name)s] )) && return 1

    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s)}")

    for type key descr in ${response}; do
        if [[ "$type" == "plain" ]]; then
            completions+=("$key")
        elif [[ "$type" == "open" ]]; then
            open+=("$key")
        elif [[ "$type" == "dir" ]]; then
            _path_files -/
        elif [[ "$type" == "file" ]]; then
            _path_files -f
        elif [[ "$type" == "model" ]]; then
            _files -g '*.onnx'
        fi
    done

    [ -n "$completions" ] && compadd -V unsorted -a completions
    [ -n "$open" ] && compadd -S '' -V unsorted -a open
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH = """\
function %(complete_func)s
    set -l response (env %(complete_var)s=fish_complete \\
        COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) %(prog_name)s)

    for completion in $response
        set -l metadata (string split -m 1 "," -- $completion)
        if test $metadata[1] = "dir"
            __fish_complete_directories $metadata[2]
        else if test $metadata[1] = "file"
            __fish_complete_path $metadata[2]
        else if test $metadata[1] = "model"
            __fish_complete_suffix $metadata[2] .onnx
        else
            echo $metadata[2]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""

_TEMPLATES = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_CLASSES: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(short_help="Print the script that lets a shell complete commands.")
@click.argument("shell", type=click.Choice(list(_TEMPLATES)))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete commands, flags, passes with their options, targets and models.

    \b
    bash: put  eval "$(onnxcomp completion bash)"  into ~/.bashrc
    zsh:  put  eval "$(onnxcomp completion zsh)"   into ~/.zshrc, behind compinit
    fish: onnxcomp completion fish > ~/.config/fish/completions/onnxcomp.fish
    """
    made = _CLASSES[shell](click.Group(), {}, _PROGRAM, VARIABLE)
    click.echo(_TEMPLATES[shell] % made.source_vars(), nl=False)


def answer(group: click.Group, instruction: str) -> int:
    """Print proposals for the command line that a script passes on; 1 where it is no script of ours that asks."""
    shell, _, wanted = instruction.partition("_")
    kind = get_completion_class(shell)
    if kind is None or shell not in _CLASSES or wanted != "complete":
        return 1
    wire(group)
    click.echo(kind(group, {}, _PROGRAM, VARIABLE).complete())
    return 0
