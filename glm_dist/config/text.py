"""The sections about text: tokenizer, corpora, and how text becomes rows.

Part of the schema; see ``schema.py`` for its rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from glm_dist.config.choices import PretrainingTask, TokenizerKind
from glm_dist.config.rules import MISSING, Section, bounded


@dataclass
class TokenizerConfig(Section):
    """Text to token ids (conf/tokenizer)."""

    key: ClassVar[str] = "tokenizer"

    kind: TokenizerKind = MISSING
    """Family of the vocabulary; decides which ids the special tokens get."""
    path: str = MISSING
    """Model file, or folder with the vocabulary files of the kind."""
    vocab_size: int = bounded(30524, at_least=1)
    """Token ids including special tokens, before padding to a multiple of 128."""
    task_masks: bool = MISSING
    """True if [gMASK] and [sMASK] exist besides [MASK] (2B, 10B and the Chinese models)."""
    fixed_task_masks: bool = True
    """Chinese kind only: false gives the ids of GLM-10B-Chinese, where [gMASK] equals eop."""
    sentinel_pairs: int = bounded(32, at_least=0, at_most=65_536, default=0)
    """Pairs [MASKi] and <|startofpiecei|> behind the other ids; for corruption.sentinels and for
    span_corruption. A row needs about one for each three masked tokens."""


@dataclass(frozen=True)
class ReadRows:
    """All that decides which rows are read before a row."""

    skipped: list[range]
    """Skipped rows."""
    weights: dict[int, dict[str, float | None]]
    """Weights by first row of their stage and name of the corpus, without those of 0."""


@dataclass
class CorpusConfig:
    """One prepared corpus."""

    prefix: str = MISSING
    """Path without .bin/.idx, as `glm-dist prepare` wrote it."""
    weight: float | None = None
    """Share in the blend, relative to the others; unset: in proportion to its tokens. 0 for a
    corpus that enters in a later stage, also beside others without a weight."""
    stage_weights: list[float] = field(default_factory=list)
    """Weights in the later stages of the blend, one for each of data.stage_starts."""


@dataclass
class DataConfig(Section):
    """Source of the rows (conf/data)."""

    key: ClassVar[str] = "data"

    corpora: dict[str, CorpusConfig] = MISSING
    """By name: data.corpora.<name>.prefix=... adds one, ~data.corpora.<name> removes it."""
    validation_share: float = bounded(0.05, at_least=0, below=1)
    """Share of documents held out for validation, 0 to 1. Official split: 0.05."""
    validation_corpora: dict[str, str] = field(default_factory=dict)
    """Prefixes of corpora that are kept for validation, by name; no row of them is trained on."""
    test_share: float = bounded(0.001, at_least=0, below=1)
    """Share of documents held out and never read in training. Official split: 0.001."""
    stage_starts: list[int] = field(default_factory=list)
    """Training rows at which the blend changes to the corpora's stage_weights, rising. A stage that
    begins in the future may be added to a running job."""
    skip_rows: list[str] = field(default_factory=list)
    """Training rows that are left out, as first-last, rising, e.g. [1000-1499]; later rows move up.
    Rows ahead of a running job may be added: the way past a batch that makes it diverge."""
    num_workers: int = bounded(2, at_least=0)
    """Loader processes per rank; 0 builds rows in the training process."""
    prefetch: int = bounded(4, at_least=1)
    """Micro-batches each loader worker keeps ready."""

    @property
    def skipped(self) -> list[range]:
        """Ranges of ``skip_rows``, which ``blend.py`` has checked."""
        ends = [text.split("-") for text in self.skip_rows]
        return [range(int(first), int(last) + 1) for first, last in ends]

    def passing_over(self, rows: Sequence[str]) -> "DataConfig":
        """Return the section with more ranges of rows skipped, as first-last; they may overlap."""
        merged: list[range] = []
        more = replace(self, skip_rows=list(rows)).skipped
        for each in sorted([*self.skipped, *more], key=lambda rows: rows.start):
            if merged and each.start <= merged[-1].stop:
                merged[-1] = range(merged[-1].start, max(merged[-1].stop, each.stop))
            else:
                merged.append(each)
        return replace(self, skip_rows=[f"{r.start}-{r.stop - 1}" for r in merged])

    def row_index(self, number: int) -> int:
        """Return the index of a training row.

        Args:
            number: Training rows that are read before it.
        """
        for rows in self.skipped:
            if rows.start > number:
                break
            number += len(rows)
        return number

    def read_before(self, row: int) -> ReadRows:
        """Describe the rows that are read before a row.

        A continued run may change what is still to come, and nothing else.

        Args:
            row: Index of the first row that is still to come.
        """
        stages = {0: {name: corpus.weight for name, corpus in self.corpora.items()}}
        for number, start in enumerate(self.stage_starts):
            stages[start] = {name: c.stage_weights[number] for name, c in self.corpora.items()}
        return ReadRows(
            skipped=[range(s.start, min(s.stop, row)) for s in self.skipped if s.start < row],
            weights={
                start: {name: weight for name, weight in weights.items() if weight != 0}
                for start, weights in stages.items()
                if start < row
            },
        )


@dataclass
class CorruptionConfig(Section):
    """Ways to turn text into blanks (conf/corruption). Official names in brackets."""

    key: ClassVar[str] = "corruption"

    task: PretrainingTask = MISSING
    """blank_infilling is GLM; the others are the paper's baselines on the same model: masked_lm
    (BERT), causal_lm (GPT), span_corruption (T5, as a prefix model), unilm. They use
    span_mask_ratio and span_mean_length, and no shares."""
    span_share: float = bounded(1.0, at_least=0, at_most=1)
    """Share of rows with the short-span objective [bert-prob]."""
    sentence_share: float = bounded(0.3, at_least=0, at_most=1)
    """Share of rows with the sentence objective [gap-sentence-prob]."""
    document_share: float = bounded(0.2, at_least=0, at_most=1)
    """Share of rows with the document objective [gpt-prob]; the three add up to 1."""
    span_mask_ratio: float = bounded(0.15, above=0, below=1)
    """Share of tokens masked by spans, 0 to 1. GLM: 0.15."""
    span_mean_length: float = bounded(3.0, above=0, at_most=39)
    """Poisson mean of span lengths, in tokens. GLM: 3."""
    sentence_mask_ratio: float = bounded(0.15, above=0, below=1)
    """Share of tokens masked by whole sentences, 0 to 1. GLM: 0.15."""
    document_min_ratio: float = bounded(0.25, above=0, at_most=1)
    """Shortest generated share of a document row, 0 to 1 [gpt-min-ratio]. Paper 0.5, 10B 0.25."""
    document_suffix_share: float = bounded(0.5, at_least=0, at_most=1)
    """Share of document rows that generate the tail rather than a middle [gpt-infill-prob]."""
    block_mask_prob: float = bounded(0.1, at_least=0, at_most=1, default=0.0)
    """Chance that an input token of a short span is hidden by [dBLOCK] [block-mask-prob]."""
    short_share: float = bounded(0.02, at_least=0, at_most=1, default=0.0)
    """Share of rows whose window is cut into shorter texts, each a sample of its own
    [short-seq-prob]. Official target lengths: 32 tokens to the whole window."""
    single_span_share: float = bounded(0.05, at_least=0, at_most=1, default=0.0)
    """Share of rows with one span only [single-span-prob]; taken from all objectives."""
    keep_span_order: bool = False
    """Blanks left to right in Part B instead of shuffled [no-shuffle-block]."""
    random_positions: bool = False
    """Positions moved by a random offset, so that short rows train the whole table
    [random-position]."""
    sentinels: bool = False
    """Blanks distinguished by their own tokens, not by positions [sentinel-token]; needs
    tokenizer.sentinel_pairs."""
    no_block_positions: bool = False
    """Second position 1 in all of Part B [no-block-position], the paper's ablation."""
    isolate_documents: bool = False
    """Documents of a row do not see each other; official GLM lets them."""
    restart_positions: bool = False
    """Positions restart with each document of a row; official GLM counts on."""

    @property
    def hides_inputs(self) -> bool:
        """True if rows hold [dBLOCK]; only plain spans of blank infilling do."""
        plain_spans = self.span_share * (1 - self.single_span_share)
        is_infilling = self.task is PretrainingTask.blank_infilling
        return is_infilling and plain_spans * self.block_mask_prob > 0
