"""What the README says of the program is so."""

from pathlib import Path

from app.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_setting_stands_in_the_readme() -> None:
    described = {f"| `SEQSERVE_{name.upper()}` |": field.description for name, field in Settings.model_fields.items()}
    for name, description in described.items():
        assert name in README
        assert str(description) in README
