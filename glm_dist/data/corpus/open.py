"""Open a corpus that a run reads, and see that it is the one its manifest describes."""

from glm_dist.data.corpus.indexed import IndexedTokens, open_indexed
from glm_dist.data.corpus.manifest import read_manifest
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import DataError


def open_corpus(name: str, prefix: str, *, tokenizer: Tokenizer) -> IndexedTokens:
    """Open a corpus.

    Args:
        name: Its key in ``data.corpora``.
        prefix: Path of its files without their endings.
        tokenizer: The run's. Corpora that other tools prepared have no manifest to compare it with.

    Raises:
        DataError: A file is missing or damaged, the manifest tells of other text, or the corpus was
            prepared with another tokenizer.
    """
    corpus = open_indexed(prefix)
    manifest = read_manifest(prefix)
    if manifest is None:
        return corpus
    if manifest.tokens != corpus.num_tokens or manifest.documents != corpus.num_documents:
        raise DataError(
            f"{prefix} holds {corpus.num_tokens} tokens in {corpus.num_documents} documents, but"
            f" its manifest says {manifest.tokens} in {manifest.documents}.\n"
            f"  Prepare data.corpora.{name} again with glm-dist prepare --overwrite.",
            key=f"data.corpora.{name}.prefix",
            value=prefix,
            fix="glm-dist prepare --overwrite",
        )
    if manifest.tokenizer != tokenizer.fingerprint:
        raise DataError(
            f"{prefix} was prepared with another tokenizer than the run's.\n"
            f"  corpus: {manifest.tokenizer}\n"
            f"  run:    {tokenizer.fingerprint}\n"
            f"  Set tokenizer.path to that of the corpus, or prepare data.corpora.{name} again with"
            " glm-dist prepare.",
            key=f"data.corpora.{name}.prefix",
            value=prefix,
            fix="tokenizer.path=…",
        )
    return corpus
