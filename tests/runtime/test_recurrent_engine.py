from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from app.bundle import Bundle
from app.errors import BundleError
from app.models.gated_recurrence import GatedRecurrentLanguageModel
from app.models.language_model import LanguageModel
from app.runtime.onnx_session import Precision, session
from app.runtime.recurrent_engine import WEIGHTS, Details, Floats, Reading, RecurrentEngine, Segment, likeliest
from app.text import Ids
from training.language_model.export import export_language_model
from training.language_model.gated_export import export_gated_language_model

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LENGTHS = (5, 0, 1, 40, 5, 33, 2, 64, 1, 17)


@pytest.fixture(scope="module")
def engines(tiny_bundle: Bundle) -> dict[Precision, RecurrentEngine]:
    return {precision: RecurrentEngine.open(tiny_bundle, precision) for precision in PRECISIONS}


@pytest.fixture(scope="module")
def int8(engines: dict[Precision, RecurrentEngine]) -> RecurrentEngine:
    return engines["int8"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> RecurrentEngine:
    """int8 graphs of layers whose sizes fill no vector register evenly, and of an output that is not tied."""
    torch.manual_seed(1)
    model = LanguageModel(vocabulary_size=37, embedding_size=11, hidden_sizes=(13, 7), tied=False, initial_range=0.8)
    return opened(model, tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> RecurrentEngine:
    """int8 graphs of a stack of gated linear recurrences whose sizes fill no vector register evenly."""
    return opened(gated_model(), tmp_path_factory.mktemp("gated"))


def gated_model() -> GatedRecurrentLanguageModel:
    """A seeded stack with a convolution over the last 4 steps, in a bundle's precision."""
    torch.manual_seed(1)
    sizes = {"embedding_size": 11, "width": 13, "layers": 3, "hidden_size": 17, "inner_size": 19, "kernel": 4}
    model = GatedRecurrentLanguageModel(vocabulary_size=37, **sizes)
    for name, weight in model.named_parameters():
        if name.endswith(("kernel", "norm.weight", "bias")):
            torch.nn.init.normal_(weight)
    return model.half().float().eval()


def opened(model: LanguageModel | GatedRecurrentLanguageModel, folder: Path) -> RecurrentEngine:
    """The engine of the module's int8 graphs."""
    if isinstance(model, GatedRecurrentLanguageModel):
        files = export_gated_language_model(model)
    else:
        files = export_language_model(model)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return RecurrentEngine(session(folder / "recurrent.int8.onnx", 1), session(folder / "softmax.int8.onnx", 1))


def everything(engine: RecurrentEngine) -> Ids:
    """The whole vocabulary."""
    return np.arange(engine.vocabulary_size)


def random_segments(engine: RecurrentEngine, lengths: Sequence[int], seed: int = 0) -> list[Segment]:
    """Segments that want everything, each from a state of its own, over the first thirty tokens."""
    generator = np.random.default_rng(seed)
    states = generator.uniform(-1, 1, (len(lengths), engine.state_size)).astype(np.float32)
    tokens = [generator.integers(30, size=length).tolist() for length in lengths]
    return [
        Segment(state, part, score=True, details=3, likeliest=5, candidates=everything(engine))
        for state, part in zip(states, tokens, strict=True)
    ]


def numbers(reading: Reading) -> Floats:
    """Every figure of a reading."""
    assert reading.candidates is not None
    assert reading.likeliest is not None
    alternatives = [value for details in reading.details for value in details.alternatives.log_probabilities]
    reported = np.array([*reading.scores, *alternatives, *reading.likeliest.log_probabilities], np.float32)
    return np.concatenate([reading.state, reading.candidates, reported])


def same(one: Reading, other: Reading) -> bool:
    """Equal to the last bit."""
    chosen = (one.details, one.likeliest) == (other.details, other.likeliest)
    return chosen and numbers(one).tobytes() == numbers(other).tobytes()


def read_in_pieces(engine: RecurrentEngine, segment: Segment, size: int, beside: Sequence[Segment] = ()) -> Reading:
    """The segment read `size` tokens at a time, each piece in one batch with `beside`."""
    state = segment.state
    scores, details = list[float](), list[Details]()
    reading = None
    for start in range(0, len(segment.tokens), size):
        piece = segment._replace(state=state, tokens=segment.tokens[start : start + size])
        reading = engine.run([*beside, piece])[-1]
        state = reading.state
        scores += reading.scores
        details += reading.details
    assert reading is not None
    return reading._replace(scores=scores, details=details)


@pytest.mark.parametrize("fixture", ["int8", "odd", "gated"])
@pytest.mark.parametrize("seed", range(3))
def test_int8_gives_each_row_of_a_ragged_batch_what_it_gets_alone_bit_for_bit(
    fixture: str, seed: int, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(fixture)
    segments = random_segments(engine, LENGTHS, seed)
    for segment, together in zip(segments, engine.run(segments), strict=True):
        (alone,) = engine.run([segment])
        assert same(together, alone)


def test_fp32_gives_each_row_of_a_ragged_batch_what_it_gets_alone(engines: dict[Precision, RecurrentEngine]) -> None:
    segments = random_segments(engines["fp32"], LENGTHS)
    for segment, together in zip(segments, engines["fp32"].run(segments), strict=True):
        (alone,) = engines["fp32"].run([segment])
        np.testing.assert_allclose(numbers(together), numbers(alone), atol=1e-5)


@pytest.mark.parametrize("fixture", ["int8", "odd", "gated"])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_int8_reads_the_same_wherever_a_sequence_is_cut_alone_or_beside_others(
    fixture: str, size: int, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(fixture)
    (segment,) = random_segments(engine, [130])
    (whole,) = engine.run([segment])
    assert same(read_in_pieces(engine, segment, size), whole)
    assert same(read_in_pieces(engine, segment, size, beside=random_segments(engine, (3, 0, 1, 2), seed=1)), whole)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_fp32_reads_the_same_wherever_a_sequence_is_cut(engines: dict[Precision, RecurrentEngine], size: int) -> None:
    (segment,) = random_segments(engines["fp32"], [130])
    (whole,) = engines["fp32"].run([segment])
    np.testing.assert_allclose(numbers(read_in_pieces(engines["fp32"], segment, size)), numbers(whole), atol=1e-5)


def test_readings_come_in_the_order_of_their_segments(int8: RecurrentEngine) -> None:
    segments = random_segments(int8, LENGTHS)
    forwards, backwards = int8.run(segments), int8.run(segments[::-1])
    assert all(same(one, other) for one, other in zip(forwards, backwards[::-1], strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_probabilities_of_all_candidates_sum_to_1(
    engines: dict[Precision, RecurrentEngine], precision: Precision
) -> None:
    for reading in engines[precision].run(random_segments(engines[precision], LENGTHS)):
        assert reading.candidates is not None
        assert np.exp(reading.candidates, dtype=np.float64).sum() == pytest.approx(1, abs=1e-6)


def test_a_token_is_scored_by_the_distribution_that_stood_before_it(int8: RecurrentEngine) -> None:
    (segment,) = random_segments(int8, [20])
    (whole,) = int8.run([segment])
    for place, (token, score, details) in enumerate(zip(segment.tokens, whole.scores, whole.details, strict=True)):
        (before,) = int8.run([segment._replace(tokens=segment.tokens[:place])])
        distribution = before.candidates
        assert distribution is not None
        ranked = sorted(range(len(distribution)), key=distribution.__getitem__, reverse=True)
        assert score == distribution[token]
        assert details.rank == 1 + ranked.index(token)
        assert details.alternatives == (ranked[:3], distribution[ranked[:3]].tolist())
        assert before.likeliest == (ranked[:5], distribution[ranked[:5]].tolist())


def test_an_empty_segment_leaves_its_state_and_is_answered_from_it(int8: RecurrentEngine) -> None:
    (segment,) = random_segments(int8, [9])
    (whole,) = int8.run([segment])
    (again,) = int8.run([Segment(whole.state, [], score=True, likeliest=5, candidates=everything(int8))])
    assert list(again.scores) == []
    assert again.state.tobytes() == whole.state.tobytes()
    assert numbers(again).tobytes() == numbers(whole._replace(scores=[], details=[])).tobytes()


def test_each_request_gets_its_own_answer_whatever_shares_the_batch(int8: RecurrentEngine) -> None:
    state, tokens = int8.initial_state(), [1, 2]
    likeliest = Segment(state, tokens, likeliest=2)
    wanted = (
        Segment(state, tokens),
        Segment(state, tokens, score=True),
        likeliest,
        likeliest._replace(likeliest=4),
        likeliest._replace(candidates=np.array([3, 1, 4])),
        Segment(state, tokens, candidates=np.array([1])),
        Segment(state, tokens, candidates=np.empty(0, np.int64)),
    )
    neither, scored, two, four, both, one, none = int8.run(wanted)
    assert (list(neither.scores), neither.likeliest, neither.candidates) == ([], None, None)
    assert (len(scored.scores), list(scored.details), scored.likeliest, scored.candidates) == (2, [], None, None)
    assert (two.candidates, one.likeliest) == (None, None)
    assert both.candidates is not None
    assert one.candidates is not None
    assert none.candidates is not None
    assert (len(both.candidates), list(one.candidates), list(none.candidates)) == (3, [both.candidates[1]], [])
    assert two.likeliest == both.likeliest
    assert two.likeliest is not None
    assert four.likeliest is not None
    assert [len(two.likeliest.tokens), len(four.likeliest.tokens)] == [2, 4]
    assert four.likeliest.tokens[:2] == two.likeliest.tokens


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_that_makes_whole_distributions_alone_is_served_the_same(
    engines: dict[Precision, RecurrentEngine], tiny_bundle: Bundle, precision: Precision, tmp_path: Path
) -> None:
    model = onnx.load(tiny_bundle.path(f"softmax.{precision}.onnx"), load_external_data=False)
    del model.graph.input[1:], model.graph.output[1:]
    kept = [node for node in model.graph.node if node.op_type not in ("TopK", "GatherElements")]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, tmp_path / "softmax.onnx")
    (tmp_path / WEIGHTS).write_bytes(tiny_bundle.path(WEIGHTS).read_bytes())
    old = RecurrentEngine(
        session(tiny_bundle.path(f"recurrent.{precision}.onnx"), 1), session(tmp_path / "softmax.onnx", 1)
    )
    segments = random_segments(old, LENGTHS)
    segments += [segment._replace(details=None, candidates=np.array([7, 3])) for segment in segments]
    segments += [segment._replace(candidates=None) for segment in segments]
    for one, other in zip(old.run(segments), engines[precision].run(segments), strict=True):
        reported = [None if each.candidates is None else each.candidates.tobytes() for each in (one, other)]
        assert reported[0] == reported[1]
        assert (one.scores, one.details, one.likeliest) == (other.scores, other.details, other.likeliest)
        assert one.state.tobytes() == other.state.tobytes()


@pytest.mark.parametrize("size", [3, 40, 10_000])
def test_of_equals_the_graph_returns_those_with_the_least_ids(size: int, tmp_path: Path) -> None:
    model = LanguageModel(vocabulary_size=size, embedding_size=2, hidden_sizes=(2,), tied=True)
    with torch.no_grad():
        model.output.bias[:] = torch.randint(-2, 1, (size,))
    engine = opened(model, tmp_path)
    state = engine.initial_state()  # all that stands before the bias is 0
    for count in (1, 2, 7, 52, 2000):
        (reading,) = engine.run([Segment(state, [], likeliest=count, candidates=everything(engine))])
        assert reading.candidates is not None
        assert reading.likeliest is not None
        assert len(set(reading.candidates.tolist())) == 3
        assert reading.likeliest.tokens == likeliest(reading.candidates, count).tolist()


def test_nothing_that_was_given_is_changed(int8: RecurrentEngine) -> None:
    segments = random_segments(int8, LENGTHS)
    before = [segment.state.copy() for segment in segments]
    int8.run(segments)
    assert all((segment.state == state).all() for segment, state in zip(segments, before, strict=True))


def test_fp32_graphs_agree_with_the_module_they_were_made_from(
    engines: dict[Precision, RecurrentEngine], tiny_model: LanguageModel
) -> None:
    tokens = np.random.default_rng(3).integers(tiny_model.embedding.num_embeddings, size=500)
    with torch.no_grad():
        reading = tiny_model(torch.from_numpy(tokens)[:, None], tiny_model.initial_state(1))
        expected = torch.log_softmax(tiny_model.logits(reading.hidden)[:, 0], 1).numpy()  # (T, V), after each token
    engine = engines["fp32"]
    wanted = Segment(engine.initial_state(), tokens.tolist(), score=True, candidates=everything(engine))
    (whole,) = engine.run([wanted])
    np.testing.assert_allclose(whole.scores[1:], expected[np.arange(499), tokens[1:]], atol=1e-4)
    assert whole.candidates is not None
    np.testing.assert_allclose(whole.candidates, expected[-1], atol=1e-4)


def test_int8_stays_close_to_fp32(engines: dict[Precision, RecurrentEngine]) -> None:
    (segment,) = random_segments(engines["fp32"], [500])
    segment = segment._replace(state=engines["fp32"].initial_state())
    losses = {}
    for precision, engine in engines.items():
        (reading,) = engine.run([segment])
        losses[precision] = -np.mean(reading.scores)
    assert losses["int8"] == pytest.approx(losses["fp32"], rel=1e-3)
    assert losses["int8"] != losses["fp32"]  # they are not the same graph


def test_nothing_read_is_a_state_of_zeros(int8: RecurrentEngine) -> None:
    assert not int8.initial_state().any()
    assert int8.initial_state().shape == (int8.state_size,)


@pytest.mark.parametrize("content", [None, b"", b"no graph"])
def test_a_graph_that_cannot_be_run_is_rejected_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "softmax.int8.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"softmax\.int8\.onnx: expected a graph"):
        session(path, 1)


@settings(deadline=None)
@given(
    stn.arrays(np.float32, st.integers(1, 30), elements=st.sampled_from([-np.inf, -3.5, -1.0, -0.5, 0.0])),
    st.integers(0, 40),
)
def test_likeliest_are_largest_first_and_equals_by_index(values: Floats, count: int) -> None:
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert likeliest(values, count).tolist() == expected


@pytest.mark.parametrize("rows", [1, 9])
def test_a_reading_keeps_nothing_of_its_batch_in_memory(int8: RecurrentEngine, rows: int) -> None:
    segment = Segment(int8.initial_state(), [3, 4], candidates=np.arange(5))
    for reading in int8.run([segment] * rows):
        assert reading.candidates is not None
        for values in (reading.state, reading.candidates):
            held = values if values.base is None else values.base
            assert held.nbytes == values.nbytes
