"""Learning rate of each optimizer step, by arithmetic: warm-up, then the official decay.

Follows GLM (4f61ed7) with one difference: the linear schedule stops at its floor, while the
official one continues below zero. Steps count applied updates from 0, so the first rate is 0.
"""

import math

from glm_dist.config.schema import LRScheduleConfig, LRScheduleKind


def learning_rate(config: LRScheduleConfig, peak: float, step: int) -> float:
    """Return the rate of the update that follows ``step`` applied updates.

    Args:
        config: Shape of the schedule.
        peak: Rate at the end of warm-up.
        step: Updates applied so far; skipped fp16 updates do not count.
    """
    warmup = config.warmup_share * config.decay_steps
    if warmup > 0 and step <= warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / (config.decay_steps - warmup))
    match config.kind:
        case LRScheduleKind.constant:
            return peak
        case LRScheduleKind.linear:
            return peak - peak * (1.0 - config.decay_to_ratio) * progress
        case LRScheduleKind.cosine:
            return _cosine(peak, config.decay_to_ratio, progress)


def _cosine(peak: float, floor_share: float, progress: float) -> float:
    """Return half a cosine from the peak (progress 0) to ``floor_share`` of it (progress 1)."""
    wave = math.cos(math.pi * progress) + 1.0  # 2 at the start, 0 at the end
    if floor_share == 0.0:
        return peak * wave / 2.0
    # Grouped by the peak-to-floor ratio to equal the official rates bit for bit.
    ratio = 1.0 / floor_share
    return peak / ratio * (wave * (ratio - 1.0) / 2.0 + 1.0)
