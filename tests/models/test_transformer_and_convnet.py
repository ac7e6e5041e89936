"""The transformer and the convolutional network, in float64: against plain loops, and their sampled targets."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stepscale.models import Batch, ConvNet, Transformer, objective_of
from stepscale.models.networks.transformer import Block, head_width

pytestmark = pytest.mark.numerical


def transformer(dim: int = 6, context: int = 5) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(dim, 2, context=context, symbols=11).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def text(rows: int = 4, context: int = 5) -> tuple[Tensor, Tensor]:
    symbols = torch.randint(0, 11, (rows, context + 1))
    return symbols[:, :-1], symbols[:, 1:]


def test_what_follows_is_not_seen() -> None:
    """Every logit depends on its own token and those before, and on no later one."""
    model, (tokens, _) = transformer(), text()
    embedded = model.embedding.weight[tokens].detach().requires_grad_()
    model.embedding.forward = lambda _: embedded
    for place in range(5):
        (gradient,) = torch.autograd.grad(model(tokens)[:, place].sin().sum(), embedded)
        seen = gradient.abs().sum((0, 2)) > 0
        assert seen.tolist() == [k <= place for k in range(5)]


def test_attention_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    block, x = Block(96).double(), torch.randn(2, 4, 96, dtype=torch.float64)
    found, width = block._attended(x), 48
    q, k, v = (layer(x) for layer in (block.query, block.key, block.value))
    expected = torch.zeros_like(x)
    for row in range(2):
        for head in (slice(0, width), slice(width, 96)):
            for place in range(4):
                scores = torch.stack([q[row, place, head] @ k[row, j, head] for j in range(place + 1)])
                weights = torch.softmax(scores / math.sqrt(width), 0)
                expected[row, place, head] = sum(w * v[row, j, head] for j, w in enumerate(weights))
    torch.testing.assert_close(found, expected @ block.out.weight.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dim", "width"), [(1, 1), (6, 6), (64, 64), (72, 36), (112, 56), (512, 64), (67, 1)])
def test_heads_are_the_widest_that_divide_the_width_up_to_64(dim: int, width: int) -> None:
    assert head_width(dim) == width


def test_loss_is_nats_per_token() -> None:
    model, batch = transformer(), text()
    log_probs = torch.log_softmax(model(batch[0]), -1)
    each = [log_probs[row, place, batch[1][row, place]] for row in range(4) for place in range(5)]
    torch.testing.assert_close(model.loss(batch), -torch.stack(each).mean())
    assert model.loss_terms(batch) == len(each)
    assert objective_of(model).unit == "nats per token" and objective_of(Transformer(4)).unit == "nats per byte"
    assert math.isclose(Transformer(8).loss(text()).item(), math.log(256), rel_tol=0.01), "it starts knowing nothing"


def convnet() -> tuple[ConvNet, Batch]:
    torch.manual_seed(0)
    return ConvNet(3, 2, pixels=16, classes=4).double(), (torch.rand(5, 16).double(), torch.randint(0, 4, (5,)))


def test_a_convolution_is_the_product_with_unfolded_patches() -> None:
    model, (x, labels) = convnet()
    assert [type(part) for part in model.features] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Conv2d, nn.ReLU]
    images = x.view(-1, 1, 4, 4)
    for layer in (model.features[0], model.features[3]):
        patches = functional.unfold(images, 3, padding=1).transpose(1, 2)
        y = torch.relu(patches @ layer.weight.flatten(1).T + layer.bias).transpose(1, 2)
        images = y.unflatten(2, images.shape[2:])
        if layer is model.features[0]:
            images = images.unflatten(3, (2, 2)).unflatten(2, (2, 2)).amax((3, 5))
    logits = images.mean((2, 3)) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.loss((x, labels)), functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("kind", ["transformer", "convnet"])
def test_sampled_targets_are_those_that_the_model_expects(kind: str) -> None:
    """The score of sampled targets has mean zero; their loss the mean of the entropies; the generator decides it."""
    model, batch = (transformer(), text()) if kind == "transformer" else convnet()
    log_probs = torch.log_softmax(model(batch[0]), -1).flatten(0, -2)
    entropy = -(log_probs.exp() * log_probs).sum(1).mean().item()
    losses, scores = [], []
    for _ in range(1_000):
        loss = model.sampled_loss(batch)
        losses.append(loss.detach())
        scores.append(torch.autograd.grad(loss, model.head.weight)[0].flatten()[:10])
    found, scores = torch.stack(losses), torch.stack(scores)
    assert abs(found.mean().item() - entropy) < 5 * found.std().item() / math.sqrt(1_000)
    assert (scores.mean(0).abs() <= 5 * scores.std(0) / math.sqrt(1_000)).all()
    torch.manual_seed(3)
    first = model.sampled_loss(batch)
    torch.manual_seed(3)
    assert torch.equal(first, model.sampled_loss(batch)) and first.requires_grad


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Transformer(8, 0), "got dim=8, depth=0, context=64, symbols=256"),
        (lambda: Transformer(8).loss(torch.randn(3, 8)), "use data=bytes"),
        (
            lambda: transformer().loss(text(context=6)),
            "rows of 6 tokens do not fit context=5: set context=6, or cut them",
        ),
        (lambda: ConvNet(8, pixels=60), "pixels must be a square number, got 60: set data.dim=64"),
        (lambda: ConvNet(8, classes=1), "classes=1"),
        (lambda: ConvNet(8).loss(torch.randn(3, 64)), "needs int64 labels, got torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
