"""Settings from outside, a TOML file or `--set NAME=VALUE`, as values by name: "gear.paths" -> 4.

Whether a name exists and a value fits is checked where they are put to use: `config.HealConfig`.
"""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heal_ref.records import InputError

LARGEST = 2**20  # bytes of a file


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a file: {"gear.paths": 4} of `paths = 4` below `[gear]`.

    InputError, without the path, if it cannot be read, sets nothing, or sets something twice.
    """
    if not path.is_file():
        raise InputError("not a file; give a TOML file" if path.exists() else "no such file")
    if (size := path.stat().st_size) > LARGEST:
        raise InputError(f"{size:,} bytes are no file of settings; give a TOML file")
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise InputError(f"not UTF-8 (byte {e.start + 1}); save it as UTF-8") from e
    except (ValueError, RecursionError) as e:  # a ValueError also for a number of 5,000 digits
        why = "nested too deeply" if isinstance(e, RecursionError) else f"{e}"[:200]
        raise InputError(f"not valid TOML ({why}); a setting is a line such as paths = 4 below "
                         "[gear], each once") from e
    pairs = []
    for name, value in table.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        pairs += [(f"{name}.{key}".rstrip("."), one) for key, one in inner]
    if not pairs:
        raise InputError("it sets nothing; write lines such as paths = 4 below [gear]")
    return each_once(pairs)


def parse_setting(text: str) -> tuple[str, Any]:
    """`"gear.paths=4"` -> `("gear.paths", 4)`: a value as in TOML, a word also without quotes.

    InputError without a name, an "=" or a value.
    """
    name, _, given = (part.strip() for part in text.partition("="))
    if not name or not given:
        raise InputError(f"{text!r:.60} sets nothing; write NAME=VALUE, such as gear.paths=4")
    try:
        (value,) = tomllib.loads(f"value = {given}").values()
    except (ValueError, RecursionError):
        value = given
    return name, value


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs of name and value as a dict; InputError for a name that occurs twice."""
    settings: dict[str, Any] = {}
    for name, value in pairs:
        if name in settings:
            raise InputError(f"{name} is set twice, to {settings[name]!r:.60} and to {value!r:.60};"
                             " set it once")
        settings[name] = value
    return settings


def with_options(config: Any, texts: Sequence[str]) -> Any:
    """A `HealConfig` with the settings of each --set NAME=VALUE."""
    try:
        return config.with_settings(each_once([parse_setting(text) for text in texts]))
    except InputError as e:
        raise InputError(f"--set: {e}") from e


def no_such(name: str, names: Sequence[str]) -> str:
    """What is said of a `name` that is none of `names`: the close one, and the valid ones."""
    sections = list(dict.fromkeys(n.partition(".")[0] for n in names if "." in n))
    section, _, key = name.partition(".")
    within = [n.partition(".")[2] for n in names if n.startswith(f"{section}.")]
    if name in sections:
        return f"{name} is a section; set one of its values: {', '.join(within)}"
    elsewhere = [n for n in names if n.rpartition(".")[2] == key or n.rpartition(".")[2] == name]
    close = elsewhere or difflib.get_close_matches(name, names, n=1)
    meant = f", did you mean {close[0]}?" if close else ";"
    if within:
        return f"{name:.60} is no setting{meant} [{section}] has {', '.join(within)}"
    return (f"{name:.60} is no setting{meant} the sections are {', '.join(sections)}, and outside "
            f"of them there are {', '.join(n for n in names if '.' not in n)}")
