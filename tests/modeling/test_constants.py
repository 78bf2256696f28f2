import copy

import torch

from mask2former.modeling.constants import CACHE_SIZE, cached_constant
from mask2former.modeling.position_encoding import sine_position_encoding, sine_tokens
from tests.helpers.models import example, small_model, total


def test_results_are_kept_up_to_a_bound() -> None:
    calls = []

    @cached_constant
    def zeros(size: int) -> torch.Tensor:
        calls.append(size)
        return torch.zeros(size)

    for size in range(CACHE_SIZE):
        assert zeros(size) is zeros(size)
    assert calls == list(range(CACHE_SIZE))
    zeros(CACHE_SIZE)
    zeros(0)  # was dropped
    assert calls[CACHE_SIZE:] == [CACHE_SIZE, 0]


def test_what_inference_mode_made_serves_in_training() -> None:
    model = small_model()
    with torch.inference_mode():
        model.eval()([{"image": example(96, 64)["image"]}])
    assert not sine_tokens(3, 2, 32, torch.device("cpu")).is_inference()
    total(model.train()([example(96, 64)])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_models_that_have_run_can_be_copied_and_keep_nothing_in_their_state() -> None:
    model = small_model().eval()
    names = list(model.state_dict())
    image = [{"image": example()["image"]}]
    with torch.no_grad():
        expected = model(image)[0]["sem_seg"]
        assert torch.equal(copy.deepcopy(model)(image)[0]["sem_seg"], expected)
    assert list(model.state_dict()) == names


def test_tokens_are_the_encoding_row_by_row() -> None:
    tokens = sine_tokens(3, 5, 8)
    assert torch.equal(tokens[0].T.unflatten(1, (3, 5)), sine_position_encoding(3, 5, 8)[0])
    assert tokens.is_contiguous()
