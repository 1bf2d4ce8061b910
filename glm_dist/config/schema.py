"""Schema of the configuration: names, types, units and sources of every section.

What decides the result has its values in ``conf/``. A default here means "off", or plain: sections
that only decide how a run goes have one for every field, and so has every field added since
version 1, so that a configuration saved before it existed still says what it said. A field without
a value is ``MISSING``, which the loader reports with the full key when nobody sets it.
Ranges stand beside the fields and are checked when a section is built; rules that involve several
fields are in ``checks.py``, the named alternatives in ``choices.py``, the sections about the
model in ``architecture.py``, about the optimizer in ``optimization.py``, about text in
``text.py``, about instability in ``stability.py``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from glm_dist.config.architecture import ModelConfig as ModelConfig
from glm_dist.config.choices import Activation as Activation
from glm_dist.config.choices import Dtype as Dtype
from glm_dist.config.choices import Fusing as Fusing
from glm_dist.config.choices import InitWith as InitWith
from glm_dist.config.choices import LossNormalization as LossNormalization
from glm_dist.config.choices import LRScheduleKind as LRScheduleKind
from glm_dist.config.choices import Offload as Offload
from glm_dist.config.choices import PositionEncoding as PositionEncoding
from glm_dist.config.choices import PretrainingTask as PretrainingTask
from glm_dist.config.choices import PromptEncoder as PromptEncoder
from glm_dist.config.choices import RecomputeMode as RecomputeMode
from glm_dist.config.choices import Residual as Residual
from glm_dist.config.choices import Resume as Resume
from glm_dist.config.choices import TokenizerKind as TokenizerKind
from glm_dist.config.choices import WandbMode as WandbMode
from glm_dist.config.compare import CompareConfig as CompareConfig
from glm_dist.config.optimization import LRScheduleConfig as LRScheduleConfig
from glm_dist.config.optimization import OptimizerConfig as OptimizerConfig
from glm_dist.config.rules import LARGEST_WHOLE_NUMBER, MISSING, Section, bounded
from glm_dist.config.stability import NonFiniteAction as NonFiniteAction
from glm_dist.config.stability import SpikeAction as SpikeAction
from glm_dist.config.stability import StabilityConfig as StabilityConfig
from glm_dist.config.store_url import check_url
from glm_dist.config.task import ChoiceLoss as ChoiceLoss
from glm_dist.config.task import DecodeConfig as DecodeConfig
from glm_dist.config.task import Pool as Pool
from glm_dist.config.task import TaskConfig as TaskConfig
from glm_dist.config.task import TaskDataConfig as TaskDataConfig
from glm_dist.config.task import TaskKind as TaskKind
from glm_dist.config.text import CorpusConfig as CorpusConfig
from glm_dist.config.text import CorruptionConfig as CorruptionConfig
from glm_dist.config.text import DataConfig as DataConfig
from glm_dist.config.text import TokenizerConfig as TokenizerConfig
from glm_dist.config.watchdog import WatchdogConfig as WatchdogConfig
from glm_dist.errors import LaunchError

CONFIG_VERSION = 1
"""Version of the keys; raised, with a function in ``migrations.py``, when one moves or changes its
meaning. A new key needs no new version: its default means what was done before it existed."""

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this under every layout (official rule)."""


def pad_vocabulary(vocab_size: int) -> int:
    """Round up to the rows of the vocabulary embedding."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass
class RunSection(Section):
    """Identity and length of the run."""

    key: ClassVar[str] = "run"

    name: str = MISSING
    """Folder under paths.runs; chosen by the user or launcher, never from a clock."""
    seed: int = bounded(1234, at_least=0, at_most=LARGEST_WHOLE_NUMBER)
    """Seeds initialisation, dropout and data; same seed, same run."""
    steps: int = bounded(200_000, at_least=1)
    """Steps to reach, skipped fp16 updates included; a resumed run stops at the same number."""
    max_minutes: float = bounded(0.0, at_least=0, default=0.0)
    """Minutes after the start of the program within which a job saves and stops; 0: no limit."""
    init_from: str | None = None
    """Run folder or checkpoint folder that a new run takes its initial weights from, in any layout;
    unset: they are drawn. A run that has checkpoints itself continues from those."""
    init_with: InitWith = InitWith.weights
    """weights: begin at step 0 with a new optimizer, on any data; weights_and_optimizer: go on
    where that run stood, in step, learning rate and rows; architecture: a task takes that run's
    model and draws its weights."""


@dataclass
class BatchConfig(Section):
    """Number and length of the rows of a step (conf/batch)."""

    key: ClassVar[str] = "batch"

    global_batch_size: int = bounded(1024, at_least=1)
    """Rows per step over all replicas."""
    micro_batch_size: int = bounded(16, at_least=1)
    """Rows per forward on one replica; does not change the result."""
    row_length: int = bounded(564, at_least=16)
    """Tokens of Part A and Part B together in one fixed-shape row."""


@dataclass
class ParallelConfig(Section):
    """Degrees of parallelism (conf/parallel)."""

    key: ClassVar[str] = "parallel"

    tensor_parallel_size: int = bounded(1, at_least=1, default=1)
    """Processes that share each layer; must divide the heads."""
    pipeline_parallel_size: int = bounded(1, at_least=1, default=1)
    """Stages the layers are cut into; must divide them, unless stage_layers says otherwise."""
    data_parallel_size: int | None = None
    """Replicas; unset fills the started processes."""
    sequence_parallel: bool = False
    """Cut rows over the tensor-parallel processes wherever they do not share the layer: norms,
    dropout and residual stream need 1/tp of the memory, at equal traffic."""
    virtual_stages: int = bounded(1, at_least=1, default=1)
    """Chunks of layers on each pipeline process, which take turns: a shorter bubble for more
    traffic between stages. Micro-batches must divide by the number of stages."""
    stage_layers: list[int] = field(default_factory=list)
    """Layers of each stage (with virtual_stages: of each chunk, in the order in which rows pass);
    empty divides them evenly. The last stage also has the head, which costs about as much as
    vocab_size x share of targets / (12 hidden_size) layers."""
    timeout_minutes: int = bounded(30, at_least=1, at_most=1440, default=30)
    """Minutes after which processes that wait for each other give up and the job ends. Raise it
    where saving a checkpoint to a slow disk, or starting many processes, takes longer."""


@dataclass
class ZeroConfig(Section):
    """ZeRO sharding over replicas (conf/zero)."""

    key: ClassVar[str] = "zero"

    stage: int = bounded(1, at_least=0, at_most=3, default=0)
    """0 none, 1 optimizer, 2 and gradients, 3 and parameters. Pipelines allow 0 and 1. 0 and 1 keep
    fp32 sums of all gradients and are the fastest; 2 and 3 are DeepSpeed's and need less memory."""
    reduce_bucket_size: int = bounded(50_000_000, at_least=1, default=500_000_000)
    """Gradient elements reduced in one collective; a fraction of the model, to overlap. Official
    10B: 5e7."""
    allgather_bucket_size: int = bounded(500_000_000, at_least=1, default=500_000_000)
    """Parameter elements gathered in one collective by DeepSpeed (stages 2 and 3, offloading).
    Official 10B: 5e8."""
    overlap_comm: bool = False
    """Reduce gradients while backward runs, and with stage 1 gather weights while forward runs."""
    offload_optimizer: Offload = Offload.none
    """cpu: master weights and moments (12 bytes a parameter / replicas) stay in the host's memory,
    and the update runs there; not with stage 0."""


@dataclass
class RecomputeConfig(Section):
    """Activations that backward computes again instead of keeping them (conf/recompute)."""

    key: ClassVar[str] = "recompute"

    mode: RecomputeMode = RecomputeMode.none
    """selective: attention's inside, of use where scores are kept (see docs/performance.md);
    full: whole layers."""
    segment_layers: int = bounded(1, at_least=1, default=1)
    """full only: layers computed again from one kept input; must divide each stage's layers.
    Official name: checkpoint-num-layers."""


@dataclass
class PrecisionConfig(Section):
    """Number formats (conf/precision)."""

    key: ClassVar[str] = "precision"

    dtype: Dtype = MISSING
    """Of weights and activations; master weights, moments and gradient sums stay fp32."""
    initial_loss_scale_power: int = bounded(16, at_least=0, at_most=32)
    """fp16 only: first loss scale is 2 to this power."""
    loss_scale_window: int = bounded(1000, at_least=1)
    """fp16 only: steps without overflow before the scale doubles. GLM: 1000."""
    loss_scale_hysteresis: int = bounded(2, at_least=1)
    """fp16 only: overflows tolerated before the scale halves. GLM: 2."""
    min_loss_scale: int = bounded(1, at_least=1)
    """fp16 only: the scale never falls below this. GLM: 1."""


@dataclass
class CompileConfig(Section):
    """Fused kernels made at the start (conf/compile)."""

    key: ClassVar[str] = "compile"

    enabled: bool = False
    """Run whole layers through torch.compile; needs a C++ compiler, on GPUs Triton and gcc."""
    pointwise: Fusing = Fusing.auto
    """Fuse norms, biases, activations, dropout, residual sums and the loss into few kernels, which
    takes seconds at the start: on; off; auto: on GPUs, if Triton and gcc are there. Whole layers
    fuse their own operations."""


@dataclass
class LossConfig(Section):
    """Normalisation of the loss (conf/loss)."""

    key: ClassVar[str] = "loss"

    normalize_by: LossNormalization = MISSING
    """global_tokens: mean over the step's predicted tokens; micro_batch: official mean of means."""


@dataclass
class EvaluationConfig(Section):
    """Validation during training (conf/evaluation)."""

    key: ClassVar[str] = "evaluation"

    interval: int = bounded(1000, at_least=0, default=0)
    """Steps between validations; 0 turns validation off."""
    rows_per_objective: int = bounded(1024, at_least=0, default=0)
    """Validation rows read for each objective, the same at every validation."""
    tasks: list[str] = field(default_factory=list)
    """Files of examples that every validation measures as well (docs/evaluation.md)."""
    task_examples: int = bounded(256, at_least=1, default=256)
    """Examples of each of these files, drawn once from the whole file."""


@dataclass
class CheckpointConfig(Section):
    """Saving and resuming (conf/checkpoint)."""

    key: ClassVar[str] = "checkpoint"

    interval: int = bounded(1000, at_least=0, default=0)
    """Steps between checkpoints; 0 saves nothing. The last step is saved as well."""
    keep_last: int = bounded(3, at_least=0, default=0)
    """Newest verified checkpoints kept, and always two; older ones are removed."""
    keep_every: int = bounded(10000, at_least=0, default=0)
    """Checkpoints at multiples of this step are never removed; 0: off."""
    keep_best: bool = False
    """The checkpoint of the best validation (task.select; in pretraining, the first objective's
    loss) stays as well, and checkpoints/best.json names it. A best step is saved at once."""
    resume: Resume = Resume.never
    """auto: continue if there is a checkpoint; must: refuse to begin; never: refuse to continue."""
    background: bool = False
    """Training waits only for a copy into host memory, 12 bytes per parameter a rank updates."""
    timeout_minutes: int = bounded(60, at_least=0, at_most=10_080, default=0)
    """Time after which a save in the background has failed; 0: parallel.timeout_minutes."""
    step: int | None = None
    """Checkpoint of this run to go back to; later ones are set aside by name. Unset: the newest."""
    url: str | None = None
    """Folder on an object store, such as s3://bucket/glm, that also gets each checkpoint, below
    <run.name>/; a run without newer local ones resumes from there. Unset: local only."""

    def __post_init__(self) -> None:
        """Check the URL as well; see ``Section``."""
        super().__post_init__()
        check_url(self.url)


@dataclass
class ObserveConfig(Section):
    """Console output and records (conf/observe)."""

    key: ClassVar[str] = "observe"

    log_interval: int = bounded(10, at_least=1, default=10)
    """Steps between metric records."""
    progress_bar: bool = True
    """Bar with time left on a terminal; other outputs get lines."""
    peak_tflops: float = bounded(989.0, at_least=0, default=0.0)
    """Peak of one device in TFLOP/s for MFU; 0: from a table of GPUs in 16 bits, else no MFU."""
    wandb_mode: WandbMode = WandbMode.off
    """online falls back to offline where no API key is at hand."""
    wandb_project: str = "glm-dist"
    """Project of the records in Weights & Biases."""
    wandb_entity: str | None = None
    """User or team that owns them; unset: the account's default."""
    tensorboard: bool = False
    """Event files for TensorBoard in <run>/tensorboard; needs the extra `tensorboard`."""
    profile_steps: list[int] = field(default_factory=list)
    """Steps whose work is traced by torch's profiler, in <run>/profile, e.g. [100, 101]."""
    profile_ranks: list[int] = field(default_factory=lambda: [0])
    """Ranks that do so."""


@dataclass
class PathsConfig(Section):
    """Folders of this machine (conf/paths)."""

    key: ClassVar[str] = "paths"

    data: str = MISSING
    """Prepared corpora and tokenizers."""
    runs: str = MISSING
    """Run folders: <runs>/<run.name>/."""


@dataclass
class RunConfig:
    """Everything one run depends on."""

    config_version: int = CONFIG_VERSION
    """Version of the keys; a saved configuration of an older one is migrated when it is read."""
    run: RunSection = MISSING
    model: ModelConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    data: DataConfig = MISSING
    corruption: CorruptionConfig = MISSING
    task: TaskConfig = field(default_factory=TaskConfig)
    batch: BatchConfig = MISSING
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    precision: PrecisionConfig = MISSING
    compile: CompileConfig = field(default_factory=CompileConfig)
    optimizer: OptimizerConfig = MISSING
    lr_schedule: LRScheduleConfig = MISSING
    loss: LossConfig = MISSING
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    paths: PathsConfig = MISSING
    compare: CompareConfig = field(default_factory=CompareConfig)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the vocabulary embedding: the next multiple of 128 under every layout.

        [dBLOCK], an input that is never a target, takes the first row behind the vocabulary.
        """
        return pad_vocabulary(self.tokenizer.vocab_size + self.corruption.hides_inputs)

    @property
    def prompt_slots(self) -> range:
        """Token ids that stand for the vectors of the prompt: those behind the word table."""
        rows = self.padded_vocab_size
        return range(rows, rows + self.model.prompt_tokens)

    @property
    def run_dir(self) -> Path:
        """Folder of everything the run writes."""
        return Path(self.paths.runs) / self.run.name

    def data_parallel_size(self, world_size: int) -> int:
        """Replicas among the started processes.

        Args:
            world_size: Processes of the whole job.

        Raises:
            LaunchError: The processes do not divide into replicas, or not into as many as asked.
        """
        tp, pp = self.parallel.tensor_parallel_size, self.parallel.pipeline_parallel_size
        dp = self.parallel.data_parallel_size
        if dp is None and world_size % (tp * pp) == 0 and world_size > 0:
            return world_size // (tp * pp)
        started = f"{world_size} process{'es' if world_size > 1 else ''}"
        if dp is None:
            above = -(-world_size // (tp * pp)) * tp * pp
            below = above - tp * pp
            choices = f"{below} or {above}" if below > 0 else str(above)
            raise LaunchError(
                f"{started} cannot be split into replicas of tp x pp = {tp} x {pp} = {tp * pp}.\n"
                f"  Start {choices} processes, or choose another layout, e.g. parallel=dp.",
                key="world size",
                value=world_size,
                fix="parallel=dp",
            )
        if tp * pp * dp != world_size:
            raise LaunchError(
                f"{started} cannot be tp x pp x dp = {tp} x {pp} x {dp} = {tp * pp * dp}.\n"
                f"  Start {tp * pp * dp}, or set parallel.data_parallel_size=null for as many"
                " replicas as there are processes for.",
                key="world size",
                value=world_size,
                fix="parallel.data_parallel_size=null",
            )
        return dp

    def num_micro_batches(self, world_size: int) -> int:
        """Micro-batches each replica runs in a step.

        Args:
            world_size: Processes of the whole job; ``checks.py`` has seen that this divides.
        """
        rows = self.batch.micro_batch_size * self.data_parallel_size(world_size)
        return self.batch.global_batch_size // rows
