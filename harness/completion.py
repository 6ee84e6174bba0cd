"""Tab completion in bash and zsh: `eval "$(harness completion)"`.

`harness` and `harness-plan` complete keys and choices as Hydra knows them; the other commands complete their own keys.
"""

import re
from collections.abc import Sequence

from harness.config.command import DONE, carry_out

SCRIPT = """\
[ -n "$ZSH_VERSION" ] && autoload -U bashcompinit && bashcompinit
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
_harness() {
  local command=${COMP_WORDS[0]##*/} word=${COMP_WORDS[COMP_CWORD]} rest=${COMP_LINE#* }
  case $command in
    harness-report) COMPREPLY=($(compgen -W '%(report)s' -- "$word")) ;;
    harness-doctor) COMPREPLY=($(compgen -W '%(doctor)s' -- "$word")) ;;
    harness-choose) COMPREPLY=($(compgen -W '%(choose)s' -- "$word")) ;;
    harness-predict) COMPREPLY=($(compgen -W '%(predict)s' -- "$word")) ;;
    harness-export) COMPREPLY=($(compgen -W '%(export)s' -- "$word")) ;;
    *) COMPREPLY=($(COMP_LINE="harness $rest" COMP_POINT=$((8 + ${#rest})) harness -sc query=bash 2>/dev/null)) ;;
  esac
}
complete -o nospace -o default -F _harness harness harness-{plan,report,doctor,choose,predict,export}
"""
KEY = re.compile(r"^ +([a-z][\w.]*=)", re.MULTILINE)
OPTION = re.compile(r"\b(doctor\.\w+=)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the script and return the exit status."""
    return carry_out(_print, str(__doc__), arguments, name="harness completion")


def _print(_: list[str]) -> int:
    print(script(), end="")
    return DONE


def script() -> str:
    """The script, with the keys that each command's own help lists."""
    from harness.adapters import export, predict
    from harness.choose import __main__ as choose
    from harness.doctor.__main__ import USAGE
    from harness.report import __main__ as report
    from harness.report import definitions

    keys = [*dict.fromkeys(KEY.findall(str(report.__doc__))), *definitions.names(), "--sync", "--help"]
    options = [*dict.fromkeys(OPTION.findall(USAGE)), "--help"]
    usages = {"choose": choose.USAGE, "predict": predict.USAGE, "export": export.USAGE}
    own = {name: [*KEY.findall(usage), "--help"] for name, usage in usages.items()}
    found = {"report": keys, "doctor": options, **own}
    return SCRIPT % {name: " ".join(words) for name, words in found.items()}
