"""Show runs on one page: losses, speed, memory, goodput, events, checkpoints, configuration.

glm-dist report runs/large_1                       writes report.html
glm-dist report runs/a runs/b --output both.html   two runs in the same charts, with what differs
glm-dist report runs/large_1 --live                serves the page while the run goes on

The page is one file without links to anything else, which opens in any browser. Run folders are
only read; the runs may be training meanwhile.
"""

import argparse
import sys
from pathlib import Path

from glm_dist.cli.arguments import refuse_given, whole_number
from glm_dist.errors import EXIT_FINISHED
from glm_dist.files import write_result
from glm_dist.report.live import LiveReport
from glm_dist.report.page import render_page, unique_labels
from glm_dist.report.run import Options, check_is_run, read_run
from glm_dist.report.server import DEFAULT_PORT, ReportServer

DEFAULT_OUTPUT = Path("report.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help=f"page to write (default: {DEFAULT_OUTPUT})",
    )
    parser.add_argument(
        "--live", action="store_true", help="serve the page on this machine, until Ctrl-C"
    )
    parser.add_argument(
        "--port",
        type=whole_number(at_least=0, at_most=65_535),
        help=f"port of --live (default: {DEFAULT_PORT}; 0: any free one)",
    )
    parser.add_argument(
        "--points",
        type=whole_number(at_least=0),
        default=Options.most_records,
        help="most records of one metric, extremes kept; 0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="hash the files of checkpoints, not only their sizes"
    )
    parser.add_argument(
        "--no-row", action="store_true", help="leave out the training row, which needs the corpora"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write or serve the page.

    Returns:
        Exit status.

    Raises:
        GlmDistError: A folder is no run, or the page cannot be written or served.
    """
    folders = list({folder.absolute(): folder for folder in arguments.runs}.values())
    for folder in folders:
        check_is_run(folder)
    labels = unique_labels(folders)
    options = Options(
        # Fewer would leave nothing between the ends.
        most_records=arguments.points and max(arguments.points, 100),
        verify=arguments.verify,
        row=not arguments.no_row,
    )
    if arguments.live:
        refuse_given(arguments, ["output"], add_arguments, why="has no effect with --live")
        return _serve(arguments, LiveReport(folders, labels, options))
    refuse_given(arguments, ["port"], add_arguments, why="has no effect without --live")
    output = arguments.output or DEFAULT_OUTPUT
    page = render_page([read_run(folder, options) for folder in folders], labels)
    write_result(output, page)
    sys.stdout.write(f"wrote {output} ({len(page) / 2**20:.1f} MiB)\n")
    return EXIT_FINISHED


def _serve(arguments: argparse.Namespace, report: LiveReport) -> int:
    """Serve until Ctrl-C, which is the way to end it."""
    port = DEFAULT_PORT if arguments.port is None else arguments.port
    with ReportServer(report, port=port) as server:
        sys.stdout.write(f"{server.url}\n  Open it in a browser; Ctrl-C ends.\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.stdout.write("\n")
    return EXIT_FINISHED
