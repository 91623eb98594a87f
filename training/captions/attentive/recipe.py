"""The attentive captions recipe: cross-entropy on captions and sentences, then self-critical sequence training.

    config = PRESETS["attentive"]
    train(config, corpus, Run(Path("runs/attentive")))

Every step of the first phase reads captions with their photographs and as many sentences without, whose tags come from
their own words (cf. Fei et al. 2023, ViECap, arXiv 2307.16525). The second rewards samples by CIDEr-D (Rennie et al.
2017, arXiv 1612.00563), each with the others' mean as its baseline. The averaged weights with the best mean CIDEr of
the collections' validation photographs are kept.
"""

import math
import time
from copy import deepcopy
from typing import Any

from app.images import LABELS
from app.images.tags import KINDS
from app.models.attentive_captioner import AttentiveCaptioner
from training.captions.attentive.config import AttentiveConfig
from training.captions.attentive.data import AttentiveCorpus
from training.captions.attentive.objective import Objective
from training.captions.attentive.training_set import TrainingSet
from training.captions.attentive.validation import Validation
from training.captions.phases import adamw, copy_weights, phase_rate, start_reward_phase
from training.run import Run
from training.session import Session, update_average


def train(
    config: AttentiveConfig, corpus: AttentiveCorpus, run: Run, *, resume: bool = False, minutes: float = math.inf
) -> bool:
    """Train into `run`, with `resume` from its checkpoint if there is one; return True after the last step.

    The checkpoint's `best` holds the weights to publish, result.json their length penalty and validation scores. Random
    numbers of a step depend on the seed and the step alone, so a resumed run ends with the weights of an uninterrupted
    one. `minutes` limits the duration of this call. The test split is not used.
    """
    session = Session(run, config.precision, config.seed, minutes, "cpu")
    fabric = session.fabric
    training_set, valid = TrainingSet.of(corpus, config, session.ranks), Validation.of(corpus)
    model = build(config, corpus)
    average = deepcopy(model)
    wrapped, optimiser = fabric.setup(Objective(model, training_set, session.mean), adamw(model, config))
    fabric.to_device(average)
    state: dict[str, Any] = {
        "model": model,
        "average": average,
        "optimiser": optimiser,
        "progress": {"step": 0, "total": 0.0},
        "best": {"step": 0, "cider": -1.0, "weights": copy_weights(average)},
    }
    progress = session.open("captions", config, corpus.describe(), state, resume=resume)
    steps = config.steps + config.reward_steps
    started = time.monotonic()
    bar = session.bar(range(progress["step"], steps), "steps", progress["step"], steps)
    for step in bar:
        reward = step >= config.steps
        if step == config.steps:
            start_reward_phase(model, average, optimiser, state["best"]["weights"], config.temperature)
        random = session.seed_step(step)
        rate = phase_rate(config, step, config.steps, config.reward_steps, ahead=1e-3)
        optimiser.param_groups[0]["lr"] = rate
        # Through Fabric's wrapper, which synchronises the gradients where there are several processes.
        part = slice(session.rank, None, session.ranks)
        loss = wrapped(step - config.steps if reward else step, part, random, reward=reward)
        optimiser.zero_grad()
        fabric.backward(loss.value)
        norm = fabric.clip_gradients(wrapped, optimiser, max_norm=config.clip)
        optimiser.step()
        update_average(dict(average.named_parameters()), model, step + 1, config.averaging)

        mean, metric = session.mean(loss.metric), "train_reward" if reward else "train_cost"
        progress.update(step=step + 1, total=progress["total"] + mean)
        done = step % config.every + 1
        if step % 20 == 0:
            bar.set_postfix_str(f"{progress['total'] / done:.3f}")
            fabric.log_dict({metric: mean, "gradient_norm": norm, "rate": rate}, step)
        if done == config.every or step + 1 in (config.steps, steps):
            measured = fabric.broadcast(valid.during_training(average, config))
            metrics = {"epoch": step + 1, metric: progress["total"] / done, **measured}
            session.record(metrics | {"seconds": time.monotonic() - started}, step + 1)
            started = time.monotonic()
            progress["total"] = 0.0
            if measured["valid_cider"] > state["best"]["cider"]:
                state["best"] = {"step": step + 1, "cider": measured["valid_cider"], "weights": copy_weights(average)}
        if session.stops(state):
            return False
    session.save(state)
    average.load_state_dict(state["best"]["weights"])
    session.finish({"step": state["best"]["step"], **valid.results(average, config)})
    return True


def build(config: AttentiveConfig, corpus: AttentiveCorpus) -> AttentiveCaptioner:
    """Return the initialised module of `config` for the corpus."""
    return AttentiveCaptioner(
        vocabulary_size=len(corpus.vocabulary),
        labels=[corpus.vocabulary.ids(label.split()) for label in LABELS],
        kinds=KINDS,
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        attention_size=config.attention_size,
        cell=config.cell,
        feature_dropout=config.feature_dropout,
        input_dropout=config.input_dropout,
        output_dropout=config.output_dropout,
    )
