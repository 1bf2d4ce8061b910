"""Lines of text, some words of which are hidden."""

from collections.abc import Iterator
from pathlib import Path

from glm_dist.files import is_file
from glm_dist.tasks.readers.lines import no_example, text_lines
from glm_dist.tasks.readers.records import Record, Source

BLANK = "<blank>"
"""Mark of a blank in files that have their own."""


def blanks(source: Source) -> Iterator[Record]:
    """Yahoo's infilling: text, and text with blanks where there is a file x.blank besides x.txt."""
    blanked_file = Path(f"{str(source.file).removesuffix('.txt')}.blank")
    if not is_file(blanked_file):
        for where, text in text_lines(source.file):
            if text:
                yield Record(where, {"text": text})
        return
    lines = zip(text_lines(source.file), text_lines(blanked_file), strict=False)
    for (where, text), (place, blanked) in lines:
        if BLANK not in blanked:
            raise no_example(place, f"has no {BLANK}")
        yield Record(where, {"text": text, "blanked": blanked})
