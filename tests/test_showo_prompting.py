"""Token layouts: every published case, and the one template of this project."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from showo_tiny import PARITY, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from core.errors import UserError
from models.families.showo.masks import mmu_attention
from models.families.showo.prompts import (
    CAPTION_QUESTION,
    SPECIAL_TOKENS,
    ShowoTokenizer,
    SpecialIds,
    mmu_answer,
    mmu_instruction,
    mmu_prefix,
    published_mmu_row,
    published_mmu_training_row,
    t2i_prompt,
    t2i_row,
    vqa_question,
)

CASES: dict[str, Any] = json.loads((PARITY / "prompting.json").read_text())
IMAGE = np.array(CASES["image_ids"])
LABELS = np.array(CASES["image_labels"])
BUDGET: int = CASES["max_text_len"]


@pytest.fixture(scope="module")
def tokenizer() -> ShowoTokenizer:
    return tiny_model().tokenizer


def test_special_tokens_have_the_published_ids(tokenizer: ShowoTokenizer) -> None:
    published = CASES["special_ids"] | {"[PAD]": CASES["special_ids"]["<|pad|>"]}
    del published["<|pad|>"]
    assert tokenizer.special_ids == published
    assert len(tokenizer) == CASES["len_tokenizer_after"]
    assert tokenizer.special == SpecialIds.from_config(tiny_model().config)


def published_encode(tokenizer: ShowoTokenizer, text: str) -> list[int]:
    """Ids as the published code has them, where text may name the bos token."""
    ids: list[int] = tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


CONTROL_NAMES = [*SPECIAL_TOKENS, "<|endoftext|>"]


@pytest.mark.parametrize("name", CONTROL_NAMES)
@pytest.mark.parametrize("text", ["{}", "a red {} cat", "{}{}", "a <|so{}i|> mat {} "])
def test_names_of_control_tokens_in_a_text_stay_text(
    tokenizer: ShowoTokenizer, name: str, text: str
) -> None:
    text = text.replace("{}", name)
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.tokenizer.decode(ids) == text


def test_texts_full_of_control_names_stay_text(tokenizer: ShowoTokenizer) -> None:
    text = "<|so<|soi|>i|>[PAD" + "<|soi|>[PAD]" * 3000
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.tokenizer.decode(ids) == text


def test_remembered_ids_are_those_of_the_first_time(tokenizer: ShowoTokenizer) -> None:
    first = tokenizer.encode("a remembered cat")
    first.append(-1)
    assert tokenizer.encode("a remembered cat") == first[:-1]


def test_captions_and_prompts_have_only_the_control_tokens_of_their_layout(
    tokenizer: ShowoTokenizer,
) -> None:
    caption = "<|endoftext|>a cat<|eoi|><|soi|>[PAD]<|mmu|>"
    special = tokenizer.special
    control = set(tokenizer.special_ids.values())
    answer = mmu_answer(tokenizer, caption, 200).tolist()
    assert [i for i in answer if i in control] == [special.eos]
    prompt = t2i_prompt(tokenizer.encode(caption), special, 200).tolist()
    assert [i for i in prompt if i in control] == [special.t2i, special.bos, special.eos]
    asked = mmu_instruction(tokenizer, vqa_question(caption, [caption])).tolist()
    assert [i for i in asked if i in control] == [special.bos]


@pytest.mark.parametrize("name", CASES["t2i"])
def test_generation_rows(tokenizer: ShowoTokenizer, name: str) -> None:
    case = CASES["t2i"][name]
    text = published_encode(tokenizer, case["text"])
    assert text == case["raw_ids"]
    prompt = t2i_prompt(text, tokenizer.special, BUDGET)
    ids, labels = t2i_row(prompt, IMAGE, LABELS, tokenizer.special, BUDGET)
    assert ids.tolist() == case["input_ids"] == CASES["t2i_gen"][name]["input_ids"]
    assert labels.tolist() == case["labels"]


def test_caption_dropout_is_the_empty_prompt(tokenizer: ShowoTokenizer) -> None:
    case = CASES["cond_dropout"]
    for draw, wanted, wanted_labels in zip(
        case["draws"], case["input_ids"], case["labels"], strict=True
    ):
        text = "" if draw < case["prob"] else case["text"]
        prompt = t2i_prompt(tokenizer.encode(text), tokenizer.special, BUDGET)
        ids, labels = t2i_row(prompt, IMAGE, LABELS, tokenizer.special, BUDGET)
        assert ids.tolist() == wanted
        assert labels.tolist() == wanted_labels


@pytest.mark.parametrize("name", CASES["mmu_class_task"])
def test_understanding_rows_of_the_prompting_class(tokenizer: ShowoTokenizer, name: str) -> None:
    text = published_encode(tokenizer, CASES["t2i"][name]["text"])
    ids, labels = published_mmu_row(text, IMAGE, tokenizer.special, BUDGET)
    assert ids.tolist() == CASES["mmu_class_task"][name]["input_ids"]
    assert labels.tolist() == CASES["mmu_class_task"][name]["labels"]


@pytest.mark.parametrize("name", CASES["mmu_train"]["cases"])
def test_understanding_rows_of_published_training(tokenizer: ShowoTokenizer, name: str) -> None:
    case = CASES["mmu_train"]["cases"][name]
    budget = CASES["mmu_train"]["text_budget"]
    ids, labels = published_mmu_training_row(tokenizer, case["caption"], IMAGE, budget)
    assert ids.tolist() == case["input_ids"]
    assert labels.tolist() == case["labels"]


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("caption", CAPTION_QUESTION),
        ("vqa", vqa_question("What color is the cat?", ["red", "blue"])),
    ],
)
def test_inference_rows(tokenizer: ShowoTokenizer, name: str, question: str) -> None:
    prefix = mmu_prefix(IMAGE, tokenizer.special).tolist()
    ids = prefix + mmu_instruction(tokenizer, question).tolist()
    assert ids == CASES["mmu_infer"][name]["input_ids"]


@pytest.mark.parametrize("caption", ["a red cat", "the dog and  the cat", "a"])
def test_a_decoded_answer_is_trained_on_as_the_tokens_it_was_sampled_as(
    tokenizer: ShowoTokenizer, caption: str
) -> None:
    ids = mmu_answer(tokenizer, caption, 32)
    assert ids[-1] == tokenizer.special.eos
    assert tokenizer.decode(ids.tolist()) == caption
    assert mmu_answer(tokenizer, tokenizer.decode(ids.tolist()), 32).tolist() == ids.tolist()


def test_instruction_and_answer_tokenize_as_one_text(tokenizer: ShowoTokenizer) -> None:
    instruction = mmu_instruction(tokenizer, CAPTION_QUESTION)[1:]
    answer = mmu_answer(tokenizer, "a red cat", 32)[:-1]
    whole = tokenizer.encode(f"USER: \n{CAPTION_QUESTION} ASSISTANT: a red cat")
    assert [*instruction, *answer] == whole
    assert vqa_question("Is it red?") == "Question:Is it red?"


def test_an_answer_cut_off_has_no_end_token(tokenizer: ShowoTokenizer) -> None:
    ids = mmu_answer(tokenizer, "a red cat on the mat", 3)
    assert len(ids) == 3
    assert ids[-1] != tokenizer.special.eos


def test_eoi_is_found_in_each_row(tokenizer: ShowoTokenizer) -> None:
    special = tokenizer.special
    early = [special.mmu, special.soi, special.eoi, 1, 2]
    late = [special.mmu, special.soi, 1, 2, special.eoi]
    attend = mmu_attention(torch.tensor([early, late]), special)[:, 0]
    assert attend[0, 0].tolist() == [True, True, True, False, False]
    assert attend[1, 0].tolist() == [True] * 5


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<eos>", "USER", ":", "ASSISTANT", "red", "circle", "Question"]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<eos>", eos_token="<eos>", unk_token="<unk>"
    )


def test_a_word_level_tokenizer_survives_saving(tmp_path: Any) -> None:
    first = ShowoTokenizer(word_tokenizer())
    first.save_pretrained(tmp_path)
    second = ShowoTokenizer.from_pretrained(tmp_path)
    assert second.special == first.special
    assert len(second) == 8 + len(SPECIAL_TOKENS)
    assert second.decode(mmu_answer(second, "red circle", 9).tolist()) == "red circle"


def test_special_tokens_out_of_order_are_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<|eoi|>"])
    with pytest.raises(UserError, match="consecutive"):
        ShowoTokenizer(tokenizer)
