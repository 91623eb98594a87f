"""The captions recipe: a captioner trained by maximum likelihood, then by self-critical sequence training.

    config = PRESETS["best"]
    train(config, corpus, Run(Path("runs/best")))

First maximum likelihood; then, for `reward_epochs`, self-critical sequence training on CIDEr-D (Rennie et al. 2017,
arXiv 1612.00563) with several samples a photograph, each with the others' mean as its baseline (Kool et al. 2019).
After every epoch the averaged weights caption the validation photographs; the epoch with the best CIDEr is kept.
"""

import math
import time
from copy import deepcopy
from typing import Any

from app.errors import SettingsError
from app.models.captioner import Captioner
from training.captions.config import CaptionsConfig
from training.captions.data import CaptionCorpus
from training.captions.dataset import TrainingSet
from training.captions.objective import Objective
from training.captions.phases import adamw, copy_weights, phase_rate, start_reward_phase
from training.captions.validation import Validation
from training.run import Run
from training.session import Session, update_average

SHOWN = 10  # skipped photographs that are printed


def train(
    config: CaptionsConfig, corpus: CaptionCorpus, run: Run, *, resume: bool = False, minutes: float = math.inf
) -> bool:
    """Train into `run`, with `resume` from its checkpoint if there is one; return True after the last epoch.

    The checkpoint's `best` holds the weights to publish, result.json their length penalty and validation scores. Random
    numbers of a step depend on the seed and the step alone, so a resumed run ends with the weights of an uninterrupted
    one. `minutes` limits the duration of this call. The test split is not used.
    """
    session = Session(run, config.precision, config.seed, minutes, "cpu")
    fabric = session.fabric
    training_set = TrainingSet.of(corpus, config)
    valid = Validation.of(corpus)
    model = build(config, corpus)
    average = deepcopy(model)
    wrapped, optimiser = fabric.setup(Objective(model, training_set, config, session.mean), adamw(model, config))
    fabric.to_device(average)
    state: dict[str, Any] = {
        "model": model,
        "average": average,
        "optimiser": optimiser,
        "progress": {"epoch": 0, "batch": 0, "step": 0, "total": 0.0},
        "best": {"epoch": 0, "cider": -1.0, "weights": copy_weights(average)},
    }
    progress = session.open("captions", config, corpus.describe(), state, resume=resume)
    for name, reason in [*corpus.corrupt.items()][:SHOWN]:
        fabric.print(f"{name} skipped: {reason}")
    if len(corpus.corrupt) > SHOWN:
        fabric.print(f"{len(corpus.corrupt)} skipped in all: see {run.folder / 'source.json'}")

    for epoch in range(progress["epoch"], config.epochs + config.reward_epochs):
        rewarded = epoch >= config.epochs
        metric = "train_reward" if rewarded else "train_cost"
        started, first = time.monotonic(), progress["batch"]
        if epoch == config.epochs and first == 0:
            start_reward_phase(model, average, optimiser, state["best"]["weights"], config.temperature)
        batches = (
            training_set.photograph_batches(config, epoch) if rewarded else training_set.caption_batches(config, epoch)
        )
        batches = [batch for batch in batches if len(batch) >= session.ranks]
        bar = session.bar(batches[first:], f"epoch {epoch + 1}", first, len(batches))
        for index, batch in enumerate(bar, first):
            step = progress["step"]
            session.seed_step(step)
            rate = phase_rate(config, epoch + index / len(batches), config.epochs, config.reward_epochs)
            optimiser.param_groups[0]["lr"] = rate
            # Through Fabric's wrapper, which synchronises the gradients where there are several processes.
            loss = wrapped(batch[session.rank :: session.ranks], rewarded=rewarded)
            optimiser.zero_grad()
            fabric.backward(loss.value)
            norm = fabric.clip_gradients(wrapped, optimiser, max_norm=config.clip)
            optimiser.step()
            update_average(dict(average.named_parameters()), model, step + 1, config.averaging)

            mean = session.mean(loss.metric)
            progress.update(epoch=epoch, batch=index + 1, step=step + 1, total=progress["total"] + mean)
            if step % 20 == 0:
                bar.set_postfix_str(f"{progress['total'] / (index + 1):.3f}")
                fabric.log_dict({metric: mean, "gradient_norm": norm, "rate": rate}, step)
            if session.stops(state):
                return False

        captions = valid.captions(average, config, config.length_penalty)
        metrics = {
            "epoch": epoch + 1,
            metric: progress["total"] / len(batches),
            "valid_cider": fabric.broadcast(valid.cider(captions)),
            "valid_distinct": len(set(captions)),
            "seconds": time.monotonic() - started,
        }
        session.record(metrics, progress["step"])
        if metrics["valid_cider"] > state["best"]["cider"]:
            state["best"] = {"epoch": epoch + 1, "cider": metrics["valid_cider"], "weights": copy_weights(average)}
        progress.update(epoch=epoch + 1, batch=0, total=0.0)
        session.save(state)
    average.load_state_dict(state["best"]["weights"])
    session.finish({"epoch": state["best"]["epoch"], **valid.results(average, config)})
    return True


def build(config: CaptionsConfig, corpus: CaptionCorpus) -> Captioner:
    """Return the initialised module of `config` for the corpus; raise SettingsError for an impossible combination."""
    try:
        return Captioner(
            vocabulary_size=len(corpus.vocabulary),
            feature_size=corpus.splits["train"].features.shape[-1],
            embedding_size=config.embedding_size,
            hidden_size=config.hidden_size,
            cell=config.cell,
            inject=config.inject,
            tied=config.tied,
            feature_dropout=config.feature_dropout,
            input_dropout=config.input_dropout,
            output_dropout=config.output_dropout,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error
