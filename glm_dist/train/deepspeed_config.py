"""DeepSpeed's configuration dictionary, generated from the run's configuration.

It covers only ZeRO, dtypes and clipping; optimizer, learning rate, data and logging are our own.
Keys follow DeepSpeed 0.19.8. No DeepSpeed here.
"""

from glm_dist.config.schema import Dtype, Offload, PrecisionConfig, RunConfig, ZeroConfig

Json = bool | int | float | str | dict[str, "Json"]

NEVER = 10**9
"""Steps between DeepSpeed's own prints; metrics are logged in observe/ instead."""


def deepspeed_config(config: RunConfig, *, world_size: int) -> dict[str, Json]:
    """Generate the ``config`` argument of ``deepspeed.initialize``.

    Args:
        config: Checked configuration.
        world_size: Processes of the whole job.
    """
    return {
        # No train_batch_size: DeepSpeed derives it from the number of replicas.
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_accumulation_steps": config.num_micro_batches(world_size),
        "gradient_clipping": config.optimizer.gradient_clipping,
        "steps_per_print": NEVER,
        "zero_allow_untested_optimizer": True,  # torch's AdamW instead of DeepSpeed's Adam
        "zero_optimization": _zero(config.zero),
        **_offload_terms(config.zero),
        **_precision(config.precision, replicas=config.data_parallel_size(world_size)),
    }


def _zero(zero: ZeroConfig) -> dict[str, Json]:
    offload: dict[str, Json] = {}
    if zero.offload_optimizer is not Offload.none:
        offload = {"offload_optimizer": {"device": zero.offload_optimizer.name}}
    return {
        "stage": zero.stage,
        "reduce_bucket_size": zero.reduce_bucket_size,
        "allgather_bucket_size": zero.allgather_bucket_size,
        "overlap_comm": zero.overlap_comm,
        "reduce_scatter": True,
        "contiguous_gradients": True,
        **offload,
    }


def _offload_terms(zero: ZeroConfig) -> dict[str, Json]:
    """Return the keys that DeepSpeed requires to offload an optimizer other than its own."""
    if zero.offload_optimizer is Offload.none:
        return {}
    # torch's fused AdamW has a vectorised CPU kernel and gives the same numbers as on a GPU.
    return {"zero_force_ds_cpu_optimizer": False}


def _precision(precision: PrecisionConfig, *, replicas: int) -> dict[str, Json]:
    """Return the dtype settings; half-precision gradients are summed and reduced in fp32."""
    if precision.dtype is Dtype.fp32:
        return {}
    fp32_gradients: dict[str, Json] = {"data_types": {"grad_accum_dtype": "fp32"}}
    if replicas > 1:
        # DeepSpeed reduces in the model's dtype by default, which rounds the sum over replicas.
        fp32_gradients["communication_data_type"] = "fp32"
    if precision.dtype is Dtype.bf16:
        return fp32_gradients | {"bf16": {"enabled": True}}
    return fp32_gradients | {
        "fp16": {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": precision.initial_loss_scale_power,
            "loss_scale_window": precision.loss_scale_window,
            "hysteresis": precision.loss_scale_hysteresis,
            "min_loss_scale": precision.min_loss_scale,
        }
    }
