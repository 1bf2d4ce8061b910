"""Manifest that ``glm-dist prepare`` writes next to a corpus (``<prefix>.json``)."""

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from glm_dist.errors import DataError, GlmDistError
from glm_dist.files import is_file, write_atomically

FORMAT = 3
"""1: the hash of a source is that of hashes of its blocks of text. 2: it is that of the file.
3: the lines of documents are in a file of origins."""

PARTIAL = ".partial"
"""Ending of the folder in which a corpus is being written."""

FIRST_BYTES = b'{\n "tokenizer": '
"""First bytes of every manifest."""


@dataclass(frozen=True)
class Manifest:
    """Origin and size of a prepared corpus."""

    tokenizer: str
    """Fingerprint of the tokenizer."""
    vocab_size: int
    """Ids of the tokenizer; every token is below."""
    documents: int
    tokens: int
    """Tokens with those that open and close documents."""
    sources: list[dict[str, object]] = field(default_factory=list)
    """Each input file: path, bytes, hash, documents, tokens, bad lines."""
    options: dict[str, object] = field(default_factory=dict)
    """Options that shaped the output."""
    bin_sha256: list[str] = field(default_factory=list)
    """SHA-256 of each 64 MiB of the .bin file."""
    idx_sha256: str = ""
    origins_sha256: str = ""
    """Empty where the corpus has no file of origins."""
    format: int = FORMAT

    @property
    def bad_lines(self) -> int:
        """Lines that held no document, over all sources."""
        return sum(int(str(source.get("bad_lines", 0))) for source in self.sources)


def manifest_path(prefix: str | Path) -> Path:
    """Name the manifest of a corpus."""
    return Path(f"{prefix}.json")


def read_manifest(prefix: str | Path) -> Manifest | None:
    """Read a manifest; None where there is none (a corpus that Megatron-LM prepared).

    Raises:
        DataError: The file is damaged or of a later format.
    """
    file = manifest_path(prefix)
    if not is_file(file):
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise ValueError(f"format {content['format']}")
        if content.pop("checksum") != _checksum(content):
            raise ValueError("its checksum is wrong")
        return Manifest(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is no manifest of a corpus that this version can read: {error}.\n"
            "  Prepare the corpus again with glm-dist prepare --overwrite.",
            key=str(file),
            value=str(error),
            fix="glm-dist prepare --overwrite",
        ) from error


def is_manifest(file: Path) -> bool:
    """Tell whether a file is a manifest that can be read; others are hardly looked at."""
    if not is_file(file):
        return False
    try:
        with file.open("rb") as stream:
            if stream.read(len(FIRST_BYTES)) != FIRST_BYTES:
                return False
        return read_manifest(str(file).removesuffix(".json")) is not None
    except (GlmDistError, OSError):
        return False


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all."""
    content = asdict(manifest)
    content["checksum"] = _checksum(content)
    write_atomically(manifest_path(prefix), json.dumps(content, indent=1))


def _checksum(content: dict[str, object]) -> str:
    """Hash the manifest without its checksum."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
