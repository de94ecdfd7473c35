"""Byte tokenizers with the properties that real ones trip over, and the chat templates of the usual families.

The file must not be called `tokenizers.py`: this folder is on `sys.path`, where it would hide the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ftune.builtin import CHATML, _byte_letters

SPECIAL = [
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
]  # fmt: skip


def byte_tokenizer(
    *,
    pad: str | None = "<pad>",
    eos_first: bool = False,
    bos: bool = False,
    trims: bool = False,
    merges: tuple[tuple[str, str], ...] = (),
    template: str | None = None,
) -> Any:
    """One token for each byte, and special ones.

    Args:
        pad: its pad token.
        eos_first: the id of EOS is 0.
        bos: the post-processor puts BOS before a text.
        trims: the post-processor trims spaces off offsets, as Llama 3's does.
        merges: pairs of byte letters that become one token, in which `Ġ` is a space and `Ċ` a line end.
        template: its chat template.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*(["</s>"] if eos_first else []), *_byte_letters(), *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    steps: list[Any] = [processors.ByteLevel(trim_offsets=True)] if trims else []
    if bos:
        start = ("<s>", core.token_to_id("<s>"))
        steps.append(processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[start]))
    if steps:
        core.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


TOKENIZERS: dict[str, Callable[..., Any]] = {
    "plain": byte_tokenizer,
    "pad_is_eos": lambda **options: byte_tokenizer(pad="</s>", **options),
    "no_pad": lambda **options: byte_tokenizer(pad=None, **options),
    "eos_is_0": lambda **options: byte_tokenizer(eos_first=True, **options),
    "adds_bos": lambda **options: byte_tokenizer(bos=True, **options),
    "trims_offsets": lambda **options: byte_tokenizer(bos=True, trims=True, **options),
}


@dataclass(frozen=True)
class Family:
    """A chat template, and how its turns end."""

    template: str
    terminator: str
    system: bool = True
    writes_bos: bool = False


FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>"),
    "llama3": Family(
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
        writes_bos=True,
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        "<end_of_turn>",
        system=False,
        writes_bos=True,
    ),
    "mistral": Family(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + message['content'] | trim + eos_token }}{% else %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        "</s>",
        system=False,
        writes_bos=True,
    ),
    "zephyr": Family(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "</s>",
    ),
    "plain": Family(
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + '\n' }}"
        "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\nAssistant:' }}"
        "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}",
        "",
    ),
}
THINKING = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and not loop.last and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Drops the thoughts of every assistant turn but the last, as Qwen3 and DeepSeek R1 do."""
