"""Links of the documents lead somewhere, and lists of files are whole."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])


def _slug(heading: str) -> str:
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", ""))
    return words.replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_of_documents_lead_somewhere(document: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", document.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists():
            broken.append(target)
        elif anchor and path.suffix == ".md":
            headings = re.findall(r"(?m)^#+ (.*)$", path.read_text(encoding="utf-8"))
            if anchor not in map(_slug, headings):
                broken.append(target)
    assert not broken, f"dead links: {broken}"


def test_readme_tour_names_the_files_of_one_step_in_order() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tour = readme.partition("## Read these files")[2].partition("\n## ")[0]

    stops = re.findall(r"(?m)^\d\. \[[^]]*\]\(([^)]+)\)", tour)

    assert stops == [
        "glm_dist/cli/main.py",
        "glm_dist/train/job.py",
        "glm_dist/train/loop.py",
        "glm_dist/train/step.py",
        "glm_dist/parallel/schedule.py",
        "glm_dist/model/stage.py",
        "glm_dist/data/objectives",
    ]


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs/adr"
    listed = (folder / "README.md").read_text(encoding="utf-8")

    records = sorted(path.name for path in folder.glob("[0-9]*.md"))

    assert [name for name in records if f"]({name})" not in listed] == []
