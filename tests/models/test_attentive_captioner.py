"""The attentive captioner: steps equal whole captions, tags, padding, sharpening; and its encoder's shape."""

import pytest
import torch

from app.models.attentive_captioner import AttentiveCaptioner, Scene
from app.models.efficientnet_lite import EfficientNetLite2
from app.models.recurrent import Cell

LABELS = [(5, 5), (6, 7), (8, 8)]
NO_TAG, PADDING = 3, 4


def captioner(cell: Cell = "gru") -> AttentiveCaptioner:
    torch.manual_seed(1)
    model = AttentiveCaptioner(
        vocabulary_size=12, labels=LABELS, kinds=2, embedding_size=16, hidden_size=24, attention_size=20, cell=cell
    )
    for name, parameter in model.named_parameters():
        if name != "scale":
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def scene(*tags: tuple[int, int]) -> Scene:
    rows = [*tags, *[(PADDING, 0)] * (4 - len(tags))]
    torch.manual_seed(2)
    return Scene(torch.tensor([rows]), torch.rand(1, 9, 352), torch.rand(1, 1280))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("seen", [scene((0, 1)), Scene(scene((0, 1), (2, 0)).tags)], ids=["photograph", "tags alone"])
def test_steps_equal_the_whole_caption(cell: Cell, seen: Scene) -> None:
    model, tokens = captioner(cell), torch.tensor([[0, 4, 7, 9]])
    expected = model(seen, tokens).log_softmax(-1)
    state, memory = model.begin(seen)
    for position in range(4):
        log_probabilities, state, attention = model.step(tokens[:, position], state, memory)
        torch.testing.assert_close(log_probabilities, expected[:, position])
        assert attention.sum().item() == pytest.approx(1)


def test_attention_never_falls_on_padding() -> None:
    model = captioner()
    state, memory = model.begin(scene((0, 1)))
    _, _, attention = model.step(torch.tensor([0]), state, memory)
    assert attention.shape == (1, 9 + 4 + 1)
    assert (attention[0, 10:13] == 0).all()
    assert (attention[0, :10] > 0).all()
    assert attention[0, -1] > 0


def test_the_number_of_padded_slots_changes_nothing() -> None:
    model, tokens = captioner(), torch.tensor([[0, 4, 7]])
    seen = scene((0, 1), (1, 0))
    torch.testing.assert_close(model(seen._replace(tags=seen.tags[:, :2]), tokens), model(seen, tokens))


def test_what_is_seen_changes_the_caption() -> None:
    model, tokens = captioner(), torch.tensor([[0, 4]])
    outputs = [model(each, tokens) for each in (scene((0, 1)), scene((0, 0)), scene((1, 1)), scene((NO_TAG, 0)))]
    outputs.append(model(scene((0, 1))._replace(grid=torch.rand(1, 9, 352)), tokens))
    outputs.append(model(Scene(scene((0, 1)).tags), tokens))
    for index, one in enumerate(outputs):
        assert all((one - other).abs().max() > 1e-4 for other in outputs[:index])


def test_sharpening_divides_all_logits() -> None:
    model, tokens = captioner(), torch.tensor([[0, 4, 7]])
    before = model(scene((0, 1)), tokens)
    model.sharpen(0.5)
    torch.testing.assert_close(model(scene((0, 1)), tokens), 2 * before)


def test_the_encoder_has_a_grid_and_a_pooled_vector_and_as_many_weights_as_published() -> None:
    network = EfficientNetLite2().eval()
    with torch.inference_mode():
        grid, pooled = network(torch.zeros(1, 3, 260, 260))
    assert grid.shape == (1, 352, 9, 9)
    assert pooled.shape == (1, 1280)
    classifier = 1280 * 1000 + 1000
    assert sum(each.numel() for each in network.parameters()) + classifier == pytest.approx(6.1e6, rel=0.01)
