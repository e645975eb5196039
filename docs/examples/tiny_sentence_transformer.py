"""A tiny sentence-transformers model with a tokenizer made in code, its data, and its Trainer: nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import torch

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

#: The tokens, in the order of their numbers; words 10 t to 10 t + 9 are those of topic t, from 60 on they are of no topic.
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(120))]
TOPICS = 6


def save_base(folder, *, family="DistilBert", seed=0):
    """A base of width 32 and its tokenizer, in a folder as ``Transformer`` wants it."""
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
        "Bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    }[family]
    config = getattr(transformers, f"{family}Config")(vocab_size=len(TOKENS), max_position_embeddings=32, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(TOKENS), encoding="utf-8")
    getattr(transformers, f"{family}Tokenizer")(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def make_model(folder, **options):
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:  # an older one
        from sentence_transformers.models import Pooling, Transformer

    base = Transformer(save_base(folder, **options), max_seq_length=32)
    return SentenceTransformer(modules=[base, Pooling(32)], device="cpu")


def sentence(topic, generator):
    """Six to ten words, half of them of the topic."""
    length = int(torch.randint(6, 11, (1,), generator=generator))
    own = 10 * topic + torch.randint(10, (length // 2,), generator=generator)
    other = 60 + torch.randint(60, (length - length // 2,), generator=generator)
    return " ".join(f"w{i}" for i in torch.cat([own, other])[torch.randperm(length, generator=generator)].tolist())


def make_data(kind, count=256, seed=0):
    """``pairs`` of one topic, ``topics`` as labels, or pairs of the ``same`` topic or not."""
    from datasets import Dataset

    g = torch.Generator().manual_seed(seed)
    topics = torch.randint(TOPICS, (count,), generator=g).tolist()
    first = [sentence(t, g) for t in topics]
    if kind == "topics":
        return Dataset.from_dict({"text": first, "label": topics})
    if kind == "pairs":
        return Dataset.from_dict({"text": first, "match": [sentence(t, g) for t in topics]})
    same = torch.randint(2, (count,), generator=g).tolist()
    second = [sentence(t if s else (t + 1) % TOPICS, g) for t, s in zip(topics, same, strict=True)]
    return Dataset.from_dict({"text": first, "other": second, "label": same})


def make_trainer(model, data, loss, folder, *, seed=0, **options):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from transformers import PrinterCallback

    arguments = SentenceTransformerTrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss, **options)
    trainer.remove_callback(PrinterCallback)
    return trainer
