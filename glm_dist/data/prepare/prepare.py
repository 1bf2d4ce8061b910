"""Text files to a token file: parallel, in order, in bounded memory, and safe to kill.

One process reads blocks of text in order; workers tokenise them; the same process appends the
tokens in the order of the text, so the output does not depend on the number of workers.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_dist.data.corpus.indexed import bin_path, idx_path
from glm_dist.data.corpus.manifest import JOURNAL, PARTIAL, Manifest, manifest_path, read_manifest
from glm_dist.data.prepare.inputs import expand_inputs
from glm_dist.data.prepare.journal import Journal, PartialCorpus, Source, hash_text, source_of
from glm_dist.data.prepare.output import check_prefix, refuse_existing, writing
from glm_dist.data.prepare.readers import BadLine, TextOptions
from glm_dist.data.prepare.tokenize import tokenise_in_order
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.errors import DataError
from glm_dist.files import exists


@dataclass(frozen=True)
class Progress:
    """How far a preparation is."""

    done_bytes: int
    """Bytes of the input files that have been tokenised."""
    total_bytes: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Prepared:
    """Outcome of a preparation."""

    manifest: Manifest
    bad_lines: tuple[BadLine, ...]
    """Lines that this call skipped, in order."""
    was_complete: bool
    """Whether an earlier call had finished already."""


def prepare(
    inputs: Sequence[str],
    output: str | Path,
    *,
    tokenizer: TokenizerSpec,
    options: TextOptions,
    num_workers: int = 1,
    max_bad_lines: int = 100,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Prepared:
    """Tokenise files into one corpus: ``output``.bin, .idx and .json.

    Args:
        inputs: Files, folders and patterns.
        output: Prefix of the corpus; its folder is made.
        tokenizer: Vocabulary to use.
        options: How documents are taken out of files.
        num_workers: Processes that tokenise; no effect on the output.
        max_bad_lines: Lines without a document that are skipped and reported; one more stops.
        overwrite: Replace a finished corpus that was made otherwise.
        report: Called after each block.

    Raises:
        DataError: An input is missing or damaged, there are too many bad lines or no text at all,
            ``output`` is no prefix or holds another corpus, or the disk is full.
    """
    check_prefix(output)
    sources = tuple(map(source_of, expand_inputs(inputs)))
    _check_inputs_stay(sources, output)
    opened = open_tokenizer(tokenizer)
    identity: dict[str, object] = {
        "tokenizer": opened.fingerprint,
        "text_key": options.text_key,
        "text_unit": options.text_unit.value,
        "inputs": [[source.path, source.bytes] for source in sources],
    }
    finished = _finished_before(output, identity, options, overwrite=overwrite)
    if finished is not None:
        shutil.rmtree(f"{output}{PARTIAL}", ignore_errors=True)  # a kill may have left it behind
        return Prepared(finished, bad_lines=(), was_complete=True)
    corpus = PartialCorpus(output, Journal(identity, sources))
    bad_lines: list[BadLine] = []
    with writing(output, resumes=True), corpus.opened(options):
        if not corpus.journal.is_complete:
            _check_bad_lines(corpus, bad_lines, most=max_bad_lines)  # of the call that stopped
            blocks = corpus.pending_blocks(options)
            for block, tokens in tokenise_in_order(
                blocks, tokenizer, options, num_workers=num_workers
            ):
                bad_lines += tokens.bad_lines
                corpus.append(block, tokens)
                _check_bad_lines(corpus, bad_lines, most=max_bad_lines)
                report(_progress(corpus.journal))
            corpus.complete()
        _check_has_text(corpus.journal)
        manifest = corpus.publish(tokenizer=opened.fingerprint, vocab_size=opened.vocab_size)
    return Prepared(manifest, tuple(bad_lines), was_complete=False)


def _finished_before(
    output: str | Path, identity: dict[str, object], options: TextOptions, *, overwrite: bool
) -> Manifest | None:
    """Recognise the corpus of an earlier call."""
    manifest = None if overwrite else read_manifest(output)
    began = exists(Path(f"{output}{PARTIAL}", JOURNAL))
    if manifest is None and not overwrite and not began:
        # What another tool wrote has no manifest that tells how to make it again.
        refuse_existing(
            [bin_path(output), idx_path(output)],
            found="there already, without a manifest",
            expected="no corpus, or the one that this command makes",
            fix="choose another --output, or replace it with --overwrite",
        )
    if manifest is None or not (exists(bin_path(output)) and exists(idx_path(output))):
        return None
    changed = [name for name, value in identity.items() if manifest.options.get(name) != value]
    changed = changed or _changed_sources(output, manifest, options)
    if not changed:
        return manifest
    raise DataError(
        key=str(output),
        found=f"a corpus that differs in {' and '.join(changed)}",
        expected="no corpus, or the one that this command makes",
        fix="choose another --output, or replace it with --overwrite",
    )


def _check_inputs_stay(sources: Sequence[Source], output: str | Path) -> None:
    """The manifest <output>.json must not take the place of a text."""
    taken = manifest_path(output).absolute()
    for source in sources:
        if Path(source.path).absolute() == taken:
            raise DataError(
                key="--output",
                found=f"{output}, whose manifest would replace the input {source.path}",
                expected="a prefix whose .json is no input",
                fix="choose another --output, in another folder than the text",
            )


def _changed_sources(output: str | Path, manifest: Manifest, options: TextOptions) -> list[str]:
    """Name the inputs that were written after the corpus and hold other text than then."""
    written_at = manifest_path(output).stat().st_mtime_ns
    changed = []
    for source in manifest.sources:
        path = Path(str(source["path"]))
        if path.stat().st_mtime_ns < written_at:
            continue
        if hash_text(path, options) != source["sha256"]:
            changed.append(f"the text of {path}")
    return changed


def _check_bad_lines(corpus: PartialCorpus, bad_lines: list[BadLine], *, most: int) -> None:
    count = corpus.journal.bad_lines
    if count > most:
        corpus.save()
        shown = "; ".join(str(line) for line in bad_lines[:5])
        raise DataError(
            key="--max-bad-lines",
            found=f"{count} lines without a document{f', such as {shown}' if shown else ''}",
            expected=f"at most {most}",
            fix="allow more with --max-bad-lines, which goes on where it stopped; or mend the"
            f" files, remove {corpus.folder} and begin again",
        )


def _check_has_text(journal: Journal) -> None:
    if journal.documents == 0:
        raise DataError(
            key=", ".join(source.path for source in journal.sources[:5]),
            found="no text",
            expected="at least one document",
            fix="check the files and --text-key",
        )


def _progress(journal: Journal) -> Progress:
    sources = journal.sources
    done = sum(source.bytes for source in sources[: journal.current])
    current = sources[journal.current]
    return Progress(
        done_bytes=done + int(current.bytes * current.share),
        total_bytes=sum(source.bytes for source in sources),
        documents=journal.documents,
        tokens=journal.tokens,
    )
