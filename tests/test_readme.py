"""What the README says of the program is so."""

import re
from pathlib import Path

from app.settings import PREFIX, Settings

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROW = re.compile(rf"^\| `{PREFIX}.*$", re.MULTILINE)


def settings_table() -> list[str]:
    """A row of the README a setting: its variable, its default if it has one, and what it is for."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, "") else f" `{default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` |{shown} | {field.description} |")
    return rows


def test_the_settings_stand_in_the_readme_with_their_defaults_and_no_others() -> None:
    assert ROW.findall(README) == settings_table()


def test_no_setting_is_named_that_there_is_not() -> None:
    named = set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", README))
    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}
