"""Text files to a token file: parallel, in order, in bounded memory, and safe to kill.

One process reads blocks of text in order; workers tokenise them; the same process writes the
tokens in the order of the text, so the output does not depend on the number of workers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from glm_dist.data.corpus.indexed import bin_path, idx_path, token_type_for
from glm_dist.data.corpus.manifest import Manifest, manifest_path, write_manifest
from glm_dist.data.corpus.origins import origins_path
from glm_dist.data.prepare.bad_lines import BadLine, BadLines, better_text_key
from glm_dist.data.prepare.finished import find_finished
from glm_dist.data.prepare.inputs import FileKind, expand_inputs
from glm_dist.data.prepare.output import check_prefix, writing
from glm_dist.data.prepare.readers import Block, TextOptions, read_blocks
from glm_dist.data.prepare.shards import Shard, ShardFolder
from glm_dist.data.prepare.tokenize import TokenBlock, tokenise_in_order
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.errors import DataError
from glm_dist.files import block_hashes, replacing, sha256_of

SHOWN_BAD_LINES = 5
"""Lines without a document that an error shows."""


@dataclass(frozen=True)
class Progress:
    """Progress of a preparation."""

    done_bytes: int
    """Bytes of the input files that have been tokenised."""
    total_bytes: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Prepared:
    """Outcome of a preparation."""

    manifest: Manifest
    bad_lines: BadLines
    """Lines that this call skipped."""
    was_complete: bool
    """True if an earlier call had finished already."""


def prepare(
    inputs: Sequence[str],
    output: str | Path,
    *,
    tokenizer: TokenizerSpec,
    options: TextOptions,
    num_workers: int = 1,
    max_bad_lines: int = 100,
    shuffle_seed: int | None = None,
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
        shuffle_seed: Seed of the order of documents, 0 to 2^64 - 1; None keeps that of the text.
        overwrite: Replace a finished corpus that was made otherwise.
        report: Called after each block.

    Raises:
        DataError: An input is missing or damaged, there are too many bad lines or no text at all,
            ``output`` is no prefix or holds another corpus, or the disk is full.
    """
    check_prefix(output)
    _check_inputs_stay([Path(name) for name in inputs], output)
    opened = open_tokenizer(tokenizer)
    recipe: dict[str, object] = {
        "tokenizer": opened.fingerprint,
        "text_key": options.text_key,
        "text_unit": options.text_unit.value,
    }
    made_by = {**recipe, "shuffle": shuffle_seed, "inputs": list(inputs)}
    shards = ShardFolder(output, recipe)
    finished = None if overwrite else find_finished(output, made_by, inputs)
    if finished is not None:
        shards.remove()  # a kill may have left it behind
        return Prepared(finished, BadLines(), was_complete=True)
    files = expand_inputs(inputs)
    _check_inputs_stay(files, output)
    with writing(output, resumes=True), shards.locked():
        work = _Work(shards, files, max_bad_lines=max_bad_lines, report=report)
        work.tokenise(tokenizer, options, num_workers=num_workers)
        _check_has_text(files, work)
        manifest = _publish(output, shards, work, made_by, opened.vocab_size, shuffle_seed)
        shards.remove()
    return Prepared(manifest, work.bad_lines, was_complete=False)


def _publish(
    output: str | Path,
    shards: ShardFolder,
    work: "_Work",
    options: dict[str, object],
    vocab_size: int,
    shuffle_seed: int | None,
) -> Manifest:
    """Join the shards to the files of the corpus, the manifest last."""
    paths = bin_path(output), idx_path(output), origins_path(output)
    with replacing(*paths) as (tokens, index, origins):
        shards.join(
            work.shards,
            tokens,
            index,
            origins,
            token_type=token_type_for(vocab_size),
            shuffle_seed=shuffle_seed,
        )
        manifest = Manifest(
            tokenizer=str(options["tokenizer"]),
            vocab_size=vocab_size,
            documents=work.documents,
            tokens=work.tokens,
            sources=[_source(file, parts) for file, parts in work.shards.items()],
            options=options,
            bin_sha256=block_hashes(tokens),
            idx_sha256=sha256_of(index),
            origins_sha256=sha256_of(origins),
        )
        manifest_path(output).unlink(missing_ok=True)  # it describes what is replaced now
    write_manifest(output, manifest)
    return manifest


class _Work:
    """Input files on their way to shards, with running totals."""

    def __init__(
        self,
        folder: ShardFolder,
        files: Sequence[Path],
        *,
        max_bad_lines: int,
        report: Callable[[Progress], None],
    ) -> None:
        """Take up the shards that are there."""
        self._folder = folder
        self._max_bad_lines = max_bad_lines
        self._report = report
        self._sizes = {file: file.stat().st_size for file in files}
        self._total_bytes = sum(self._sizes.values())
        self.shards = {file: folder.find(file) for file in files}
        """Shards of each input file, in order."""
        there = [shard for parts in self.shards.values() for shard in parts]
        self.documents = sum(shard.documents for shard in there)
        self.tokens = sum(shard.tokens for shard in there)
        self.bad_lines = BadLines()
        """Lines that this call skipped."""
        self.all_bad_lines = BadLines()
        """And those of calls that stopped."""
        for shard in there:
            self.all_bad_lines.add(BadLine(**line) for line in shard.first_bad_lines)
        self.all_bad_lines.count = sum(shard.bad_lines for shard in there)
        self._done_bytes = sum(
            self._sizes[file] for file, parts in self.shards.items() if parts and parts[-1].is_last
        )

    def tokenise(self, tokenizer: TokenizerSpec, options: TextOptions, *, num_workers: int) -> None:
        """Write the shards that are missing."""
        self._check_bad_lines()  # of the call that stopped
        blocks = (
            block
            for file, parts in self.shards.items()
            if not (parts and parts[-1].is_last)
            for block in self._blocks(file, parts, options)
        )
        pairs = tokenise_in_order(blocks, tokenizer, options, num_workers=num_workers)
        for name, of_file in groupby(self._counted(pairs), key=lambda pair: pair[0].file):
            file = Path(name)
            self.shards[file] = self._folder.write(file, of_file, after=self.shards[file])
            self._done_bytes += self._sizes[file]

    def _blocks(self, file: Path, parts: Sequence[Shard], options: TextOptions) -> Iterator[Block]:
        """Read what no shard holds; at least one block, so that an empty file has a shard."""
        start = parts[-1].end if parts else 0
        first_line = 1 + sum(shard.lines for shard in parts)
        block = None
        for block in read_blocks(file, options, start=start, first_line=first_line):
            yield block
        if block is None:
            yield Block(str(file), FileKind.jsonl, b"", first_line, start, lines=0, share=1.0)

    def _counted(
        self, pairs: Iterable[tuple[Block, TokenBlock]]
    ) -> Iterator[tuple[Block, TokenBlock]]:
        for block, tokens in pairs:
            self.documents += tokens.num_documents
            self.tokens += tokens.num_tokens
            self.bad_lines.add(tokens.bad_lines)
            self.all_bad_lines.add(tokens.bad_lines)
            self._check_bad_lines()
            yield block, tokens
            size = self._sizes[Path(block.file)]
            self._report(
                Progress(
                    done_bytes=self._done_bytes + int(size * block.share),
                    total_bytes=self._total_bytes,
                    documents=self.documents,
                    tokens=self.tokens,
                )
            )

    def _check_bad_lines(self) -> None:
        count = self.all_bad_lines.count
        if count <= self._max_bad_lines:
            return
        key = better_text_key(self.all_bad_lines.first)
        more = f"--max-bad-lines {2 * count}"
        fix = more if key is None else f"--text-key {key}"
        advice = f"Repair the files, or add {fix}"
        raise DataError(
            f"{count} lines hold no document; --max-bad-lines allows"
            f" {self._max_bad_lines}.{_shown(self.all_bad_lines)}\n"
            f"  {advice}; files that were read to their end are not read again.",
            key="--max-bad-lines",
            value=count,
            fix=fix,
        )


def _shown(bad_lines: BadLines) -> str:
    """Lines of a message that name the first lines without a document."""
    return "".join(f"\n    {line}" for line in bad_lines.first[:SHOWN_BAD_LINES])


def _source(file: Path, parts: Sequence[Shard]) -> dict[str, object]:
    """Describe an input file as the manifest does."""
    return {
        "path": str(file),
        "bytes": parts[-1].input_bytes,
        "lines": sum(shard.lines for shard in parts),
        "documents": sum(shard.documents for shard in parts),
        "tokens": sum(shard.tokens for shard in parts),
        "blank": sum(shard.blank for shard in parts),
        "bad_lines": sum(shard.bad_lines for shard in parts),
        "sha256": parts[-1].input_sha256,
    }


def _check_inputs_stay(files: Sequence[Path], output: str | Path) -> None:
    """The manifest <output>.json must not take the place of a text."""
    taken = manifest_path(output).absolute()
    for file in files:
        if file.absolute() == taken:
            raise DataError(
                f"--output {output} would replace the input {file} with its manifest.\n"
                "  Choose another --output, in another folder than the text.",
                key="--output",
                value=str(output),
                fix="choose another --output, in another folder than the text",
            )


def _check_has_text(files: Sequence[Path], work: _Work) -> None:
    if work.documents == 0:
        names = ", ".join(str(file) for file in files[:5])
        reasons = _shown(work.all_bad_lines)
        key = better_text_key(work.all_bad_lines.first)
        fix = "check the files and --text-key" if key is None else f"add --text-key {key}"
        raise DataError(
            f"There is no text in {names}.{reasons}\n  {fix[0].upper()}{fix[1:]}.",
            key="inputs",
            value=names,
            fix=fix,
        )
