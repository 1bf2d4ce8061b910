"""Mistakes in a configuration or in the number of processes, and the exact message of each."""

from dataclasses import dataclass

import pytest

from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.errors import GlmDistError


@dataclass(frozen=True)
class Case:
    """What is typed, how many processes are started, and what the user reads."""

    name: str
    overrides: list[str]
    message: str
    processes: int | None = None


CASES = [
    Case(
        "spans longer than any that is drawn",
        ["experiment=tiny", "corruption.span_mean_length=1000"],
        message="ConfigError: corruption.span_mean_length = 1000.0: expected a number above 0 and "
        "of at most 39.\n"
        "  Fix: set corruption.span_mean_length=3.0, or leave it out to keep the group's value.",
    ),
    Case(
        "rows beyond any table",
        ["experiment=tiny", "batch.row_length=100000000000"],
        message="ConfigError: batch.row_length = 100000000000: expected rows whose positions, here "
        "up to 99999999999, fit the tables of model.max_position_embeddings = 160.\n"
        "  Fix: set batch.row_length=161 or less, or model.max_position_embeddings=99999999999.",
    ),
    Case(
        "unknown experiment",
        ["experiment=glm_lage"],
        message="ConfigError: experiment = glm_lage: expected one of glm_10b, "
        "glm_10b_chinese, glm_130b, glm_2b, glm_410m, glm_515m, glm_base, glm_doc, glm_large, "
        "glm_large_chinese, glm_roberta, glm_sent, quickstart, tiny.\n"
        "  Fix: did you mean experiment=glm_large.",
    ),
    Case(
        "no sentinels for a task that needs them",
        ["experiment=tiny", "corruption.task=span_corruption"],
        message="ConfigError: tokenizer.sentinel_pairs = 0: expected a pair for each blank a row "
        "may have; corruption.sentinels and corruption.task=span_corruption need them.\n"
        "  Fix: set tokenizer.sentinel_pairs=100 and tokenizer.vocab_size=8200.",
    ),
    Case(
        "more sentinels than any vocabulary has room for",
        ["experiment=tiny", "tokenizer.sentinel_pairs=99999999999"],
        message="ConfigError: tokenizer.sentinel_pairs = 99999999999: expected a whole number from "
        "0 to 65536.\n"
        "  Fix: set tokenizer.sentinel_pairs=32, or leave it out to keep the group's value.",
    ),
    Case(
        "unknown group option",
        ["experiment=tiny", "model=huge"],
        message="ConfigError: model = huge: expected one of 10b, 130b, 2b, 410m, 515m, base, "
        "large, large_chinese, quickstart, tiny.\n"
        "  Fix: choose one of them.",
    ),
    Case(
        "unknown group",
        ["mdel=large"],
        message="ConfigError: mdel = unknown: expected a group or key of the configuration.\n"
        "  Fix: did you mean model.",
    ),
    Case(
        "unknown key in a section",
        ["experiment=tiny", "model.num_layer=3"],
        message="ConfigError: model.num_layer = unknown: expected a key of model: "
        "activation, attention_dropout, embedding_gradient_share, ffn_hidden_size, hidden_dropout, "
        "hidden_size, init_std, layernorm_epsilon, max_position_embeddings, "
        "num_attention_heads, num_layers, position_encoding, residual.\n"
        "  Fix: did you mean model.num_layers.",
    ),
    Case(
        "unknown section",
        ["experiment=tiny", "optimiser.learning_rate=1"],
        message="ConfigError: optimiser.learning_rate = unknown: expected a group or key of "
        "the configuration.\n"
        "  Fix: did you mean optimizer.learning_rate.",
    ),
    Case(
        "key without its section",
        ["experiment=tiny", "steps=4"],
        message="ConfigError: steps = unknown: expected a group or key of the configuration.\n"
        "  Fix: did you mean run.steps.",
    ),
    Case(
        "unknown key of a corpus",
        ["experiment=tiny", "data.corpora.mine.prefics=x"],
        message="ConfigError: data.corpora.mine.prefics = unknown: expected a group or key of "
        "the configuration.\n"
        "  Fix: did you mean data.corpora.<name>.prefix.",
    ),
    Case(
        "text for a whole number",
        ["experiment=tiny", "model.num_layers=many"],
        message="ConfigError: model.num_layers = many: expected a whole number of at least 1.\n"
        "  Fix: set model.num_layers=24, or leave it out to keep the group's value.",
    ),
    Case(
        "fraction for a whole number",
        ["experiment=tiny", "model.num_layers=2.5"],
        message="ConfigError: model.num_layers = 2.5: expected a whole number of at least 1.\n"
        "  Fix: set model.num_layers=24, or leave it out to keep the group's value.",
    ),
    Case(
        "text for a number",
        ["experiment=tiny", "optimizer.learning_rate=fast"],
        message="ConfigError: optimizer.learning_rate = fast: expected a number above 0.\n"
        "  Fix: set optimizer.learning_rate=0.0001, or leave it out to keep the "
        "group's value.",
    ),
    Case(
        "number for a switch",
        ["experiment=tiny", "observe.progress_bar=maybe"],
        message="ConfigError: observe.progress_bar = maybe: expected true or false.\n"
        "  Fix: set observe.progress_bar=true, or leave it out to keep the group's "
        "value.",
    ),
    Case(
        "unknown member of an enum",
        ["experiment=tiny", "precision.dtype=float16"],
        message="ConfigError: precision.dtype = float16: expected one of fp32, bf16, fp16.\n"
        "  Fix: set precision.dtype=fp16, or leave it out to keep the group's value.",
    ),
    Case(
        "mistyped member of an enum",
        ["experiment=tiny", "corruption.task=spann_corruption"],
        message="ConfigError: corruption.task = spann_corruption: expected one of blank_infilling, "
        "masked_lm, causal_lm, span_corruption, unilm.\n"
        "  Fix: set corruption.task=span_corruption, or leave it out to keep the group's value.",
    ),
    Case(
        "null for a text",
        ["experiment=tiny", "run.name=null"],
        message="ConfigError: run.name = null: expected a text.\n"
        "  Fix: set run.name=my_run, or leave it out to keep the group's value.",
    ),
    Case(
        "a section for a number",
        ["experiment=tiny", "model.num_layers={a: 3}"],
        message="ConfigError: model.num_layers = {a: 3}: expected a whole number of at least "
        "1.\n"
        "  Fix: set model.num_layers=24, or leave it out to keep the group's value.",
    ),
    Case(
        "a text for a section",
        ["experiment=tiny", "data.corpora=mine"],
        message="ConfigError: data.corpora = mine: expected corpora by name.\n"
        "  Fix: set data.corpora.<name>.prefix=<path without .bin>, or leave it out "
        "to keep the group's value.",
    ),
    Case(
        "a number for a new corpus",
        ["experiment=tiny", "data.corpora.x=5"],
        message="ConfigError: data.corpora.x = 5: expected a section of further keys.\n"
        "  Fix: set data.corpora.x.prefix=<path without .bin>, or leave it out to keep the "
        "group's value.",
    ),
    Case(
        "a number for a known corpus",
        ["experiment=tiny", "data.corpora.sotu=5"],
        message="ConfigError: data.corpora.sotu = 5: expected a section of further keys.\n"
        "  Fix: set data.corpora.sotu.prefix=<path without .bin>, or leave it out to keep the "
        "group's value.",
    ),
    Case(
        "a list for corpora",
        ["experiment=tiny", "data.corpora=[mine]"],
        message="ConfigError: data.corpora = [mine]: expected corpora by name.\n"
        "  Fix: set data.corpora.<name>.prefix=<path without .bin>, or leave it out "
        "to keep the group's value.",
    ),
    Case(
        "no corpora in one go",
        ["experiment=tiny", "data.corpora={}"],
        message="ConfigError: data.corpora = {}: expected keys to change or add; the others stay, "
        "so {} changes nothing.\n"
        "  Fix: remove corpora one by one with ~data.corpora.<name>.",
    ),
    Case(
        "text in a list of numbers",
        ["experiment=tiny", "data.stage_starts=[a]"],
        message="ConfigError: data.stage_starts = [a]: expected a list of whole numbers.\n"
        "  Fix: set data.stage_starts=[1000000], or leave it out to keep the group's value.",
    ),
    Case(
        "a list in a list of numbers",
        ["experiment=tiny", "parallel.stage_layers=[[1]]"],
        message="ConfigError: parallel.stage_layers = [[1]]: expected a list of whole numbers.\n"
        "  Fix: set parallel.stage_layers=[], or leave it out to keep the group's value.",
    ),
    Case(
        "text in a corpus's list",
        ["experiment=tiny", "data.corpora.sotu.stage_weights=[a]"],
        message="ConfigError: data.corpora.sotu.stage_weights = [a]: expected a list of numbers.\n"
        "  Fix: set data.corpora.sotu.stage_weights=[1], or leave it out to keep the group's "
        "value.",
    ),
    Case(
        "an unknown reference in a list",
        ["experiment=tiny", "data.stage_starts=[1,${run.stps}]"],
        message="ConfigError: data.stage_starts = ${run.stps}: expected a reference to an existing "
        "key.\n"
        "  Fix: refer to ${run.steps}.",
    ),
    Case(
        "a reference to itself",
        ["experiment=tiny", "run.steps=${run.steps}"],
        message="ConfigError: run.steps = ${run.steps}: expected a reference to a whole number; "
        "now: Recursive interpolation detected.\n"
        "  Fix: set run.steps=200000, or leave it out to keep the group's value.",
    ),
    Case(
        "removing a corpus that is not there",
        ["experiment=tiny", "~data.corpora.shakespear"],
        message="ConfigError: ~data.corpora.shakespear = unknown: expected one of sotu, "
        "shakespeare.\n"
        "  Fix: did you mean ~data.corpora.shakespeare.",
    ),
    Case(
        "removing a corpus with a value",
        ["experiment=tiny", "~data.corpora.sotu=3"],
        message="ConfigError: command line = ~data.corpora.sotu=3: expected no value after ~.\n"
        "  Fix: write ~data.corpora.sotu.",
    ),
    Case(
        "nothing chosen",
        [],
        message="ConfigError: run.name, run.steps = nothing: expected a text and a whole "
        "number.\n"
        "  Fix: choose an experiment, e.g. experiment=quickstart, or set "
        "run.name=my_run run.steps=200000.",
    ),
    Case(
        "missing prefix of a new corpus",
        ["experiment=tiny", "data.corpora.mine.weight=2"],
        message="ConfigError: data.corpora.mine.prefix = nothing: expected a text.\n"
        "  Fix: set data.corpora.mine.prefix=<path without .bin>.",
    ),
    Case(
        "unset variable",
        ["experiment=tiny", "paths=cluster"],
        message="ConfigError: GLM_DATA = unset: expected a folder, because the chosen option "
        "of paths reads this environment variable.\n"
        "  Fix: export GLM_DATA=/a/folder/of/yours, or choose paths=local.",
    ),
    Case(
        "reference to a key that does not exist",
        ["experiment=tiny", "lr_schedule.decay_steps=${run.stps}"],
        message="ConfigError: lr_schedule.decay_steps = ${run.stps}: expected a reference to "
        "an existing key.\n"
        "  Fix: refer to ${run.steps}.",
    ),
    Case(
        "no override at all",
        ["quickstart"],
        message="ConfigError: command line = quickstart: expected an override of the form "
        "key=value.\n"
        "  Fix: write key=value, with quotes around special characters: 'key=\"a, b\"'.",
    ),
    Case(
        "key without a value",
        ["experiment=tiny", "run.steps"],
        message="ConfigError: command line = run.steps: expected an override of the form "
        "key=value.\n"
        "  Fix: write key=value, with quotes around special characters: 'key=\"a, b\"'.",
    ),
    Case(
        "unbalanced quotes",
        ["experiment=tiny", 'run.name="a'],
        message='ConfigError: command line = run.name="a: expected an override of the form '
        "key=value.\n"
        "  Fix: write key=value, with quotes around special characters: 'key=\"a, b\"'.",
    ),
    Case(
        "a sweep",
        ["experiment=tiny", "run.steps=1,2"],
        message="ConfigError: command line = run.steps=1,2: expected one value.\n"
        "  Fix: start one job for each value, e.g. as a SLURM array, or quote a text "
        "with commas.",
    ),
    Case(
        "Hydra's own settings",
        ["experiment=tiny", "hydra.run.dir=x"],
        message="ConfigError: command line = hydra.run.dir=x: expected a key of this project; "
        "Hydra's own settings have no effect here.\n"
        "  Fix: leave it out; the run folder is <paths.runs>/<run.name>.",
    ),
    Case(
        "a group without option",
        ["model=null"],
        message="ConfigError: model = nothing: expected one of 10b, 130b, 2b, 410m, 515m, base, "
        "large, large_chinese, quickstart, tiny.\n"
        "  Fix: choose one of them.",
    ),
    Case(
        "a removed value",
        ["experiment=tiny", "~run.steps"],
        message="ConfigError: command line = ~run.steps: expected a corpus to remove, "
        "~data.corpora.<name>; nothing else can be missing.\n"
        "  Fix: leave it out, or set another value with run.steps=....",
    ),
    Case(
        "an override at another package",
        ["experiment=tiny", "model@run=large"],
        message="ConfigError: command line = model@run=large: expected a group without "
        "@package.\n"
        "  Fix: write model=<option>.",
    ),
    Case(
        "empty run name",
        ["experiment=tiny", "run.name=''"],
        message="ConfigError: run.name = '': expected a name that is not empty.\n"
        "  Fix: set run.name=my_run; its parent folder is paths.runs.",
    ),
    Case(
        "run name with a slash",
        ["experiment=tiny", "run.name=a/b"],
        message="ConfigError: run.name = 'a/b': expected a name without slashes; it becomes "
        "one folder.\n"
        "  Fix: set run.name=my_run; its parent folder is paths.runs.",
    ),
    Case(
        "no steps",
        ["experiment=tiny", "run.steps=0"],
        message="ConfigError: run.steps = 0: expected a whole number of at least 1.\n"
        "  Fix: set run.steps=200000, or leave it out to keep the group's value.",
    ),
    Case(
        "negative seed",
        ["experiment=tiny", "run.seed=-1"],
        message="ConfigError: run.seed = -1: expected a whole number from 0 to "
        "9223372036854775807.\n"
        "  Fix: set run.seed=1234, or leave it out to keep the group's value.",
    ),
    Case(
        "seed beyond 64 bits",
        ["experiment=tiny", "run.seed=340282366920938463463374607431768211456000"],
        message="ConfigError: run.seed = 340282366920938463463374607431768211456000: expected a "
        "whole number of at most 2^63 - 1 = 9223372036854775807.\n"
        "  Fix: set a smaller run.seed, or leave it out to keep the group's value.",
    ),
    Case(
        "number too long for a float",
        ["experiment=tiny", f"run.steps=1{'0' * 400}"],
        message="ConfigError: run.steps = a number of hundreds of digits: expected a number of at "
        "most 2^63 - 1.\n"
        "  Fix: set run.steps=200000, or leave it out to keep the group's value.",
    ),
    Case(
        "number too long for Python",
        ["experiment=tiny", f"run.steps=1{'0' * 5000}"],
        message="ConfigError: run.steps = a number of hundreds of digits: expected a number of at "
        "most 2^63 - 1.\n"
        "  Fix: set run.steps=200000, or leave it out to keep the group's value.",
    ),
    Case(
        "weight too long for a float",
        ["experiment=tiny", f"data.corpora.sotu.weight=1{'0' * 400}"],
        message="ConfigError: data.corpora.sotu.weight = a number of hundreds of digits: expected "
        "a number of at most 2^63 - 1.\n"
        "  Fix: set data.corpora.sotu.weight=1, or leave it out to keep the group's value.",
    ),
    Case(
        "first row of a stage beyond 64 bits",
        ["experiment=tiny", "data.stage_starts=[9223372036854775808]"],
        message="ConfigError: data.stage_starts = 9223372036854775808: expected a whole number of "
        "at most 2^63 - 1 = 9223372036854775807.\n"
        "  Fix: set a smaller data.stage_starts, or leave it out to keep the group's value.",
    ),
    Case(
        "heads do not divide hidden size",
        ["experiment=tiny", "model.num_attention_heads=3"],
        message="ConfigError: model.hidden_size = 64: expected a multiple of "
        "model.num_attention_heads = 3.\n"
        "  Fix: set model.hidden_size=63 or 66, or another number of heads.",
    ),
    Case(
        "tensor parallel size does not divide heads",
        ["experiment=glm_large", "parallel.tensor_parallel_size=3"],
        message="ConfigError: parallel.tensor_parallel_size = 3: expected a divisor of "
        "model.num_attention_heads = 16.\n"
        "  Fix: choose 1, 2, 4, 8 or 16.",
    ),
    Case(
        "tensor parallel size does not divide vocabulary",
        [
            "experiment=glm_large",
            "model.hidden_size=960",
            "model.num_attention_heads=15",
            "parallel.tensor_parallel_size=5",
        ],
        message="ConfigError: parallel.tensor_parallel_size = 5: expected a divisor of the "
        "padded vocabulary of 30592 rows.\n"
        "  Fix: choose 1.",
    ),
    Case(
        "stages do not divide layers",
        ["experiment=glm_large", "parallel.pipeline_parallel_size=5"],
        message="ConfigError: parallel.pipeline_parallel_size = 5: expected a divisor of "
        "model.num_layers = 24.\n"
        "  Fix: choose 1, 2, 3, 4, 6, 8, 12 or 24, or list the layers: "
        "parallel.stage_layers=[5,5,5,5,4].",
    ),
    Case(
        "dropout of one",
        ["experiment=tiny", "model.hidden_dropout=1"],
        message="ConfigError: model.hidden_dropout = 1.0: expected a number of at least 0 and "
        "below 1.\n"
        "  Fix: set model.hidden_dropout=0.1, or leave it out to keep the group's value.",
    ),
    Case(
        "not a number",
        ["experiment=tiny", "optimizer.learning_rate=nan"],
        message="ConfigError: optimizer.learning_rate = nan: expected a number above 0.\n"
        "  Fix: set optimizer.learning_rate=0.0001, or leave it out to keep the "
        "group's value.",
    ),
    Case(
        "positions do not fit long blanks",
        ["experiment=glm_large", "corruption=glm_doc"],
        message="ConfigError: batch.row_length = 564: expected rows whose positions, here up "
        "to 563, fit the tables of model.max_position_embeddings = 512.\n"
        "  Fix: set batch.row_length=513 or less, or model.max_position_embeddings=563.",
    ),
    Case(
        "positions do not fit short blanks",
        ["experiment=glm_large", "batch.row_length=700"],
        message="ConfigError: batch.row_length = 700: expected rows whose positions, here up "
        "to 537, fit the tables of model.max_position_embeddings = 512.\n"
        "  Fix: set batch.row_length=668 or less, or model.max_position_embeddings=537.",
    ),
    Case(
        "shares above one",
        ["experiment=tiny", "corruption.span_share=0.7"],
        message="ConfigError: corruption.span_share + sentence_share + document_share = 1.2: "
        "expected 1.\n"
        "  Fix: choose corruption=glm_mixed, or set all three.",
    ),
    Case(
        "share out of range",
        ["experiment=tiny", "corruption.span_share=1.5"],
        message="ConfigError: corruption.span_share = 1.5: expected a number from 0 to 1.\n"
        "  Fix: set corruption.span_share=1.0, or leave it out to keep the group's "
        "value.",
    ),
    Case(
        "mask ratio of one",
        ["experiment=tiny", "corruption.span_mask_ratio=1.0"],
        message="ConfigError: corruption.span_mask_ratio = 1.0: expected a number above 0 and "
        "below 1.\n"
        "  Fix: set corruption.span_mask_ratio=0.15, or leave it out to keep the "
        "group's value.",
    ),
    Case(
        "everything held out",
        ["experiment=tiny", "data.validation_share=0.7", "data.test_share=0.3"],
        message="ConfigError: data.validation_share + data.test_share = 1: expected less than "
        "1, so that documents are left to train on.\n"
        "  Fix: set data.validation_share=0.05 data.test_share=0.001.",
    ),
    Case(
        "no corpora",
        ["experiment=tiny", "~data.corpora.sotu", "~data.corpora.shakespeare"],
        message="ConfigError: data.corpora = none: expected at least one prepared corpus.\n"
        "  Fix: set data.corpora.<name>.prefix=<path without .bin>.",
    ),
    Case(
        "weight of zero",
        ["experiment=tiny", "data.corpora.sotu.weight=0", "data.corpora.shakespeare.weight=1"],
        message="ConfigError: data.corpora.sotu.weight = 0.0: expected a number above 0, or "
        "null for a share in proportion to its tokens.\n"
        "  Fix: set data.corpora.sotu.weight=1, or remove the corpus with "
        "~data.corpora.sotu.",
    ),
    Case(
        "only one weight",
        ["experiment=tiny", "data.corpora.sotu.weight=2"],
        message="ConfigError: data.corpora.shakespeare.weight = null: expected a weight, "
        "because sotu has one and the others are relative.\n"
        "  Fix: set a weight for every corpus or for none.",
    ),
    Case(
        "prefix with its ending",
        ["experiment=tiny", "data.corpora.sotu.prefix=/data/sotu.bin"],
        message="ConfigError: data.corpora.sotu.prefix = '/data/sotu.bin': expected the path "
        "of a prepared corpus without .bin or .idx.\n"
        "  Fix: set data.corpora.sotu.prefix=<folder>/<name> as `glm-dist prepare` "
        "wrote it.",
    ),
    Case(
        "the same corpus twice",
        [
            "experiment=tiny",
            "data.corpora.sotu.prefix=/data/x",
            "data.corpora.shakespeare.prefix=/data/x",
        ],
        message="ConfigError: data.corpora.shakespeare.prefix = /data/x: expected another "
        "corpus than data.corpora.sotu has.\n"
        "  Fix: remove one, e.g. ~data.corpora.shakespeare, and set weights to repeat "
        "a corpus.",
    ),
    Case(
        "empty path",
        ["experiment=tiny", "paths.runs=''"],
        message="ConfigError: paths.runs = '': expected a path that is not empty.\n"
        "  Fix: set paths.runs=<path>, or leave it out to keep the group's value.",
    ),
    Case(
        "micro-batch does not divide the batch",
        ["experiment=tiny", "batch.micro_batch_size=3"],
        message="ConfigError: batch.global_batch_size = 8: expected a multiple of "
        "micro_batch_size = 3.\n"
        "  Fix: set batch.global_batch_size=6 or 9, or batch.micro_batch_size=2.",
    ),
    Case(
        "micro-batch and batch of huge sizes",
        [
            "experiment=tiny",
            "batch.global_batch_size=1000000000039",
            "batch.micro_batch_size=100000000000",
        ],
        message="ConfigError: batch.global_batch_size = 1000000000039: expected a multiple of "
        "micro_batch_size = 100000000000.\n"
        "  Fix: set batch.global_batch_size=1000000000000 or 1100000000000, or "
        "batch.micro_batch_size=1.",
    ),
    Case(
        "batch does not divide over replicas",
        ["experiment=glm_large"],
        processes=48,
        message="ConfigError: batch.global_batch_size = 1024: expected a multiple of "
        "micro_batch_size x replicas = 16 x 48 = 768.\n"
        "  Fix: set batch.global_batch_size=768 or 1536.",
    ),
    Case(
        "batch smaller than replicas",
        ["experiment=tiny"],
        processes=16,
        message="ConfigError: batch.global_batch_size = 8: expected a multiple of "
        "micro_batch_size x replicas = 4 x 16 = 64.\n"
        "  Fix: set batch.global_batch_size=64.",
    ),
    Case(
        "processes do not divide into replicas",
        ["experiment=glm_large", "parallel=tp2_pp2"],
        processes=6,
        message="LaunchError: world size = 6: expected a multiple of tp x pp = 2 x 2 = 4.\n"
        "  Fix: start 4 or 8 processes, or choose another layout, e.g. parallel=dp.",
    ),
    Case(
        "fewer processes than one replica",
        ["experiment=glm_large", "parallel=tp2_pp2"],
        processes=2,
        message="LaunchError: world size = 2: expected a multiple of tp x pp = 2 x 2 = 4.\n"
        "  Fix: start 4 processes, or choose another layout, e.g. parallel=dp.",
    ),
    Case(
        "processes and asked replicas differ",
        ["experiment=tiny", "parallel=dp2"],
        processes=8,
        message="LaunchError: world size = 8: expected tp x pp x dp = 1 x 1 x 2 = 2.\n"
        "  Fix: start 2 processes, or let replicas fill the job with "
        "parallel.data_parallel_size=null.",
    ),
    Case(
        "no replica",
        ["experiment=tiny", "parallel.data_parallel_size=0"],
        message="ConfigError: parallel.data_parallel_size = 0: expected a whole number of at least "
        "1, or null to fill the started processes.\n"
        "  Fix: set parallel.data_parallel_size=null.",
    ),
    Case(
        "ZeRO 2 with stages",
        ["experiment=glm_large", "parallel=pp2", "zero=stage2"],
        message="ConfigError: zero.stage = 2: expected 0 or 1 with "
        "parallel.pipeline_parallel_size = 2; the pipeline's schedule cannot shard "
        "gradients.\n"
        "  Fix: choose zero=stage1, or parallel.pipeline_parallel_size=1.",
    ),
    Case(
        "compiled layers under ZeRO 3",
        ["experiment=glm_large", "zero=stage3", "compile=fused"],
        message="ConfigError: compile.enabled = true: expected false with zero.stage = 3, "
        "whose hooks gather parameters inside each layer.\n"
        "  Fix: choose zero=stage2, or compile=eager.",
    ),
    Case(
        "ZeRO stage 4",
        ["experiment=tiny", "zero.stage=4"],
        message="ConfigError: zero.stage = 4: expected a whole number from 0 to 3.\n"
        "  Fix: set zero.stage=1, or leave it out to keep the group's value.",
    ),
    Case(
        "half precision without ZeRO",
        ["experiment=glm_large", "zero=stage0"],
        message="ConfigError: zero.stage = 0: expected 1, 2 or 3 with precision.dtype = fp16; "
        "without ZeRO there are no fp32 master weights.\n"
        "  Fix: choose zero=stage1, which shards nothing over one replica, or "
        "precision=fp32.",
    ),
    Case(
        "unfixed masks for another kind",
        ["experiment=tiny", "tokenizer.fixed_task_masks=false"],
        message="ConfigError: tokenizer.fixed_task_masks = false: expected true for "
        "tokenizer.kind = sentencepiece, which has one id scheme.\n"
        "  Fix: leave it out, or choose tokenizer=chinese_unfixed.",
    ),
    Case(
        "warm-up as long as the decay",
        ["experiment=tiny", "lr_schedule.warmup_share=1"],
        message="ConfigError: lr_schedule.warmup_share = 1.0: expected a number of at least 0 "
        "and below 1.\n"
        "  Fix: set lr_schedule.warmup_share=0.05, or leave it out to keep the "
        "group's value.",
    ),
    Case(
        "floor above the peak",
        ["experiment=tiny", "lr_schedule.decay_to_ratio=2"],
        message="ConfigError: lr_schedule.decay_to_ratio = 2.0: expected a number from 0 to 1.\n"
        "  Fix: set lr_schedule.decay_to_ratio=0.05, or leave it out to keep the "
        "group's value.",
    ),
    Case(
        "validation without rows",
        ["experiment=tiny", "evaluation.interval=10", "evaluation.rows_per_objective=0"],
        message="ConfigError: evaluation.rows_per_objective = 0: expected at least 1, because "
        "evaluation.interval = 10 asks for validation.\n"
        "  Fix: set evaluation.rows_per_objective=1024, or evaluation.interval=0.",
    ),
    Case(
        "validation without documents",
        ["experiment=tiny", "evaluation.interval=10", "data.validation_share=0"],
        message="ConfigError: data.validation_share = 0: expected more than 0, because "
        "evaluation.interval = 10 asks for validation.\n"
        "  Fix: set data.validation_share=0.05, or evaluation.interval=0.",
    ),
    Case(
        "checkpoints that are not kept",
        ["experiment=tiny", "checkpoint.interval=10", "checkpoint.keep_last=0"],
        message="ConfigError: checkpoint.keep_last = 0: expected at least 1, because "
        "checkpoint.interval = 10 asks for checkpoints.\n"
        "  Fix: set checkpoint.keep_last=3, or checkpoint.interval=0.",
    ),
    Case(
        "negative interval",
        ["experiment=tiny", "checkpoint.interval=-1"],
        message="ConfigError: checkpoint.interval = -1: expected a whole number of at least 0.\n"
        "  Fix: set checkpoint.interval=1000, or leave it out to keep the group's value.",
    ),
    Case(
        "unknown resume",
        ["experiment=tiny", "checkpoint.resume=yes"],
        message="ConfigError: checkpoint.resume = yes: expected one of auto, must, never.\n"
        "  Fix: set checkpoint.resume=auto, or leave it out to keep the group's value.",
    ),
    Case(
        "beta of one",
        ["experiment=tiny", "optimizer.beta2=1"],
        message="ConfigError: optimizer.beta2 = 1.0: expected a number of at least 0 and "
        "below 1.\n"
        "  Fix: set optimizer.beta2=0.98, or leave it out to keep the group's value.",
    ),
    Case(
        "no loader prefetch",
        ["experiment=tiny", "data.prefetch=0"],
        message="ConfigError: data.prefetch = 0: expected a whole number of at least 1.\n"
        "  Fix: set data.prefetch=4, or leave it out to keep the group's value.",
    ),
    Case(
        "config version",
        ["experiment=tiny", "config_version=7"],
        message="ConfigError: config_version = 7: expected 1.\n"
        "  Fix: leave it out; it marks saved configurations.",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mistake_is_answered_with_one_exact_message(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLM_DATA", raising=False)
    monkeypatch.delenv("GLM_RUNS", raising=False)
    with pytest.raises(GlmDistError) as caught:
        check_config(load_config(case.overrides), world_size=case.processes)
    assert f"{type(caught.value).__name__}: {caught.value}" == case.message


def test_half_precision_is_refused_where_no_gpu_is_visible() -> None:
    config = load_config(["experiment=glm_large"])
    with pytest.raises(GlmDistError) as caught:
        check_config(config, world_size=64, has_accelerator=False)
    assert str(caught.value) == (
        "precision.dtype = fp16: expected fp32 or bf16, because no GPU is visible and fp16 does "
        "not train on CPUs.\n"
        "  Fix: choose precision=bf16 or precision=fp32, or start where a GPU is."
    )
