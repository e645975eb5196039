"""Data: labels and texts that do not belong together, or belong together too well."""

from __future__ import annotations

from typing import Any

import torch

from .cases import Run, accuracy, fault, filler, pack, packed, reviews, textual

#: Steps of six epochs of `loader`.
SIX_EPOCHS = 120

LOOK = "A Recipe for Training Neural Networks (Karpathy 2019): become one with the data"
LEARNABLE = ("labels_learnable", "loss_decreases")


@fault(
    "data",
    "A header line was skipped in the texts only: every label stands one row too high",
    LOOK + "; arXiv:2103.14749 (pervasive label errors)",
    LEARNABLE,
    ("label",),
    shows=lambda s: s.after < 0.6,
)
def labels_one_row_off(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        made = reviews(s, n)
        return [(words, made[i - 1][1]) for i, (words, _) in enumerate(made)]

    run = textual(seed, rows=rows)
    run.clean = packed(reviews(50_000 + seed, 96))
    return run


@fault(
    "data",
    "The filter for the wanted language left one class: all labels are the same",
    LOOK + "; github.com/allenai/natural-instructions/issues/468 (all labels of a task are '2')",
    ("batches_sound", "labels_learnable"),
    ("one class", "class", "label"),
    shows=lambda s: s.after < 0.6,
)
def one_class_left(seed: int) -> Run:
    run = textual(seed, rows=lambda s, n: reviews(s, n, weights=[0.0, 1.0, 0.0]))
    run.clean = packed(reviews(50_000 + seed, 96))
    return run


@fault(
    "data",
    "next(iter(loader)) inside the loop: every step gets the first batch of the data",
    "PyTorch docs: torch.utils.data.DataLoader (iter() starts anew)",
    ("batches_sound", "grads_match_reference"),
    ("same batch", "repeat", "identical", "duplicate"),
)
def first_batch_for_ever(seed: int) -> Run:
    run = textual(seed)
    first = run.batches[0]

    class Stuck:
        def __iter__(self) -> Any:
            for _ in range(20):
                yield first

        def __len__(self) -> int:
            return 20

    run.batches = Stuck()
    return run


@fault(
    "data",
    "The template puts the label's word into every text ('category: ...'): the model need not read the rest",
    "github.com/LL-a-VO/VLLaVO/issues/2 (labels appear in the texts); arXiv:2207.07048 (leakage and reproducibility)",
    ("no_leak",),
    ("leak", "label"),
)
def label_in_the_template(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        g = torch.Generator().manual_seed(s)
        return [([60, 5 + y, *filler(g, int(torch.randint(4, 9, (1,), generator=g)))], y) for _, y in reviews(s, n)]

    return textual(seed, rows=rows)


@fault(
    "data",
    "The validation loader is built over the training set",
    "github.com/bkong999/COVNet/issues/12 (the metric is computed on the training set); arXiv:2207.07048",
    ("no_leak",),
    ("training rows", "evaluat", "held-out", "leak", "overlap"),
)
def evaluated_on_the_training_rows(seed: int) -> Run:
    run = textual(seed)
    run.eval_batches = run.batches[:6]
    run.evaluate = accuracy(run.eval_batches)
    return run


@fault(
    "data",
    "Rows were duplicated for balance before the split: two thirds of the held-out rows are in the training set",
    "arXiv:2207.07048, section on duplicates across the split; oversampling before train_test_split",
    ("no_leak",),
    ("training rows", "held-out", "leak", "overlap", "duplicate"),
)
def duplicated_before_the_split(seed: int) -> Run:
    run = textual(seed)
    rows = reviews(100 + seed, 320)[:64] + reviews(50_000 + seed, 32)
    run.eval_batches = packed(
        [rows[i] for i in torch.randperm(96, generator=torch.Generator().manual_seed(seed)).tolist()]
    )
    run.evaluate = accuracy(run.eval_batches)
    return run


@fault(
    "data",
    "[row] * 16 in the collate function: each batch holds one row sixteen times",
    "Python's list multiplication of one object; DeepCrime's 'repeat training data' operator",
    ("batches_sound", "labels_learnable"),
    ("identical", "duplicate", "same", "repeat", "one class", "sorted"),
)
def one_row_sixteen_times(seed: int) -> Run:
    run = textual(seed)
    run.batches = [pack([row] * 16) for row in reviews(100 + seed, 20)]
    return run


@fault(
    "data",
    "sorted() by length was meant for padding; the key is the label: whole batches of one class, in the order of the classes",
    "TensorFlow docs: tf.data.Dataset.shuffle (the buffer must hold the sorted data); DeepCrime's data operators",
    ("batches_sound", "loss_stable"),
    ("sort", "one class", "order"),
)
def sorted_by_the_wrong_key(seed: int) -> Run:
    return textual(seed, rows=lambda s, n: sorted(reviews(s, n), key=lambda r: r[1]))


@fault(
    "data",
    "The new domain's tokens are not in the vocabulary: 95 % of the words are [UNK]",
    "github.com/google-research/bert README (vocabulary and casing); share of unknown words",
    ("batches_sound", "labels_learnable"),
    ("unknown", "unk", "same", "word"),
    shows=lambda s: s.after < 0.75,
)
def nearly_all_words_unknown(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        g = torch.Generator().manual_seed(s + 1)
        return [
            ([w if float(torch.rand(1, generator=g)) < 0.05 else 3 for w in words], y) for words, y in reviews(s, n)
        ]

    return textual(seed, rows=rows)


@fault(
    "data",
    "The labels are stored as one-based and shifted down twice: class 0 became -100 and is ignored, 1 became 0",
    "PyTorch docs: CrossEntropyLoss ignores -100; off-by-one between data sets with 0-based and 1-based classes",
    ("batches_sound", "loss_matches_task", "labels_learnable", "metric_improves"),
    ("ignored", "class", "label", "-100"),
)
def a_class_became_ignored(seed: int) -> Run:
    run = textual(seed)
    for b in run.batches:
        y = b["labels"]
        b["labels"] = torch.where(y == 0, torch.full_like(y, -100), y - 1)
    return run


@fault(
    "data",
    "Augmented copies keep the text and get the next class's label: every text stands in the data with two labels",
    "arXiv:2103.14749 (contradictory labels); a wrong index in the augmentation loop",
    ("batches_sound", "labels_learnable", "no_leak", "loss_decreases", "metric_improves"),
    ("contradict", "label", "two labels"),
    shows=lambda s: s.after < 0.75,
)
def every_text_with_two_labels(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        half = reviews(s, n // 2)
        both = half + [(words, (y + 1) % 3) for words, y in half]
        return [both[i] for i in torch.randperm(len(both), generator=torch.Generator().manual_seed(s)).tolist()]

    run = textual(seed, rows=rows)
    run.clean = packed(reviews(50_000 + seed, 96))
    return run


@fault(
    "data",
    "A tenth of the labels is wrong at random: the run is as healthy as can be, the data are not",
    "arXiv:2103.14749; DeepCrime, operator 'change labels of training data'",
    (),
    ("label",),
    uncatchable="a tenth of wrong labels looks like a harder task; only clean data could tell",
)
def a_tenth_of_the_labels_wrong(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        g = torch.Generator().manual_seed(s + 2)
        return [
            (words, int(torch.randint(3, (1,), generator=g)) if float(torch.rand(1, generator=g)) < 0.1 else y)
            for words, y in reviews(s, n)
        ]

    return textual(seed, rows=rows)


@fault(
    "data",
    "Texts are joined from a shuffled column: each row has the words of another row, drawn anew for each batch",
    "pandas docs: assignment aligns on the index, and a shuffled column has another",
    LEARNABLE,
    ("label",),
    shows=lambda s: s.after < 0.6,
)
def texts_of_other_rows(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        made = reviews(s, n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(s)).tolist()
        return [(made[j][0], y) for j, (_, y) in zip(order, made, strict=True)]

    run = textual(seed, rows=rows)
    run.clean = packed(reviews(50_000 + seed, 96))
    return run


def loader(seed: int, rows: Any, **settings: Any) -> Any:
    """The DataLoader of a tutorial, over rows of the toy language."""
    how = {"shuffle": True, **settings} if "sampler" not in settings else settings
    g = torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(rows, batch_size=16, collate_fn=pack, generator=g, **how)


@fault(
    "data",
    "The labels were shuffled before they were joined; the loader runs over six epochs, and the model memorises",
    LOOK + "; arXiv:1611.03530 (random labels are memorised)",
    LEARNABLE,
    ("label",),
    shows=lambda s: s.after < 0.6,
)
def labels_shuffled_over_epochs(seed: int) -> Run:
    made = reviews(100 + seed, 320)
    order = torch.randperm(320, generator=torch.Generator().manual_seed(seed)).tolist()
    run = textual(seed, steps=SIX_EPOCHS)
    run.batches = loader(seed, [(words, made[j][1]) for j, (words, _) in zip(order, made, strict=True)])
    return run


@fault(
    "data",
    "Three header lines were skipped in the texts only; the loader does not shuffle, and runs over three epochs",
    LOOK + "; arXiv:2103.14749 (pervasive label errors)",
    LEARNABLE,
    ("label",),
    shows=lambda s: s.after < 0.6,
)
def labels_three_rows_off_over_epochs(seed: int) -> Run:
    made = reviews(100 + seed, 320)
    run = textual(seed, steps=60)
    run.batches = loader(seed, [(words, made[i - 3][1]) for i, (words, _) in enumerate(made)], shuffle=False)
    return run


@fault(
    "data",
    "Texts and labels are shuffled by two generators: in each epoch each text gets another label",
    "PyTorch docs: torch.utils.data.DataLoader (one sampler a loader)",
    ("batches_sound", "labels_learnable"),
    ("labels_change",),
    shows=lambda s: s.after < 0.6,
)
def labels_drawn_anew_in_each_epoch(seed: int) -> Run:
    texts, labels = zip(*reviews(100 + seed, 320), strict=True)

    class Zipped:
        def __init__(self) -> None:
            self.texts = loader(seed, texts)
            self.texts.collate_fn = list
            self.labels = torch.utils.data.DataLoader(
                labels, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(seed + 1)
            )

        def __iter__(self) -> Any:
            for words, y in zip(self.texts, self.labels, strict=True):
                yield pack(list(zip(words, y.tolist(), strict=True)))

        def __len__(self) -> int:
            return len(self.texts)

    run = textual(seed)
    run.batches = Zipped()
    return run


class _FirstFour(torch.utils.data.Sampler):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Any:
        return (i % 4 for i in range(self.length))

    def __len__(self) -> int:
        return self.length


@fault(
    "data",
    "The sampler takes the index modulo the number of workers: four rows of 320 are drawn again and again",
    "PyTorch docs: torch.utils.data.Sampler; DeepCrime's operator 'repeat training data'",
    ("batches_sound",),
    ("few_rows_drawn",),
    shows=lambda s: s.after < 0.8,
)
def four_rows_again_and_again(seed: int) -> Run:
    run = textual(seed)
    run.batches = loader(seed, reviews(100 + seed, 320), sampler=_FirstFour(320))
    return run


@fault(
    "data",
    "__getitem__ returns one of the first four rows, whatever the index",
    "PyTorch docs: map-style datasets; DeepCrime's operator 'repeat training data'",
    ("batches_sound",),
    ("few_rows_drawn",),
    shows=lambda s: s.after < 0.8,
)
def four_rows_whatever_the_index(seed: int) -> Run:
    made = reviews(100 + seed, 320)

    class Rows(torch.utils.data.Dataset):
        def __getitem__(self, i: int) -> Any:
            return made[i % 4]

        def __len__(self) -> int:
            return len(made)

    run = textual(seed)
    run.batches = loader(seed, Rows())
    return run


@fault(
    "data",
    "The validation loader is built over the training set, and the training loader runs over three epochs",
    "github.com/bkong999/COVNet/issues/12 (the metric is computed on the training set); arXiv:2207.07048",
    ("no_leak",),
    ("held_out_is_training",),
)
def evaluated_on_the_training_rows_of_a_loader(seed: int) -> Run:
    made = reviews(100 + seed, 320)
    run = textual(seed, steps=60)
    run.batches, run.eval_batches = loader(seed, made), packed(made[:96])
    run.evaluate = accuracy(run.eval_batches)
    return run
