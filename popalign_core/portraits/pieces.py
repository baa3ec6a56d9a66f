"""The pieces that words of the embedded model fall into, and the order in which they merge; without torch."""

import json
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer

START, END = "<|startoftext|>", "<|endoftext|>"


def learn_pieces(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """Byte-pair merges learnt on the words themselves until none is left: each piece's number, and the merges."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = Whitespace()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,'-!?")
    # The learner meets words in the order of a hash table that differs from process to process, and ties between merges
    # go by the numbers of their pieces. Given as special tokens, the letters that end words have theirs beforehand.
    trainer = BpeTrainer(
        vocab_size=10_000,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        special_tokens=[letter + "</w>" for letter in letters],
        show_progress=False,
        min_frequency=1,
    )
    learner.train_from_iterator(sorted(words), trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {piece: index for index, piece in enumerate([*pieces, START, END])}
    return vocabulary, [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
