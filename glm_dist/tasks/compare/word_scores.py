"""Nats of the last words of texts under a pretrained run."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from glm_dist.generate.load import TrainedModel
from glm_dist.tasks.compare.last_words import FORMS, LastWord, WordScores, word_rows
from glm_dist.tasks.intervals import mean_over_examples
from glm_dist.train.predict import predict_examples
from glm_dist.train.task_losses import SequenceTask


def score_words(
    model: TrainedModel,
    words: Sequence[LastWord],
    *,
    stops: Callable[[], bool] = lambda: False,
) -> WordScores | None:
    """Measure the nats of last words. Collective over all ranks.

    Args:
        model: The run's.
        words: Texts and their last words.
        stops: Asked between batches, on all ranks alike; if true, there is no result.
    """
    config = model.config
    rows, owners = word_rows(words, config, model.tokenizer)
    found = predict_examples(
        replace(model, task=SequenceTask()),
        lambda index: [rows[index]],
        num_examples=len(rows),
        micro_batch_size=config.batch.micro_batch_size,
        device=next(model.model.parameters()).device,
        stops=stops,
    )
    if found is None:
        return None
    nats = -np.bincount(owners, weights=found[:, 0].double().numpy())
    mean = mean_over_examples(nats.tolist())
    form = FORMS[config.corruption.task]
    return WordScores(mean.value, mean.low, mean.high, len(words), form)
