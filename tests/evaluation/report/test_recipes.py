"""Tables of recipes are shown by the report of their data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medkd.core.errors import DataError
from medkd.evaluation.report.recipes import parse, read_tables
from medkd.evaluation.report.write import make_report
from tests.evaluation.folders import make_dataset, make_run

TABLE = r"""# Which <small> student may teach

| teacher | student | method | runs | Dice | published |
|---|---|---|---|---|---|
| own | – | – | 2/2 | 0.872 [0.867, 0.877] | – |
| own | tiny | a\|b | 1/2 | – | DSC 84.1 |

- published: Table 3 of a paper
- failed: see /home/somebody/runs/a.log
"""


def keep(root: Path, name: str, dataset: str, text: str = TABLE) -> Path:
    folder = root / "reproductions" / name
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"dataset": dataset, "title": "", "path": "", "schema": 1}))
    (folder / "table.md").write_text(text, encoding="utf-8")
    return folder / "table.md"


def test_cells_titles_and_notes_are_read(tmp_path: Path) -> None:
    found = parse(keep(tmp_path, "mine", "Dataset004_Test"))
    assert found.head == ("teacher", "student", "method", "runs", "Dice", "published")
    assert found.rows[1] == ("own", "tiny", "a|b", "1/2", "–", "DSC 84.1") and len(found.rows) == 2
    assert found.title == "Which <small> student may teach" and found.notes[0] == "published: Table 3 of a paper"


def test_the_report_of_a_data_set_shows_its_recipes_and_no_others(tmp_path: Path) -> None:
    make_dataset(tmp_path, 4)
    make_run(tmp_path, "unet_tiny__3d_fullres", "unet_tiny", 1.0, {0: range(4)})
    assert "Tables of recipes" not in make_report(4, root=tmp_path).read_text(encoding="utf-8")
    keep(tmp_path, "mine", "Dataset004_Test")
    keep(tmp_path, "other", "Dataset005_Other", TABLE.replace("84.1", "12.3"))
    (tmp_path / "reproductions" / "begun").mkdir()
    text = make_report(4, root=tmp_path).read_text(encoding="utf-8")
    assert "Tables of recipes" in text and "DSC 84.1" in text and "Which &lt;small&gt; student" in text
    assert "12.3" not in text and "somebody" not in text


@pytest.mark.parametrize("text", ["", "something else\n", "# title\n", "# title\n| a | b |\n|---|---|\n| 1 |\n"])
def test_another_text_is_one_sentence(text: str, tmp_path: Path) -> None:
    keep(tmp_path, "mine", "Dataset004_Test", text)
    with pytest.raises(DataError, match=r"table\.md: expected the table of a recipe, found another text; medkd_reprod"):
        read_tables(tmp_path / "reproductions", "Dataset004_Test")
