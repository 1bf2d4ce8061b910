"""A corpus that is there already: the one that a command would make, or another."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from glm_dist.data.corpus.indexed import bin_path, idx_path
from glm_dist.data.corpus.manifest import PARTIAL, Manifest, manifest_path, read_manifest
from glm_dist.data.prepare.inputs import expand_inputs
from glm_dist.data.prepare.output import refuse_existing
from glm_dist.errors import DataError
from glm_dist.files import exists, sha256_of


def find_finished(
    output: str | Path, made_by: Mapping[str, object], inputs: Sequence[str]
) -> Manifest | None:
    """Find the corpus that a command has made before.

    Args:
        output: Prefix of the corpus.
        made_by: Options of the command, as a manifest holds them.
        inputs: Files, folders and patterns of the command.

    Returns:
        Its manifest; None if the command has still to make it.

    Raises:
        DataError: There is a corpus that the command would not make.
    """
    manifest = _read_finished(output)
    if manifest is None:
        return None
    try:
        files = expand_inputs(inputs)
    except DataError:
        # The text may have been removed since; what it gave is there.
        if _changed_options(manifest, made_by):
            raise
        return manifest
    _check_same_corpus(output, manifest, made_by, files)
    return manifest


def _read_finished(output: str | Path) -> Manifest | None:
    """Read the manifest of a corpus that an earlier call finished; None if there is none.

    Raises:
        DataError: The files of a corpus are there that has no manifest and that no call of ours
            was about to finish.
    """
    manifest = read_manifest(output)
    there = [exists(path(output)) for path in (bin_path, idx_path)]
    if manifest is None and not exists(f"{output}{PARTIAL}"):
        # What another tool wrote has no manifest that says how to make it again.
        refuse_existing(
            [bin_path(output), idx_path(output)],
            why=" and has no manifest that says how it was made",
            fix="Choose another --output, or replace it with --overwrite.",
        )
    return manifest if all(there) else None


def _changed_options(manifest: Manifest, made_by: Mapping[str, object]) -> list[str]:
    """List the options in which a command differs from the one that made a corpus.

    An option that did not exist then is None, which means that it is not used.
    """
    return [name for name, value in made_by.items() if manifest.options.get(name) != value]


def _check_same_corpus(
    output: str | Path, manifest: Manifest, made_by: Mapping[str, object], files: Sequence[Path]
) -> None:
    """Check that a finished corpus is what the command would make.

    Args:
        output: Prefix of the corpus.
        manifest: Its manifest.
        made_by: Options of the command.
        files: Input files of the command. They are compared by content, so they may have moved.

    Raises:
        DataError: It was made with other options or of other text.
    """
    shaping = {name: value for name, value in made_by.items() if name != "inputs"}
    changed = _changed_options(manifest, shaping)
    if not changed and len(files) != len(manifest.sources):
        changed = [f"its inputs ({len(manifest.sources)} files, now {len(files)})"]
    if not changed:
        written_at = manifest_path(output).stat().st_mtime_ns
        changed = [
            f"the text of {file}"
            for file, source in zip(files, manifest.sources, strict=True)
            if not _is_same(file, source, manifest, written_at)
        ]
    if changed:
        raise DataError(
            f"{output} is a corpus that differs in {' and '.join(changed)}.\n"
            "  Choose another --output, or replace it with --overwrite.",
            key="--output",
            value=str(output),
            fix="--overwrite",
        )


def _is_same(file: Path, source: Mapping[str, object], manifest: Manifest, written_at: int) -> bool:
    """Compare an input file with what a manifest notes of it, without reading it if possible."""
    facts = file.stat()
    if facts.st_size != source.get("bytes"):
        return False
    then = Path(str(source.get("path")))
    if file.resolve() == then.resolve() and facts.st_mtime_ns < written_at:
        return True
    return manifest.format > 1 and sha256_of(file) == source.get("sha256")
