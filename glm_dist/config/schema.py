"""What each configuration section may say: names, types, units, sources.

Values live in ``conf/``; a field has a default here only where the default means "off". A field
without a value is ``MISSING``, which OmegaConf reports with the full key when nobody sets it.
Checks between sections are in ``checks.py``.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

MISSING: Any = "???"  # OmegaConf's mark; spelled out so that only load.py imports omegaconf


class TokenizerKind(Enum):
    """Families of tokenizers; each fixes the official ids of GLM's special tokens."""

    sentencepiece = "sentencepiece"
    chinese_sentencepiece = "chinese_sentencepiece"
    bert = "bert"
    gpt2 = "gpt2"
    roberta = "roberta"
    huggingface = "huggingface"


class PretrainingTask(Enum):
    """What a row trains: GLM's blank infilling, or one of the baselines the paper compares with."""

    blank_infilling = "blank_infilling"


class Dtype(Enum):
    """Number format of weights and activations during a step."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class LRScheduleKind(Enum):
    """Shape of the learning rate after warm-up."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class LossNormalization(Enum):
    """What a step's summed loss is divided by."""

    global_tokens = "global_tokens"
    micro_batch = "micro_batch"


class Resume(Enum):
    """What to do about checkpoints already in the run folder."""

    auto = "auto"
    must = "must"
    never = "never"


class WandbMode(Enum):
    """Where Weights & Biases records go."""

    off = "off"
    online = "online"
    offline = "offline"


@dataclass
class RunSection:
    """Identity and length of the run."""

    name: str = MISSING
    """Folder under paths.runs; chosen by the user or launcher, never from a clock."""
    seed: int = MISSING
    """Seeds initialisation, dropout and data; same seed, same run."""
    steps: int = MISSING
    """Optimizer updates to reach; a resumed run stops at the same number."""


@dataclass
class ModelConfig:
    """Architecture of the Transformer (conf/model)."""

    num_layers: int = MISSING
    hidden_size: int = MISSING
    num_attention_heads: int = MISSING
    max_position_embeddings: int = MISSING
    """P: both position tables have P + 1 rows, as the official model's."""
    hidden_dropout: float = MISSING
    """After embedding, attention output and MLP output. GLM pretrains with 0.1."""
    attention_dropout: float = MISSING
    """On attention probabilities. GLM pretrains with 0.1."""
    layernorm_epsilon: float = MISSING
    """GLM uses 1e-5 everywhere."""
    init_std: float = MISSING
    """Normal initialisation; output projections are divided by sqrt(2 * num_layers). GLM: 0.02."""


@dataclass
class TokenizerConfig:
    """Text to token ids (conf/tokenizer)."""

    kind: TokenizerKind = MISSING
    path: str = MISSING
    """Model file, or folder with the vocabulary files of the kind."""
    vocab_size: int = MISSING
    """Token ids including special tokens, before padding to a multiple of 128."""
    task_masks: bool = MISSING
    """Whether [gMASK] and [sMASK] exist beside [MASK] (2B, 10B and the Chinese models)."""
    fixed_task_masks: bool = True
    """Chinese kind only: false gives the ids of GLM-10B-Chinese, where [gMASK] equals eop."""


@dataclass
class CorpusConfig:
    """One prepared corpus."""

    prefix: str = MISSING
    """Path without .bin/.idx, as `glm-dist prepare` wrote it."""
    weight: float | None = None
    """Share in the blend, relative to the others; unset: in proportion to its tokens."""


@dataclass
class DataConfig:
    """Where rows come from (conf/data)."""

    corpora: dict[str, CorpusConfig] = MISSING
    validation_share: float = MISSING
    """Share of documents held out for validation, 0 to 1. Official split: 0.05."""
    test_share: float = MISSING
    """Share of documents held out and never read in training. Official split: 0.001."""
    num_workers: int = MISSING
    """Loader processes per rank; 0 builds rows in the training process."""
    prefetch: int = MISSING
    """Micro-batches each loader worker keeps ready."""


@dataclass
class CorruptionConfig:
    """How text becomes blanks (conf/corruption). Official names in brackets."""

    task: PretrainingTask = MISSING
    span_share: float = MISSING
    """Share of rows with the short-span objective [bert-prob]."""
    sentence_share: float = MISSING
    """Share of rows with the sentence objective [gap-sentence-prob]."""
    document_share: float = MISSING
    """Share of rows with the document objective [gpt-prob]; the three add up to 1."""
    span_mask_ratio: float = MISSING
    """Share of tokens masked by spans, 0 to 1. GLM: 0.15."""
    span_mean_length: float = MISSING
    """Poisson mean of span lengths, in tokens. GLM: 3."""
    sentence_mask_ratio: float = MISSING
    """Share of tokens masked by whole sentences, 0 to 1. GLM: 0.15."""
    document_min_ratio: float = MISSING
    """Shortest generated share of a document row, 0 to 1 [gpt-min-ratio]. Paper 0.5, 10B 0.25."""
    document_suffix_share: float = MISSING
    """Share of document rows that generate the tail rather than a middle [gpt-infill-prob]."""


@dataclass
class BatchConfig:
    """How many rows of what length (conf/batch)."""

    global_batch_size: int = MISSING
    """Rows per step over all replicas."""
    micro_batch_size: int = MISSING
    """Rows per forward on one replica; does not change the result."""
    row_length: int = MISSING
    """Tokens of Part A and Part B together in one fixed-shape row."""


@dataclass
class ParallelConfig:
    """Degrees of parallelism (conf/parallel)."""

    tensor_parallel_size: int = MISSING
    pipeline_parallel_size: int = MISSING
    data_parallel_size: int | None = None
    """Replicas; unset fills the started processes."""


@dataclass
class ZeroConfig:
    """DeepSpeed ZeRO sharding over replicas (conf/zero)."""

    stage: int = MISSING
    """0 none, 1 optimizer, 2 and gradients, 3 and parameters. Pipelines allow 0 and 1."""
    reduce_bucket_size: int = MISSING
    """Gradient elements reduced in one collective. Official 10B: 5e7."""
    allgather_bucket_size: int = MISSING
    """Parameter elements gathered in one collective. Official 10B: 5e8."""
    overlap_comm: bool = MISSING
    """Reduce gradients while backward runs (stages 2 and 3)."""


@dataclass
class PrecisionConfig:
    """Number formats (conf/precision)."""

    dtype: Dtype = MISSING
    initial_loss_scale_power: int = MISSING
    """fp16 only: first loss scale is 2 to this power."""
    loss_scale_window: int = MISSING
    """fp16 only: steps without overflow before the scale doubles. GLM: 1000."""
    loss_scale_hysteresis: int = MISSING
    """fp16 only: overflows tolerated before the scale halves. GLM: 2."""
    min_loss_scale: float = MISSING
    """fp16 only: the scale never falls below this. GLM: 1."""


@dataclass
class OptimizerConfig:
    """AdamW with decoupled weight decay (conf/optimizer)."""

    learning_rate: float = MISSING
    """Peak learning rate."""
    beta1: float = MISSING
    beta2: float = MISSING
    epsilon: float = MISSING
    weight_decay: float = MISSING
    """On every weight but LayerNorm parameters and biases."""
    gradient_clipping: float = MISSING
    """Largest global gradient norm; 0 turns clipping off. GLM: 1.0."""


@dataclass
class LRScheduleConfig:
    """Learning rate over steps (conf/lr_schedule)."""

    kind: LRScheduleKind = MISSING
    warmup_share: float = MISSING
    """Share of decay_steps spent in linear warm-up, 0 to 1."""
    decay_steps: int = MISSING
    """Steps after which the rate stays at its floor."""
    decay_to_ratio: float = MISSING
    """Floor as a share of the peak, 0 to 1."""


@dataclass
class LossConfig:
    """Normalisation of the loss (conf/loss)."""

    normalize_by: LossNormalization = MISSING


@dataclass
class EvaluationConfig:
    """Validation during training (conf/evaluation)."""

    interval: int = MISSING
    """Steps between validations; 0 turns validation off."""
    rows_per_objective: int = MISSING
    """Validation rows read for each objective, the same at every validation."""


@dataclass
class CheckpointConfig:
    """Saving and resuming (conf/checkpoint)."""

    interval: int = MISSING
    """Steps between checkpoints; 0 saves nothing. The last step is saved as well."""
    keep_last: int = MISSING
    """Newest complete checkpoints kept; older ones are removed."""
    resume: Resume = MISSING
    """auto: continue if a checkpoint exists; must: refuse to start anew; never: refuse to continue."""


@dataclass
class ObserveConfig:
    """What is shown and recorded (conf/observe)."""

    log_interval: int = MISSING
    """Steps between metric records."""
    progress_bar: bool = MISSING
    wandb_mode: WandbMode = MISSING
    """online falls back to offline where no API key is at hand."""
    wandb_project: str = MISSING
    wandb_entity: str | None = None


@dataclass
class PathsConfig:
    """Folders of this machine (conf/paths)."""

    data: str = MISSING
    """Prepared corpora and tokenizers."""
    runs: str = MISSING
    """Run folders: <runs>/<run.name>/."""


@dataclass
class RunConfig:
    """Everything one pretraining run depends on."""

    config_version: int = 1
    run: RunSection = MISSING
    model: ModelConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    data: DataConfig = MISSING
    corruption: CorruptionConfig = MISSING
    batch: BatchConfig = MISSING
    parallel: ParallelConfig = MISSING
    zero: ZeroConfig = MISSING
    precision: PrecisionConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    lr_schedule: LRScheduleConfig = MISSING
    loss: LossConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    checkpoint: CheckpointConfig = MISSING
    observe: ObserveConfig = MISSING
    paths: PathsConfig = MISSING
