"""Mistakes in a configuration or in the number of processes: the key at fault and a fix that works.

The sentences are in ``tests/messages.txt``.
"""

from dataclasses import dataclass

import pytest

from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.errors import GlmDistError
from tests.messages import Says


@dataclass(frozen=True)
class Case:
    """What is typed, the key at fault, and how many processes are started."""

    name: str
    overrides: list[str]
    key: str
    processes: int | None = None

    def error(self, *fix: str) -> GlmDistError | None:
        """What is answered, also with what a message proposed in place of what stood there."""
        fixed = {text.partition("=")[0] for text in fix}
        kept = [text for text in self.overrides if text.partition("=")[0] not in fixed]
        try:
            check_config(load_config([*kept, *fix]), world_size=self.processes)
        except GlmDistError as error:
            return error
        return None


def check_case(case: Case, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check what is said, and that its fix, where it can be typed as it is, is no mistake again."""
    monkeypatch.delenv("GLM_DATA", raising=False)
    monkeypatch.delenv("GLM_RUNS", raising=False)
    error = case.error()
    assert error is not None
    assert error.key == case.key
    says(error)
    if is_typed_as_it_is(error.fix):
        again = case.error(*error.fix.split())
        assert again is None or again.key != case.key, f"{error.fix} is answered with: {again}"


def is_typed_as_it_is(fix: str) -> bool:
    """Whether a fix is overrides without a <gap> for the user to fill."""
    return "=" in fix and "<" not in fix and "..." not in fix and not fix.startswith("export")


CASES = [
    Case(
        "a linear layer that does not exist",
        ["experiment=tiny", "model.lora_rank=4", "model.lora_targets=[linear_qkv,query]"],
        key="model.lora_targets",
    ),
    Case(
        "updates of no linear layer",
        ["experiment=tiny", "model.lora_rank=4", "model.lora_targets=[]"],
        key="model.lora_targets",
    ),
    Case(
        "a parameter to train that does not exist",
        ["experiment=tiny", "optimizer.trainable=['decoder.layer.1.*']"],
        key="optimizer.trainable",
    ),
    Case(
        "spans longer than any that is drawn",
        ["experiment=tiny", "corruption.span_mean_length=1000"],
        key="corruption.span_mean_length",
    ),
    Case(
        "rows beyond any table",
        ["experiment=tiny", "batch.row_length=100000000000"],
        key="batch.row_length",
    ),
    Case(
        "no sentinels for a task that needs them",
        ["experiment=tiny", "corruption.task=span_corruption"],
        key="tokenizer.sentinel_pairs",
    ),
    Case(
        "more sentinels than any vocabulary has room for",
        ["experiment=tiny", "tokenizer.sentinel_pairs=99999999999"],
        key="tokenizer.sentinel_pairs",
    ),
    Case("empty run name", ["experiment=tiny", "run.name=''"], key="run.name"),
    Case("run name with a slash", ["experiment=tiny", "run.name=a/b"], key="run.name"),
    Case("long run name", ["experiment=tiny", f"run.name='{'模' * 86}'"], key="run.name"),
    Case("no steps", ["experiment=tiny", "run.steps=0"], key="run.steps"),
    Case("negative seed", ["experiment=tiny", "run.seed=-1"], key="run.seed"),
    Case(
        "seed beyond 64 bits",
        ["experiment=tiny", "run.seed=340282366920938463463374607431768211456000"],
        key="run.seed",
    ),
    Case(
        "number too long for a float",
        ["experiment=tiny", f"run.steps=1{'0' * 400}"],
        key="run.steps",
    ),
    Case(
        "number too long for Python",
        ["experiment=tiny", f"run.steps=1{'0' * 5000}"],
        key="run.steps",
    ),
    Case(
        "weight too long for a float",
        ["experiment=tiny", f"data.corpora.sotu.weight=1{'0' * 400}"],
        key="data.corpora.sotu.weight",
    ),
    Case(
        "first row of a stage beyond 64 bits",
        ["experiment=tiny", "data.stage_starts=[9223372036854775808]"],
        key="data.stage_starts",
    ),
    Case(
        "profile of a step before the first",
        ["experiment=tiny", "observe.profile_steps=[0]"],
        key="observe.profile_steps",
    ),
    Case(
        "profile on no rank",
        ["experiment=tiny", "observe.profile_steps=[5]", "observe.profile_ranks=[]"],
        key="observe.profile_ranks",
    ),
    Case(
        "profile on a rank before the first",
        ["experiment=tiny", "observe.profile_steps=[5]", "observe.profile_ranks=[0, -1]"],
        key="observe.profile_ranks",
    ),
    Case(
        "profile on a rank that the job does not have",
        ["experiment=tiny", "observe.profile_steps=[5]", "observe.profile_ranks=[0, 2]"],
        key="observe.profile_ranks",
        processes=2,
    ),
    Case(
        "heads do not divide hidden size",
        ["experiment=tiny", "model.num_attention_heads=3"],
        key="model.hidden_size",
    ),
    Case(
        "tensor parallel size does not divide heads",
        ["experiment=glm_large", "parallel.tensor_parallel_size=3"],
        key="parallel.tensor_parallel_size",
    ),
    Case(
        "tensor parallel size does not divide vocabulary",
        [
            "experiment=glm_large",
            "model.hidden_size=960",
            "model.num_attention_heads=15",
            "parallel.tensor_parallel_size=5",
        ],
        key="parallel.tensor_parallel_size",
    ),
    Case(
        "stages do not divide layers",
        ["experiment=glm_large", "parallel.pipeline_parallel_size=5"],
        key="parallel.pipeline_parallel_size",
    ),
    Case(
        "dropout of one", ["experiment=tiny", "model.hidden_dropout=1"], key="model.hidden_dropout"
    ),
    Case(
        "not a number",
        ["experiment=tiny", "optimizer.learning_rate=nan"],
        key="optimizer.learning_rate",
    ),
    Case(
        "positions do not fit long blanks",
        ["experiment=glm_large", "corruption=glm_doc"],
        key="batch.row_length",
    ),
    Case(
        "positions do not fit short blanks",
        ["experiment=glm_large", "batch.row_length=700"],
        key="batch.row_length",
    ),
    Case(
        "shares above one",
        ["experiment=tiny", "corruption.span_share=0.7"],
        key="corruption.span_share + sentence_share + document_share",
    ),
    Case(
        "share out of range",
        ["experiment=tiny", "corruption.span_share=1.5"],
        key="corruption.span_share",
    ),
    Case(
        "mask ratio of one",
        ["experiment=tiny", "corruption.span_mask_ratio=1.0"],
        key="corruption.span_mask_ratio",
    ),
    Case(
        "everything held out",
        ["experiment=tiny", "data.validation_share=0.7", "data.test_share=0.3"],
        key="data.validation_share + data.test_share",
    ),
    Case(
        "no corpora",
        ["experiment=tiny", "~data.corpora.sotu", "~data.corpora.shakespeare"],
        key="data.corpora",
    ),
    Case(
        "weight of zero",
        ["experiment=tiny", "data.corpora.sotu.weight=0", "data.corpora.shakespeare.weight=1"],
        key="data.corpora.sotu.weight",
    ),
    Case(
        "only one weight",
        ["experiment=tiny", "data.corpora.sotu.weight=2"],
        key="data.corpora.shakespeare.weight",
    ),
    Case(
        "prefix with its ending",
        ["experiment=tiny", "data.corpora.sotu.prefix=/data/sotu.bin"],
        key="data.corpora.sotu.prefix",
    ),
    Case(
        "the same corpus twice",
        [
            "experiment=tiny",
            "data.corpora.sotu.prefix=/data/x",
            "data.corpora.shakespeare.prefix=/data/x",
        ],
        key="data.corpora.shakespeare.prefix",
    ),
    Case("empty path", ["experiment=tiny", "paths.runs=''"], key="paths.runs"),
    Case(
        "micro-batch does not divide the batch",
        ["experiment=tiny", "batch.micro_batch_size=3"],
        key="batch.global_batch_size",
    ),
    Case(
        "micro-batch and batch of huge sizes",
        [
            "experiment=tiny",
            "batch.global_batch_size=1000000000039",
            "batch.micro_batch_size=100000000000",
        ],
        key="batch.global_batch_size",
    ),
    Case(
        "batch does not divide over replicas",
        ["experiment=glm_large"],
        processes=48,
        key="batch.global_batch_size",
    ),
    Case(
        "batch smaller than replicas",
        ["experiment=tiny"],
        processes=16,
        key="batch.global_batch_size",
    ),
    Case(
        "processes do not divide into replicas",
        ["experiment=glm_large", "parallel=tp2_pp2"],
        processes=6,
        key="world size",
    ),
    Case(
        "fewer processes than one replica",
        ["experiment=glm_large", "parallel=tp2_pp2"],
        processes=2,
        key="world size",
    ),
    Case(
        "processes and asked replicas differ",
        ["experiment=tiny", "parallel=dp2"],
        processes=8,
        key="world size",
    ),
    Case(
        "no replica",
        ["experiment=tiny", "parallel.data_parallel_size=0"],
        key="parallel.data_parallel_size",
    ),
    Case(
        "ZeRO 2 with stages",
        ["experiment=glm_large", "parallel=pp2", "zero=stage2"],
        key="zero.stage",
    ),
    Case(
        "compiled layers under ZeRO 3",
        ["experiment=glm_large", "zero=stage3", "compile=fused"],
        key="compile.enabled",
    ),
    Case("ZeRO stage 4", ["experiment=tiny", "zero.stage=4"], key="zero.stage"),
    Case(
        "unfixed masks for another kind",
        ["experiment=tiny", "tokenizer.fixed_task_masks=false"],
        key="tokenizer.fixed_task_masks",
    ),
    Case(
        "warm-up as long as the decay",
        ["experiment=tiny", "lr_schedule.warmup_share=1"],
        key="lr_schedule.warmup_share",
    ),
    Case(
        "floor above the peak",
        ["experiment=tiny", "lr_schedule.decay_to_ratio=2"],
        key="lr_schedule.decay_to_ratio",
    ),
    Case(
        "validation without rows",
        ["experiment=tiny", "evaluation.interval=10", "evaluation.rows_per_objective=0"],
        key="evaluation.rows_per_objective",
    ),
    Case(
        "validation without documents",
        ["experiment=tiny", "evaluation.interval=10", "data.validation_share=0"],
        key="data.validation_share",
    ),
    Case(
        "checkpoints that are not kept",
        ["experiment=tiny", "checkpoint.interval=10", "checkpoint.keep_last=0"],
        key="checkpoint.keep_last",
    ),
    Case(
        "negative interval",
        ["experiment=tiny", "checkpoint.interval=-1"],
        key="checkpoint.interval",
    ),
    Case("a step below one", ["experiment=tiny", "checkpoint.step=0"], key="checkpoint.step"),
    Case("unknown resume", ["experiment=tiny", "checkpoint.resume=yes"], key="checkpoint.resume"),
    Case("beta of one", ["experiment=tiny", "optimizer.beta2=1"], key="optimizer.beta2"),
    Case("no loader prefetch", ["experiment=tiny", "data.prefetch=0"], key="data.prefetch"),
    Case("config version", ["experiment=tiny", "config_version=7"], key="config_version"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mistake_is_answered_with_a_fix_that_works(
    case: Case, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_case(case, says, monkeypatch)


def test_half_precision_is_refused_where_no_gpu_is_visible(says: Says) -> None:
    config = load_config(["experiment=glm_large"])
    with pytest.raises(GlmDistError) as caught:
        check_config(config, world_size=64, has_accelerator=False)
    assert (caught.value.key, caught.value.value) == ("precision.dtype", "fp16")
    says(caught.value)
