"""Tokens whose rows of the embeddings learn beside an adapter: tokens that are added, and tokens that there are.

peft replaces the rows in the forward pass of the embedding and of every module that is tied to it, and keeps only
these rows in the adapter folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from ftune.errors import Problem, RecipeError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_tokens(tokenizer: PreTrainedTokenizerBase, new: Sequence[str]) -> None:
    """Add tokens at the end of the vocabulary, in place; adding them twice changes nothing.

    Raises:
        RecipeError: one of them is part of the tokenizer as it was published.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    existing = [token for token in new if token in known and known[token] < tokenizer.vocab_size]
    if existing:
        message = f"{existing} is already in the vocabulary. Remove it from the list, or name it in trainable_tokens."
        raise RecipeError([Problem("method.new_tokens", message)])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in new])


def ids_of(tokenizer: PreTrainedTokenizerBase, existing: Sequence[str]) -> list[int]:
    """Ids of tokens that are in the vocabulary.

    Raises:
        RecipeError: one of them is not; the message shows which tokens the text is.
    """
    if not existing:
        return []
    vocabulary = tokenizer.get_vocab()
    problems = []
    for token in existing:
        if token not in vocabulary:
            pieces = tokenizer.tokenize(token)
            message = f"'{token}' is no token of this model: it reads it as {pieces}. Name one of these, or add it "
            problems.append(Problem("method.trainable_tokens", message + "with new_tokens."))
    if problems:
        raise RecipeError(problems)
    return [vocabulary[token] for token in existing]


def grow_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Give each new token a row that is the mean of the rows its text had before; grow the matrix only if it must.

    Returns:
        The ids of `tokens`.
    """
    import torch

    ids = [int(cast("int", tokenizer.convert_tokens_to_ids(token))) for token in tokens]
    make_room(model, ids)
    first_new = min(ids)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m}
    with torch.no_grad():
        for token, row in zip(tokens, ids, strict=True):
            characters = tokenizer(list(token), add_special_tokens=False)["input_ids"]
            pieces = [piece for ids_of in characters for piece in ids_of if piece < first_new]
            for matrix in matrices.values():
                if pieces:
                    matrix[row] = matrix[pieces].float().mean(dim=0).to(matrix.dtype)
    return ids


def make_room(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Grow the embeddings if they have no row for one of `ids`; what stands in new rows is left to the caller."""
    if max(ids) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)


def learning_rows(model: PreTrainedModel, ids: list[int], field: str) -> dict[str, list[int]] | None:
    """Rows that learn, by module, as peft wants them; a tied head follows its embedding without being named.

    Raises:
        RecipeError: the output head has a bias, which peft's rows would drop. The problem is put at method.`field`.
    """
    if not ids:
        return None
    modules = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.bias is not None:
        message = (
            "rows cannot learn in this model: its output head has a bias, which peft (0.21) leaves out where rows "
            "learn. Leave the tokens out, or train with method: full."
        )
        raise RecipeError([Problem(f"method.{field}", message)])
    rows = {modules[id(embedding)].rsplit(".", 1)[-1]: ids}
    if head is not None and head.weight is not embedding.weight:
        rows[modules[id(head)].rsplit(".", 1)[-1]] = ids
    return rows


def readers_of_embeddings(model: PreTrainedModel) -> list[str]:
    """Names of the modules that read the matrix of the input embeddings, in the order of the model."""
    matrix = model.get_input_embeddings().weight
    return [name for name, module in model.named_modules() if module._parameters.get("weight") is matrix]


def check_readers(model: torch.nn.Module, readers: Sequence[str], field: str) -> None:
    """Each of `readers` must read the rows that learn.

    Raises:
        RecipeError: one of them would go on with the old rows. The problem is put at method.`field`.
    """
    from peft.utils.other import TrainableTokensWrapper

    base = cast("PeftModel", model).get_base_model()
    for name in readers:
        if not isinstance(base.get_submodule(name), TrainableTokensWrapper):
            message = (
                f"rows cannot learn in this model: {name} shares the embeddings, and peft (0.21) would leave it with "
                "the old rows. Leave the tokens out, or train with method: full."
            )
            raise RecipeError([Problem(f"method.{field}", message)])
