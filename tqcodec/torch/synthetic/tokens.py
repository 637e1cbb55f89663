"""Tokens for networks of text: random ones, and what a network that generates writes itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tqcodec.errors import EncodeError
from tqcodec.torch.batches import Runner, first_logits

FLAT = 16  # the first tokens are drawn so many times as often as the last ones, and once more
SAME = 1e-3  # most that earlier scores differ, of their size, where they do not see later tokens


def embedding_of(model: nn.Module) -> nn.Embedding:
    """The embedding of the tokens that a network knows: its own word for it, else the longest.

    Raises:
        EncodeError: it has none.
    """
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except Exception:  # no network of transformers, or one that has none
        embedding = None
    if isinstance(embedding, nn.Embedding):
        return embedding
    found = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if not found:
        raise EncodeError("tokens: the network has no nn.Embedding; give an example instead")
    return max(found, key=lambda one: one.num_embeddings)


def shares_of(embedding: nn.Embedding) -> Tensor:
    """How often each token is drawn, float64 (vocabulary,), the sum is not 1.

    Vocabularies are sorted by frequency, about: 1 / (number + vocabulary / 16), after Zipf. Tokens
    that training hardly met have short vectors: at most half as long as the middle one are left
    out.
    """
    count = embedding.num_embeddings
    lengths = embedding.weight.detach().cpu().double().norm(dim=1)
    shares = 1 / (torch.arange(count, dtype=torch.float64, device="cpu") + count / FLAT)
    known = torch.where(lengths > lengths.median() / 2, shares, 0.0)
    return known if known.any() else shares


def random_tokens(count: int, length: int, shares: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens, int64 (count, length), as likely as their shares say."""
    drawn = torch.multinomial(shares, count * length, replacement=True, generator=generator)
    return drawn.view(count, length)


class Writer:
    """A network that may go on with a text.

    Args:
        model: in evaluation mode.
        vocabulary: number of its tokens.
    """

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        self._run = Runner(model)
        self._vocabulary = vocabulary

    def writes(self, tokens: Tensor) -> bool:
        """Whether scores of all tokens come for each place, from the places up to it alone.

        Args:
            tokens: of some samples, int64 (samples, length) on the network's device.
        """
        scores = self._scores(tokens)
        if not isinstance(scores, Tensor) or scores.ndim != 3 or tokens.shape[1] < 2:
            return False
        if scores.shape[:2] != tokens.shape or scores.shape[2] < self._vocabulary:
            return False
        other = tokens.clone()
        other[:, -1] = (other[:, -1] + 1) % self._vocabulary
        before, after = (part[:, :-1].float() for part in (scores, self._scores(other)))
        return bool((before - after).abs().max() <= SAME * before.std())

    def written(
        self, tokens: Tensor, generator: torch.Generator, done: Callable[[], None]
    ) -> Tensor:
        """A text that goes on from the first token, each next one drawn by the network's scores.

        Args:
            tokens: the first of each row is kept.
            generator: of the draws, on the CPU.
            done: called after each token.
        """
        text = tokens.clone()
        for place in range(1, text.shape[1]):
            scores = self._scores(text)[:, place - 1, : self._vocabulary]
            shares = scores.float().softmax(-1).cpu()
            text[:, place] = torch.multinomial(shares, 1, generator=generator)[:, 0].to(text.device)
            done()
        return text

    def _scores(self, tokens: Tensor) -> Tensor:
        scores: Tensor = first_logits(self._run((tokens,), {}))
        return scores.detach() if isinstance(scores, Tensor) else scores
