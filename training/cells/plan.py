"""The plan of the comparison: recipes of all tasks, and the jobs of each part."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias, get_args

from torch import nn

from app.models.recurrent import CELLS, Cell
from training.cells.adding import Adder, AddingConfig
from training.cells.sizes import matched
from training.digits import recipe as digits
from training.digits.recipe import DigitsConfig
from training.language_model import recipe as language_model
from training.language_model.recipe import LanguageModelConfig
from training.ranges import POSITIVE, SEED, Range, at_least, require_ranges

Part: TypeAlias = Literal["rates", "ptb", "mnist", "adding", "gradients", "latency"]
PARTS: tuple[Part, ...] = get_args(Part)  # in the order in which they can be measured
Config: TypeAlias = LanguageModelConfig | DigitsConfig | AddingConfig
Results: TypeAlias = dict[str, Any]

SEARCH_EPOCHS = 1  # of a run that tries a learning rate
SEARCHED: tuple[Part, ...] = ("ptb", "gradients", "latency")  # parts that use the rates found

LANGUAGE_MODEL = LanguageModelConfig(  # a small `cpu`; each cell has its own learning rate
    embedding_size=128,
    hidden_sizes=(160, 128),
    tied=True,
    input_dropout=0.1,
    hidden_dropout=0.1,
    output_dropout=0.1,
    weight_drop=0.1,
    locked=True,
    activation_penalty=2.0,  # without it, or with wider weights, the tanh RNN saturates and hardly learns
    change_penalty=1.0,
    batch_size=32,
    cost="mean",
    optimiser="adamw",
    schedule="one-cycle",
    weight_decay=0.02,
    clip=0.25,
    epochs=3,
    precision="bf16-mixed",
    evaluation_batch=16,
)
DIGITS = DigitsConfig(
    hidden_sizes=(96,),
    samples=110_000,
    optimiser="adamw",
    learning_rate=4e-3,
    schedule="one-cycle",
    clip=1.0,
)
ADDING = AddingConfig()


@dataclass(frozen=True)
class Comparison:
    """The cells and, for each task, the recipe of one of them; the others get as many parameters by their width.

    Raise SettingsError that names every field out of its range.
    """

    cells: Annotated[tuple[Cell, ...], Range(f"some of {', '.join(CELLS)}", lambda value: value in CELLS)] = CELLS
    seeds: Annotated[tuple[int, ...], SEED] = (1, 2, 3)  # of the language models and the digit readers
    rates: Annotated[tuple[float, ...], POSITIVE] = (3e-3, 9e-3, 2.7e-2)  # tried for each cell's language model
    lengths: Annotated[tuple[int, ...], at_least(4)] = (400, 100)  # of the adding problem
    language_model: LanguageModelConfig = LANGUAGE_MODEL
    digits: DigitsConfig = DIGITS
    adding: AddingConfig = ADDING

    def __post_init__(self) -> None:
        require_ranges(self)


@dataclass(frozen=True)
class Job:
    """One measurement."""

    part: Part
    cell: Cell
    variant: str
    config: Config  # of the model that is trained or examined

    @property
    def name(self) -> str:
        """Return the name in reports and the path of the folder below the root."""
        return f"{self.part}/{self.cell}/{self.variant}"


Measured: TypeAlias = Mapping[Job, Results]


BUILD: dict[type[Config], Callable[[Any], nn.Module]] = {
    LanguageModelConfig: language_model.build,
    DigitsConfig: digits.build,
    AddingConfig: Adder,
}


def plan(comparison: Comparison, part: Part, rates: Mapping[Cell, float] | None = None) -> list[Job]:
    """Return all jobs of a part, the first seed of every cell before the second.

    `rates`: the language models' learning rates by cell, from `best_rates`; by default the recipe's own.
    """
    cells, seeds, model = comparison.cells, comparison.seeds, comparison.language_model
    own = dict.fromkeys(cells, model.learning_rate) | dict(rates or {})
    match part:
        case "rates":
            tried = replace(model, epochs=SEARCH_EPOCHS, seed=seeds[0])
            return [
                Job(part, c, f"rate-{r:g}", _of(tried, c, learning_rate=r)) for r in comparison.rates for c in cells
            ]
        case "ptb" | "latency":
            return [
                Job(part, c, f"seed-{s}", _of(model, c, seed=s, learning_rate=own[c])) for s in seeds for c in cells
            ]
        case "mnist":
            return [Job(part, c, f"seed-{s}", _of(comparison.digits, c, seed=s)) for s in seeds for c in cells]
        case "adding":
            return [
                Job(part, c, f"length-{n}", _of(comparison.adding, c, length=n))
                for n in comparison.lengths
                for c in cells
            ]
        case "gradients":
            trained = [*plan(comparison, "adding"), *plan(comparison, "ptb", rates)]
            examined = (f"length-{max(comparison.lengths)}", f"seed-{seeds[0]}")
            return [replace(job, part=part) for job in trained if job.variant in examined]


def _of(reference: Any, cell: Cell, **changes: float) -> Any:
    return replace(matched(reference, cell, BUILD[type(reference)]), **changes)


def best_rates(measured: Measured) -> dict[Cell, float]:
    """Return for each cell the learning rate with the lowest validation perplexity of the search."""
    tried: dict[Cell, list[Results]] = {}
    for job, results in measured.items():
        if job.part == "rates":
            tried.setdefault(job.cell, []).append(results)

    def worse(results: Results) -> tuple[bool, float]:
        return math.isnan(results["valid_perplexity"]), results["valid_perplexity"]  # NaN: diverged

    return {cell: min(runs, key=worse)["config"]["learning_rate"] for cell, runs in tried.items()}
