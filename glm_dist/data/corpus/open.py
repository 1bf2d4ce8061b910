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
            key=f"data.corpora.{name}.prefix",
            found=f"{prefix}, {corpus.num_tokens} tokens in {corpus.num_documents} documents",
            expected=f"{manifest.tokens} tokens in {manifest.documents} documents, as its"
            " manifest says",
            fix="run `glm-dist prepare` for this corpus again",
        )
    if manifest.tokenizer != tokenizer.fingerprint:
        raise DataError(
            key=f"data.corpora.{name}.prefix",
            found=f"{prefix}, prepared with the tokenizer {manifest.tokenizer}",
            expected=f"a corpus prepared with the run's, {tokenizer.fingerprint}",
            fix="choose the tokenizer it was prepared with, or run `glm-dist prepare` again",
        )
    return corpus
