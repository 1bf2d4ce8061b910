"""The file of messages reads back what was written."""

from tests.messages import normalised, parse, render


def test_messages_survive_the_file() -> None:
    messages = {
        "tests/a.py::test_x[one two]": "ConfigError: Wrong.\n\nSet a=b:\n  run.name=c",
        "tests/b.py::test_y #2": "Right.",
    }
    assert parse(render(messages)) == messages


def test_places_of_this_machine_are_replaced() -> None:
    roots = {"/tmp/x": "<base>", "/tmp/x/test_1": "<tmp>"}
    text = "no file /tmp/x/test_1/a; see /tmp/x/b (process 4711)"
    assert normalised(text, roots) == "no file <tmp>/a; see <base>/b (process <pid>)"
