"""The prompt in the tokens of Stable Diffusion's tokenizer, whose vocabulary open_clip ships."""

import json

import pytest
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from vton.models.encoders import TextEncoder
from vton.models.ladi_vton.words import Prompter, prompt

BEGIN, END, DOLLAR = 49406, 49407, 259


@pytest.fixture(scope="module")
def prompter(tmp_path_factory):
    """With CLIP's vocabulary, and padding as SD 2's tokenizer_config.json wrongly has it."""
    from open_clip.tokenizer import SimpleTokenizer

    theirs, folder = SimpleTokenizer(), tmp_path_factory.mktemp("tokenizer")
    vocabulary = {}
    for token, number in theirs.encoder.items():
        name = {BEGIN: "<|startoftext|>", END: "<|endoftext|>"}.get(number, token)
        vocabulary[name] = number
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.get)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines))
    config = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    model = CLIPTextModel(CLIPTextConfig(**sizes, num_hidden_layers=1))
    return Prompter(TextEncoder(tokenizer, model, penultimate=False), words=16)


@pytest.mark.parametrize(
    ("category", "first"), [("dresses", 9), ("upper_body", 11), ("lower_body", 11)]
)
def test_places_of_the_words(prompter, category, first):
    (ids,) = prompter.ids([prompt(category, 16)]).tolist()
    assert prompter.placeholder == DOLLAR and len(ids) == 77
    assert ids[0] == BEGIN and ids[first : first + 16] == [DOLLAR] * 16
    assert ids[first - 1] != DOLLAR and ids[first + 16] == END
    assert ids[first + 17 :] == [0] * (77 - first - 17)  # "!", as special_tokens_map.json says


def test_the_empty_prompt(prompter):
    assert prompter.ids([""]).tolist() == [[BEGIN, END] + [0] * 75]


def test_as_many_words_as_the_text_holds(prompter):
    assert prompter.fits()
    prompter.words = 65  # behind 11 tokens and before the end
    assert prompter.fits()
    prompter.words = 66
    assert not prompter.fits()
    prompter.words = 16
